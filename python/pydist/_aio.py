"""Waiting for futures and channels in asyncio: the core wakes the loop, without a thread per waiter."""

from __future__ import annotations

import asyncio
import itertools
import math
import weakref

from . import _core, _refs, _serialize
from ._channels import PUT


class _Request:
    """A request to a channel, from when it is sent until its answer is with the task that awaits it."""

    def __init__(
        self, ref: _core.Ref, req: int, waiter: asyncio.Future[_core.Outcome], timeout: float | None
    ) -> None:
        self._ref = ref
        self._req = req
        self._waiter = waiter
        self._timeout = timeout
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float, is_put: bool) -> None:
        """Sets the time after which the request is taken back."""
        loop = asyncio.get_running_loop()
        if is_put:
            self._timer = loop.call_later(seconds, self._ask_whether_put)
        else:
            text = f"the channel did not get to it within {self._timeout} s"
            self._timer = loop.call_later(seconds, self._expire, text)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def confirm(self) -> None:
        _core.channel_confirm(self._ref, self._req)

    def undo(self) -> None:
        """Nobody wants the answer, whether it has come or not: an item that was taken goes back."""
        if not _core.channel_unwant(self._ref, self._req):
            _core.channel_give_back(self._ref, self._req)

    def _ask_whether_put(self) -> None:
        _core.channel_withdraw(self._ref, self._req)
        text = _core.channel_unanswered(self._ref, self._timeout)
        self._timer = asyncio.get_running_loop().call_later(_core.PUT_GRACE, self._expire, text)

    def _expire(self, text: str) -> None:
        """The time is over: an answer that is not in the queue, or about to be, is not waited for."""
        if not self._waiter.done() and _core.channel_unwant(self._ref, self._req):
            self._waiter.set_exception(TimeoutError(text))


class _Hub:
    """What one event loop waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = _core.Queue(True)
        self._keys = itertools.count()
        self._waiting: dict[int, asyncio.Future[_core.Outcome]] = {}
        loop.add_reader(self._queue.fileno(), self._drain)

    def _drain(self) -> None:
        for key, outcome in self._queue.drain():
            waiter = self._waiting.pop(key, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(outcome)

    async def outcome_of(self, ref: _core.Ref) -> _core.Outcome:
        key = next(self._keys)
        waiter: asyncio.Future[_core.Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[key] = waiter
        watch = ref.tell(self._queue, key, True)
        try:
            return await waiter
        finally:
            if self._waiting.pop(key, None) is not None and watch is not None:
                ref.untell(watch)

    async def channel_outcome(
        self, ref: _core.Ref, op: int, dumped: _serialize.Dumped, timeout: float | None
    ) -> _core.Outcome:
        key = next(self._keys)
        loop = asyncio.get_running_loop()
        data, buffers, refs = dumped
        seconds = _check_timeout(timeout)
        req = _core.channel_tell(ref, op, data, [b.raw() for b in buffers], refs, self._queue, key, timeout)
        _refs.unpin()
        waiter = self._waiting[key] = loop.create_future()
        request = _Request(ref, req, waiter, timeout)
        if seconds is not None:
            request.start(seconds, op == PUT)
        try:
            outcome: _core.Outcome = await waiter
        except TimeoutError:
            raise
        except BaseException:
            request.undo()
            raise
        finally:
            self._waiting.pop(key, None)
            request.stop()
        if outcome.status == _refs.VALUE:
            request.confirm()
        return outcome


def _check_timeout(timeout: float | None) -> float | None:
    """The seconds of a timeout that ends at some time."""
    if timeout is not None and math.isnan(timeout):
        raise ValueError("timeout must be a number of seconds, not NaN")
    return None if timeout is None or timeout > 1e9 else max(0.0, timeout)


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = weakref.WeakKeyDictionary()


def _hub() -> _Hub:
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        hub = _hubs[loop] = _Hub(loop)
    return hub


async def outcome_of(ref: _core.Ref) -> _core.Outcome:
    """The outcome of a reference, once it is there; the loop goes on meanwhile."""
    return await _hub().outcome_of(ref)


async def channel_outcome(
    ref: _core.Ref, op: int, dumped: _serialize.Dumped, timeout: float | None
) -> _core.Outcome:
    """The answer of a channel; the loop goes on meanwhile, and a task that is cancelled loses no item."""
    return await _hub().channel_outcome(ref, op, dumped, timeout)
