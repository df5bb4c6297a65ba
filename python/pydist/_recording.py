"""Tells the core of this process which calls run, while somebody watches."""

from __future__ import annotations

import functools
import sys
import threading
import time
import types
from typing import Any

from . import _core

on = False
"""Whether somebody watches."""

SLICE_SECONDS, SLICE_CALLS = 0.25, 250
"""So many calls are told of in such a time; there may be more, but a microsecond for each would show."""
ERROR_CHARACTERS = 300
"""How much of an error's message is told."""


_OWN = f"{__package__}."
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
_failures: dict[int, str] = {}
_told: set[tuple[int, int]] = set()
_slice = 0.0
_left = 0


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
    _failures.clear()
    _told.clear()
    _core.forget_calls()


def begin(key: tuple[int, int], f: Any, args: tuple[Any, ...]) -> None:
    """A call runs from now on; it is told of unless there are too many."""
    global _slice, _left
    if _left <= 0:
        now = time.monotonic()
        if now < _slice:
            return
        _slice, _left = now + SLICE_SECONDS, SLICE_CALLS
    _left -= 1
    if type(f) in _FUNCTIONS and not (f.__module__ or "").startswith(_OWN):
        _core.call_began(key, f.__qualname__)
    else:
        _core.call_began(key, _name(f, args))
    _told.add(key)


def end(key: tuple[int, int], error: BaseException | None) -> None:
    """A call has ended; one that was not told of is passed over."""
    if error is None and _failures:
        text = _failures.pop(threading.get_ident(), None)
    else:
        text = None if error is None else _text(error)
    if key in _told:
        _told.discard(key)
        _core.call_ended(key, text)
    elif text is not None and (error is None or isinstance(error, Exception)):
        # Errors are told of, however many calls there are.
        _core.call_began(key, "a call")
        _core.call_ended(key, text)


def failed(error: BaseException) -> None:
    """An element of the batch that this thread runs has failed: the call is told of with the last error."""
    _failures[threading.get_ident()] = _text(error)


def _text(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}"[:ERROR_CHARACTERS] if text else type(error).__name__


def _name(f: Any, args: tuple[Any, ...]) -> str:
    """What a call is shown as; nothing for those by which pydist itself keeps things going."""
    try:
        while isinstance(f, functools.partial):
            f = f.func
        module = getattr(f, "__module__", None)
        if isinstance(module, str) and module.startswith(_OWN):
            return _name_within(module.removeprefix(_OWN), f, args)
        name = getattr(f, "__qualname__", None)
        return name if isinstance(name, str) and name else type(f).__qualname__
    except Exception:
        # Objects of users may do anything when they are looked at.
        return type(f).__qualname__


def _name_within(module: str, f: Any, args: tuple[Any, ...]) -> str:
    """What a call of a function of pydist is shown as: by the user's function that it calls."""
    name = getattr(f, "__name__", type(f).__name__)
    if (module, name) == ("_batches", "run"):
        from . import _functions

        return f"{_name(_functions.get(args[0]), ())} [map]"
    if (module, name) == ("_batches", "run_single"):
        from . import _functions

        return f"{_name(_functions.get((args[0], args[1])), ())} [map]"
    if (module, name) == ("_batches", "run_function"):
        return f"{_name(args[0], ())} [map]"
    if (module, name) in (("executor", "_run_chunk"), ("_calls", "_printing")):
        return _name(args[0], args[1:])
    if (module, name) == ("_macros", "run_text"):
        return "remotecall_eval"
    if (module, name) == ("_distributed", "_Loop"):
        return f"{_name(f.body, ())} [distributed]"
    if (module, name) == ("_functions", "_Waiting"):
        return _name(f._received.get(), args)
    import pydist

    return name if name in pydist.__all__ else ""


def _tell_running() -> None:
    """Tells of calls that began before, by what the frame that runs them was given."""
    from . import _interrupts, _stacks

    frames = sys._current_frames()
    for key, thread in list(_interrupts._running.items()):
        frame = frames.get(thread)
        while frame is not None and not _stacks.runs_call(frame):
            frame = frame.f_back
        if frame is not None:
            values = frame.f_locals
            _core.call_began(key, _name(values.get("f"), values.get("args", ())))
            _told.add(key)
