"""Waiting for futures in asyncio: the core wakes the loop, without a thread per waiter."""

from __future__ import annotations

import asyncio
import itertools
import weakref

from . import _core


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


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = weakref.WeakKeyDictionary()


async def outcome_of(ref: _core.Ref) -> _core.Outcome:
    """The outcome of a reference, once it is there; the loop goes on meanwhile."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        hub = _hubs[loop] = _Hub(loop)
    return await hub.outcome_of(ref)
