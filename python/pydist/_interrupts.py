"""Interrupting the calls that run in this process, and nothing else."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from . import _core

Key = tuple[int, int]
"""A running call: the process that made it, and its number there."""

_running: dict[Key, int] = {}
_tasks: dict[Key, Callable[[], None]] = {}
_executors: dict[int, _core.Executor] = {}
_interrupted: set[Key] = set()
_starting: dict[Key, bool] = {}
"""Calls that start a thread, and whether they are to be interrupted after that."""
_main = threading.main_thread().ident
_main_target: Key | None = None
_leave_now = False
_stays = False


class _Leave(SystemExit):
    """Ends the main thread of a worker."""


def register(*, stays: bool) -> _core.Executor:
    """Takes up the calling thread as one that runs calls; it begins and ends them."""
    thread = threading.get_ident()
    executor = _core.Executor(stays, _running, _interrupted, thread, thread == _main)
    _executors[thread] = executor
    return executor


def unregister() -> None:
    """Forgets the calling thread."""
    _executors.pop(threading.get_ident(), None)


def current() -> _core.Executor | None:
    """The executor that the calling thread is, if it is one."""
    return _executors.get(threading.get_ident())


def enter_task(key: Key, cancel: Callable[[], None]) -> None:
    """A call goes on as a task of the event loop, which `cancel` ends."""
    _tasks[key] = cancel


def leave_task(key: Key) -> None:
    """The task of a call has ended."""
    _tasks.pop(key, None)


def interrupt(which: Key | None) -> None:
    """Raises KeyboardInterrupt in one running call, or in all."""
    for key in list(_starting):
        if which is None or key == which:
            _starting[key] = True
    for key, thread in list(_running.items()):
        if (which is None or key == which) and key not in _tasks:
            _interrupt_thread(key, thread)
    # Afterwards, as a call that runs may become a task meanwhile.
    for key, cancel in list(_tasks.items()):
        if which is None or key == which:
            cancel()


def _interrupt_thread(key: Key, thread: int) -> None:
    global _main_target
    if thread == threading.get_ident():
        return
    _interrupted.add(key)
    if thread == _main:
        _main_target = key
        signal.pthread_kill(thread, signal.SIGINT)
        return
    executor = _executors.get(thread)
    if not _core.interrupt_call(_running, key, thread):
        _interrupted.discard(key)
    elif executor is not None:
        executor.nudge()


def start_thread(thread: threading.Thread) -> None:
    """Starts a thread from within a call; an interrupt of the call waits until it runs.

    Before Python 3.12 a new thread has the identity of its creator for a moment. An interrupt would end it
    there, and the creator, which is not struck, would wait for its start for ever.
    """
    me = threading.get_ident()
    keys = [key for key, other in list(_running.items()) if other == me]
    struck = False
    try:
        for key in keys:
            _starting[key] = False
            del _running[key]
        thread.start()
    finally:
        for key in keys:
            _running[key] = me
            struck |= _starting.pop(key, False)
    if struck:
        raise KeyboardInterrupt


def leave_main() -> None:
    """Has the main thread of a worker end, whatever it runs."""
    global _leave_now
    _leave_now = True
    if _main is None:
        # The main thread belongs to whoever has made this process a worker, and cannot be told from here.
        os._exit(0)
    if threading.get_ident() != _main:
        signal.pthread_kill(_main, signal.SIGINT)
        executor = _executors.get(_main)
        if executor is not None:
            executor.nudge()


@contextlib.contextmanager
def staying() -> Iterator[None]:
    """Lets what the main thread does within go on where this worker is to end; it ends afterwards."""
    global _stays
    if threading.get_ident() != _main:
        yield
        return
    _stays = True
    try:
        yield
    finally:
        _stays = False


def leaving() -> bool:
    """Whether this worker is about to end: the main thread gives up what it runs."""
    return _leave_now


def _handle(signum: int, frame: FrameType | None) -> Any:
    global _main_target
    if _leave_now:
        if _stays:
            return
        raise _Leave(0)
    target, _main_target = _main_target, None
    if target is not None and _running.get(target) == _main:
        raise KeyboardInterrupt


def _again(error: BaseException | None) -> tuple[int, bool] | None:
    """On which thread to raise again what a finalizer has swallowed, and whether that is the main one."""
    global _main_target
    thread = threading.get_ident()
    if type(error) is _Leave:
        return thread, True
    if type(error) is KeyboardInterrupt:
        for key in list(_interrupted):
            if _running.get(key) == thread:
                if thread == _main:
                    _main_target = key
                return thread, thread == _main
    return None


def install_handler() -> None:
    """Lets interrupts of the main thread reach just their call, also where they strike a finalizer in it."""
    signal.signal(signal.SIGINT, _handle)
    sys.unraisablehook = _core.UnraisableHook(_again, sys.unraisablehook)
