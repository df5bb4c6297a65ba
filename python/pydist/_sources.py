"""Source lines of functions that are sent by value, for tracebacks where the file is not to be had."""

from __future__ import annotations

import linecache
import os
import threading
import types
from collections.abc import Callable
from typing import Any, TypeAlias

Lines: TypeAlias = tuple[str, int, list[str]]
"""A file name, the number of a line of it, and the lines from there on."""

_lock = threading.Lock()


def lines_of(code: types.CodeType) -> Lines | None:
    """The source lines of a function, None where they are not known.

    >>> lines_of(compile("x = 1", "<nowhere>", "exec"))
    """
    filename = code.co_filename
    if filename not in linecache.cache and not os.path.isabs(filename):
        return None
    lines = linecache.getlines(filename)
    first = max(code.co_firstlineno, 1)
    found = lines[first - 1 : _last_line(code)]
    return (filename, first, found) if found else None


def _last_line(code: types.CodeType) -> int:
    last = max((line for _, _, line in code.co_lines() if line), default=code.co_firstlineno)
    inner = (_last_line(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return max(last, *inner, 0)


def with_lines(function: types.FunctionType, reduced: Any) -> Any:
    """Lets what rebuilds a function remember its lines first.

    Parameters:
        function: the function.
        reduced: what cloudpickle makes of it.
    """
    if not isinstance(reduced, tuple):
        return reduced
    lines = lines_of(function.__code__)
    if lines is None:
        return reduced
    make, arguments, *rest = reduced
    return build, (lines, make, *arguments), *rest


def build(lines: Lines, make: Callable[..., Any], *arguments: Any) -> Any:
    """Rebuilds a function, whose lines tracebacks can show from then on."""
    remember(*lines)
    return make(*arguments)


def remember(filename: str, first: int, lines: list[str]) -> None:
    """Adds lines of a file to those that tracebacks find, unless the file is there.

    >>> remember("<cell>", 3, ["a\\n", "b\\n"])
    >>> linecache.getline("<cell>", 4)
    'b\\n'
    """
    with _lock:
        entry = linecache.cache.get(filename)
        if entry is None and os.path.exists(filename):
            return
        if entry is not None and (len(entry) != 4 or entry[1] is not None):
            return
        known = list(entry[2]) if entry is not None else []
        known += ["\n"] * (first - 1 - len(known))
        known[first - 1 : first - 1 + len(lines)] = lines
        linecache.cache[filename] = (sum(map(len, known)), None, known, filename)
