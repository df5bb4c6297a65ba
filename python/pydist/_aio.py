"""Waiting for futures and channels in asyncio: the core wakes the loop, without a thread per waiter."""

from __future__ import annotations

import asyncio
import itertools
import time
import weakref

from . import _core, _refs, _serialize

FOR_EVER = 1e9
"""Seconds that are longer than a timer of an event loop may run."""
HANDED_OVER = 1.0
"""Seconds to wait for an outcome that another thread of the core is about to hand over."""


class _Hub:
    """What one event loop waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = _core.Queue(True)
        self._keys = itertools.count()
        self._waiting: dict[int, asyncio.Future[_core.Outcome]] = {}
        self._futures: dict[int, _refs.Future] = {}
        # Requests to channels that have no answer yet, those that nobody wants any more included.
        self._requests: dict[int, tuple[_core.Ref, int]] = {}
        loop.add_reader(self._queue.fileno(), self._drain)

    def _drain(self) -> None:
        for key, outcome in self._queue.drain():
            future = self._futures.pop(key, None)
            if future is not None:
                # It keeps the value even where nobody awaits it any more: the owner may have let go of it.
                future.accept(outcome)
            waiter = self._waiting.pop(key, None)
            request = self._requests.pop(key, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(outcome)
            elif request is not None:
                _give_back(request, outcome)

    async def arrival(self, future: _refs.Future) -> None:
        key = next(self._keys)
        waiter: asyncio.Future[_core.Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[key] = waiter
        self._futures[key] = future
        watch = future._ref.tell(self._queue, key, True)
        try:
            await waiter
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
        while (key in self._futures or key in self._requests) and time.monotonic() < until:
            time.sleep(0.0001)
            self._drain()

    async def channel_outcome(
        self, ref: _core.Ref, op: int, dumped: _serialize.Dumped, timeout: float | None
    ) -> _core.Outcome:
        key = next(self._keys)
        loop = asyncio.get_running_loop()
        data, buffers, refs = dumped
        req = _core.channel_tell(ref, op, data, [b.raw() for b in buffers], refs, self._queue, key)
        waiter = self._waiting[key] = loop.create_future()
        self._requests[key] = ref, req
        timer = None
        if timeout is not None and timeout < FOR_EVER:
            timer = loop.call_later(max(0.0, timeout), _core.channel_withdraw, ref, req)
        try:
            outcome: _core.Outcome = await waiter
        except BaseException:
            self._abandon(key, waiter, (ref, req))
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if outcome.status == _refs.VALUE:
            _core.channel_confirm(ref, req)
        return outcome

    def _abandon(
        self, key: int, waiter: asyncio.Future[_core.Outcome], request: tuple[_core.Ref, int]
    ) -> None:
        """The task behind a request was cancelled: an item that has come, or comes, is given back."""
        self._waiting.pop(key, None)
        if not waiter.cancelled():
            _give_back(request, waiter.result())
        elif _core.channel_unwant(*request):
            self._requests.pop(key, None)
        else:
            # The loop may be about to end: nobody else would give the item back.
            self._collect(key)


def _give_back(request: tuple[_core.Ref, int], outcome: _core.Outcome) -> None:
    if outcome.status == _refs.VALUE:
        _core.channel_give_back(*request)


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = weakref.WeakKeyDictionary()


def _hub() -> _Hub:
    loop = asyncio.get_running_loop()
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
