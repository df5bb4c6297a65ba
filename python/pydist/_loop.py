"""The event loop of this process on which `async def` functions run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from . import _interrupts

_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def get() -> asyncio.AbstractEventLoop:
    """The event loop, started at first use on a thread of its own."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="pydist-loop", daemon=True).start()
        return _loop


def run(
    key: tuple[int, int],
    coroutine: Coroutine[Any, Any, Any],
    on_value: Callable[[Any], None],
    on_error: Callable[[BaseException], None],
) -> None:
    """Runs a coroutine as a task, and tells its end; an interrupt of the call cancels the task."""
    loop = get()

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        interrupted = False

        def cancel() -> None:
            nonlocal interrupted
            interrupted = True
            task.cancel()

        _interrupts.enter_task(key, lambda: _ignore(loop.call_soon_threadsafe(cancel)))
        try:
            value = await coroutine
        except BaseException as error:
            _interrupts.leave_task(key)
            if interrupted and isinstance(error, asyncio.CancelledError):
                error = KeyboardInterrupt()
            on_error(error)
        else:
            _interrupts.leave_task(key)
            on_value(value)

    loop.call_soon_threadsafe(lambda: _keep(loop.create_task(main())))


def _ignore(handle: asyncio.Handle) -> None:
    """Leaves a callback that is on its way alone."""


_alive: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    _alive.add(task)
    task.add_done_callback(_alive.discard)
