"""Source lines that travel with a function, so that tracebacks elsewhere show them.

A process that runs a function of a script, a notebook or `python -c` need not have the file. The lines are
those of the function alone, and are put into `linecache` where the function arrives.
"""

from __future__ import annotations

import functools
import itertools
import linecache
import os
import stat
import sys
import types
import weakref
from collections.abc import Iterator
from typing import TypeAlias

LINES_MAX = 1000
"""The lines of a longer function stay here."""

Source: TypeAlias = tuple[int, list[str]]
"""The number of the first line, and the lines."""

_sources: dict[int, tuple[weakref.ref[types.CodeType], Source | None]] = {}
"""By the id of the code: code of other lines may be equal, where the lines differ in comments."""


def source_of(code: types.CodeType) -> Source | None:
    """Returns the lines of a code object, None where they are not known.

    >>> source_of(compile("1", "<nowhere>", "eval")) is None
    True
    """
    number = id(code)
    known = _sources.get(number)
    if known is not None and known[0]() is code:
        return known[1]
    try:
        source = _find(code)
    except Exception:  # the loader of a module, or a patched linecache
        source = None
    _sources[number] = weakref.ref(code, lambda _: _sources.pop(number, None)), source
    return source


def _find(code: types.CodeType) -> Source | None:
    first, last = code.co_firstlineno, _last_line(code)
    if not 0 < first <= last < first + LINES_MAX:
        return None
    name = code.co_filename
    lines = _main_lines(code) if name in _MAIN_TEXTS else linecache.getlines(name)
    if not lines and hasattr(linecache, "_getlines_from_code"):
        lines = linecache._getlines_from_code(code)  # what was typed in at the prompt of Python 3.13 or later
    return (first, lines[first - 1 : last]) if len(lines) >= first else None


def _last_line(code: types.CodeType) -> int:
    return max((end for _, end, _, _ in code.co_positions() if end is not None), default=code.co_firstlineno)


def nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """Yields the code objects within one."""
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from nested(constant)


def register(filename: str, source: Source) -> None:
    """Makes tracebacks show the lines, in place of those of a file of that name here, if there is one."""
    first, lines = source
    entry = linecache.cache.get(filename)
    if entry is not None and len(entry) == 4 and entry[2][first - 1 : first - 1 + len(lines)] == lines:
        return
    known = list(linecache.getlines(filename))
    known.extend(["\n"] * (first - 1 - len(known)))
    known[first - 1 : first - 1 + len(lines)] = lines
    # Without a time of change, checkcache does not look for the file.
    linecache.cache[filename] = (sum(map(len, known)), None, known, filename)


def _main_lines(code: types.CodeType) -> list[str]:
    """Returns the lines of a script that came by `-c` or standard input, if the code is of it.

    Code that was compiled from other text may have the same file name.
    """
    text = _MAIN_TEXTS[code.co_filename]()
    return text.splitlines(keepends=True) if code in _codes(text, code.co_filename) else []


@functools.lru_cache(maxsize=2)
def _codes(text: str, filename: str) -> frozenset[types.CodeType]:
    try:
        whole = compile(text, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return frozenset()
    return frozenset([whole, *nested(whole)])


@functools.cache
def _command() -> str:
    """Returns the text behind `-c`."""
    for option, text in itertools.pairwise(sys.orig_argv[1:]):
        if option.startswith("-") and option.endswith("c"):  # also -Ic
            return text
    return ""


@functools.cache
def _standard_input() -> str:
    """Returns the text of a script on standard input, where that is a file."""
    status = os.fstat(0)
    if not stat.S_ISREG(status.st_mode):
        return ""
    return os.pread(0, status.st_size, 0).decode("utf-8", "replace")


_MAIN_TEXTS = {"<string>": _command, "<stdin>": _standard_input}
