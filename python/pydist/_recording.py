"""Tells the core of this process which calls run, while somebody watches: `begin` and `end` are for then alone."""

from __future__ import annotations

import functools
import sys
from typing import Any

from . import _core

on = False
"""Whether somebody watches."""

ERROR_CHARACTERS = 300
"""How much of an error's message is told."""


def start() -> None:
    """Begins to tell of calls, those that run already included."""
    global on
    if not on:
        on = True
        _tell_running()


def stop() -> None:
    """Nobody watches any more."""
    global on
    on = False
    _core.forget_calls()


def begin(key: tuple[int, int], f: Any, args: tuple[Any, ...]) -> None:
    """A call runs from now on."""
    name = _name(f, args)
    if name:
        _core.call_began(key, name)


def end(key: tuple[int, int], error: BaseException | None) -> None:
    """A call has ended; one that `begin` was not told of is passed over."""
    _core.call_ended(key, None if error is None else _text(error))


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}"[:ERROR_CHARACTERS] if text else type(error).__name__


def _name(f: Any, args: tuple[Any, ...]) -> str:
    """What a call is shown as; nothing for those by which pydist itself keeps things going."""
    try:
        if f is start or f is stop:
            return ""
        module = getattr(f, "__module__", None)
        if module == "pydist._batches":
            if f.__name__ == "give_back":
                return ""
            return f"{_mapped(f.__name__, args)} [map]"
        if module == "pydist.executor" and args:
            f = args[0]
        while isinstance(f, functools.partial):
            f = f.func
        name = getattr(f, "__qualname__", None)
        return name if isinstance(name, str) and name else type(f).__qualname__
    except Exception:
        # Objects of users may do anything when they are looked at.
        return type(f).__qualname__


def _mapped(way: str, args: tuple[Any, ...]) -> str:
    """The function of a batch, which has its key or, on the process that maps, the function itself."""
    from . import _functions

    f = _functions.get(args[0]) if way == "run" else args[0]
    return getattr(f, "__qualname__", "") or type(f).__qualname__


def _tell_running() -> None:
    """Tells of calls that began before, by the function that their thread is in."""
    from . import _interrupts, _stacks

    frames = sys._current_frames()
    for key, thread in list(_interrupts._running.items()):
        frame = frames.get(thread)
        inside = _stacks._users(frame) if frame is not None else []
        if inside and inside[0].f_code not in (start.__code__, stop.__code__):
            code = inside[0].f_code
            _core.call_began(key, getattr(code, "co_qualname", code.co_name))
