"""The event loop of this process on which `async def` functions run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from . import _interrupts, _recording


def _start() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="pydist-loop", daemon=True).start()
    return loop


# With this module, which is imported where no interrupt strikes: a loop without its thread would keep
# every coroutine waiting.
_loop = _start()


class Running:
    """A call that goes on as a coroutine, in a task, which an interrupt of the call cancels."""

    def __init__(self, key: tuple[int, int]) -> None:
        self._key = key
        self._loop = _loop
        self._task: asyncio.Task[None] | None = None
        self._interrupted = False
        _interrupts.enter_task(key, self._interrupt)

    def run(
        self,
        coroutine: Coroutine[Any, Any, Any],
        on_value: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """Starts the task, and tells its end."""
        self._loop.call_soon_threadsafe(self._start, coroutine, on_value, on_error)

    def discard(self) -> None:
        """The call has ended without its task."""
        _interrupts.leave_task(self._key)

    def _interrupt(self) -> None:
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self._interrupted = True
        if self._task is not None:
            self._task.cancel()

    def _start(
        self,
        coroutine: Coroutine[Any, Any, Any],
        on_value: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        task = self._loop.create_task(self._main(coroutine, on_value, on_error))
        _alive.add(task)
        task.add_done_callback(_alive.discard)

    async def _main(
        self,
        coroutine: Coroutine[Any, Any, Any],
        on_value: Callable[[Any], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        try:
            if self._interrupted:
                coroutine.close()
                raise KeyboardInterrupt
            self._task = asyncio.current_task()
            value = await coroutine
        except BaseException as error:
            self.discard()
            if self._interrupted and isinstance(error, asyncio.CancelledError):
                error = KeyboardInterrupt()
            if _recording.on:
                _recording.end(self._key, error)
            on_error(error)
        else:
            self.discard()
            if _recording.on:
                _recording.end(self._key, None)
            on_value(value)


_alive: set[asyncio.Task[None]] = set()
