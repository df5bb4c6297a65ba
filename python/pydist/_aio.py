"""Waiting for futures and channels in asyncio: the core wakes the loop, without a thread per waiter."""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref

from . import _core, _refs, _serialize
from ._channels import PUT

FOR_EVER = 1e9
"""Seconds that are longer than a timer of an event loop may run."""
HANDED_OVER = 1.0
"""Seconds to wait for an outcome that another thread of the core is about to hand over."""


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
        self._timer = asyncio.get_running_loop().call_later(seconds, self._take_back, is_put)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def confirm(self) -> None:
        _core.channel_confirm(self._ref, self._req)

    def undo(self) -> None:
        """Nobody wants the answer, whether it has come or not: an item that was taken goes back."""
        if not _core.channel_unwant(self._ref, self._req):
            _core.channel_give_back(self._ref, self._req)

    def _take_back(self, is_put: bool) -> None:
        """Has the owner say whether that comes in time; one that is silent is not waited for long."""
        _core.channel_withdraw(self._ref, self._req)
        if is_put:
            text, grace = _core.channel_unanswered(self._ref, self._timeout), _core.PUT_GRACE
        else:
            text, grace = f"the channel did not get to it within {self._timeout} s", _core.ASK_GRACE
        self._timer = asyncio.get_running_loop().call_later(grace, self._expire, text)

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
        self._futures: dict[int, _refs.Future] = {}
        loop.add_reader(self._queue.fileno(), self._drain)

    def _drain(self) -> None:
        for key, outcome in self._queue.drain():
            future = self._futures.pop(key, None)
            if future is not None:
                # It keeps the value even where nobody awaits it any more: the owner may have let go of it.
                future.accept(outcome)
            waiter = self._waiting.pop(key, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(outcome)

    async def arrival(self, future: _refs.Future) -> None:
        key = next(self._keys)
        waiter: asyncio.Future[_core.Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[key] = waiter
        self._futures[key] = future
        watch = future._ref.tell(self._queue, key, True)
        try:
            await waiter
        except asyncio.CancelledError:
            future.cancel_call()
            raise
        finally:
            if self._waiting.pop(key, None) is not None:
                if watch is not None and future._ref.untell(watch):
                    del self._futures[key]
                else:
                    self._collect(key)

    def _collect(self, key: int) -> None:
        """Waits for an outcome that another thread of the core is about to hand over."""
        until = time.monotonic() + HANDED_OVER
        self._drain()
        while key in self._futures and time.monotonic() < until:
            time.sleep(0.0001)
            self._drain()

    async def channel_outcome(
        self, ref: _core.Ref, op: int, dumped: _serialize.Dumped, timeout: float | None
    ) -> _core.Outcome:
        key = next(self._keys)
        loop = asyncio.get_running_loop()
        data, buffers, refs = dumped
        req = _core.channel_tell(ref, op, data, [b.raw() for b in buffers], refs, self._queue, key, timeout)
        waiter = self._waiting[key] = loop.create_future()
        request = _Request(ref, req, waiter, timeout)
        if timeout is not None and timeout < FOR_EVER:
            request.start(max(0.0, timeout), op == PUT)
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


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = weakref.WeakKeyDictionary()


def running_loop() -> asyncio.AbstractEventLoop:
    """The loop of asyncio, or of what stands in for it, that runs on this thread.

    Raises:
        RuntimeError: there is none.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "no event loop of asyncio runs on this thread; under trio, wait in a thread: "
            "await anyio.to_thread.run_sync(future.fetch)"
        ) from None


def _hub() -> _Hub:
    loop = running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        hub = _hubs[loop] = _Hub(loop)
    return hub


async def arrival(future: _refs.Future) -> None:
    """Returns once what a future is waited for has come to it; the loop goes on meanwhile."""
    await _hub().arrival(future)


async def channel_outcome(
    ref: _core.Ref, op: int, dumped: _serialize.Dumped, timeout: float | None
) -> _core.Outcome:
    """The answer of a channel; the loop goes on meanwhile, and a task that is cancelled loses no item."""
    return await _hub().channel_outcome(ref, op, dumped, timeout)
