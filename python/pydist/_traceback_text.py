"""The text of exceptions: what is printed of them in another process. Nothing here raises."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import traceback

MAX_TEXT = 64 * 1024
"""A longer traceback text loses its middle."""

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_PICKLE = os.path.abspath(pickle.__file__)


def machinery() -> tuple[str, ...]:
    """Returns the beginnings of the paths of pydist and of the picklers."""
    cloudpickle: str | None = getattr(sys.modules.get("cloudpickle"), "__file__", None)
    known = (_PACKAGE, _PICKLE)
    return known if cloudpickle is None else (*known, os.path.dirname(cloudpickle) + os.sep)


def name_of(exc: BaseException) -> str:
    """Returns the name of an exception's class, with its module unless it is a built-in."""
    cls = type(exc)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def text_of(exc: BaseException) -> str:
    """Returns what `str` does, or what kept it from doing so."""
    try:
        return str(exc)
    except BaseException as error:
        return f"<its __str__ raised {type(error).__name__}>"


def this_host() -> str | None:
    """Returns the name of this host, None where it has none."""
    return os.uname().nodename or None


def format_traceback(exc: BaseException, *, notes: bool = True) -> str:
    """Returns the printed form of an exception, with the user's frames only; never raises.

    Parameters:
        exc: the exception.
        notes: whether its own notes are in it, not only those of its chain.

    Returns:
        The text. Frames of pydist and of the picklers are left out at the top. A long text loses its middle.

    >>> format_traceback(ValueError("bad"))
    'ValueError: bad\\n'
    """
    try:
        import traceback

        skipped = machinery()
        printed = traceback.TracebackException.from_exception(exc, compact=True)
        for each in _printed_chain(printed):
            while each.stack and each.stack[0].filename.startswith(skipped):
                del each.stack[0]
        if not notes:
            printed.__notes__ = None  # type: ignore[attr-defined, unused-ignore]
        text = "".join(printed.format())
    except BaseException:
        text = f"{name_of(exc)}: {text_of(exc)}\n"
    return shorten(text)


def _printed_chain(first: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    todo, seen = [first], {id(first)}
    for each in todo:
        yield each
        for other in (each.__cause__, each.__context__, *(each.exceptions or ())):
            if other is not None and id(other) not in seen:
                seen.add(id(other))
                todo.append(other)


def shorten(text: str) -> str:
    """Returns a text without its middle, if it is very long."""
    if len(text) <= MAX_TEXT:
        return text
    half = MAX_TEXT // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"


def place(pid: int, host: str | None) -> str:
    """Returns how a process is called in texts.

    >>> place(2, "node1")
    'worker 2 (node1)'
    """
    return f"{'process' if pid == 1 else 'worker'} {pid}" + (f" ({host})" if host else "")


def passage(exc: BaseException, pid: int) -> str:
    """Returns the frames through which an exception from elsewhere has passed in this process."""
    import traceback

    skipped = machinery()
    frames = traceback.extract_tb(exc.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(skipped)]
    if not own:
        return ""
    return f"\nIt passed through {place(pid, this_host())}:\n{''.join(traceback.format_list(own))}"
