"""Frames of other processes: what is sent of a traceback, and real traceback objects made of it.

A debugger, `rich` or IPython shows them with their lines, as those of a call in this process. They have no
locals.
"""

from __future__ import annotations

import functools
import linecache
import types
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from pydist import _source_lines
from pydist._traceback_text import machinery

FRAMES_MAX = 64
"""Of a longer traceback the frames in the middle stay behind."""
BEFORE, AFTER = 40, 20
"""So many lines of a function are sent from before the one that a frame is at, and from behind it."""
MEMBERS_MAX = 32
"""So many errors of a group have their frames sent."""

Position: TypeAlias = tuple[int, int, int, int]
"""First and last line, first column and the one behind the last, of what a frame was at; 0: no column."""


class Frame(NamedTuple):
    """What is sent of one frame."""

    filename: str
    name: str
    qualname: str
    module: str
    first: int
    position: Position
    lines: _source_lines.Source | None


Trace: TypeAlias = tuple[list[Frame], list["Trace"]]
"""The frames of an exception, the outermost first; and those of its members, where it is a group."""


def trace_of(exc: BaseException) -> Trace | None:
    """Returns what is sent of the traceback of an exception, None where there is nothing; never raises.

    Parameters:
        exc: the exception. Frames of pydist and of the picklers are left out at the top.

    >>> try:
    ...     [][0]
    ... except IndexError as error:
    ...     [frame.name for frame in trace_of(error)[0]]
    ['<module>']
    """
    try:
        frames = _frames_of(exc.__traceback__)
        members: list[Trace] = []
        if isinstance(exc, BaseExceptionGroup):
            members = [trace_of(each) or ([], []) for each in exc.exceptions[:MEMBERS_MAX]]
    except Exception:  # a class that hides its attributes, or the loader of a module
        return None
    return (frames, members) if frames or any(frames for frames, _ in members) else None


def _frames_of(tb: types.TracebackType | None) -> list[Frame]:
    skipped = machinery()
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(skipped):
        tb = tb.tb_next
    entries = []
    while tb is not None:
        entries.append(tb)
        tb = tb.tb_next
    if len(entries) > FRAMES_MAX:
        entries[FRAMES_MAX // 2 : -FRAMES_MAX // 2] = []
    sent: set[tuple[str, int]] = set()
    return [_describe(entry, sent) for entry in entries]


def _describe(tb: types.TracebackType, sent: set[tuple[str, int]]) -> Frame:
    code = tb.tb_frame.f_code
    name, first, line = code.co_filename, code.co_firstlineno, tb.tb_lineno
    lines = None
    if (name, line) not in sent:
        sent.add((name, line))
        lines = _lines_around(tb.tb_frame, first, line)
    module = tb.tb_frame.f_globals.get("__name__")
    module = module if isinstance(module, str) else ""
    return Frame(name, code.co_name, code.co_qualname, module, first, _position(tb), lines)


def _position(tb: types.TracebackType) -> Position:
    positions = tb.tb_frame.f_code.co_positions()
    for at, (line, end, column, behind) in enumerate(positions):
        if 2 * at == tb.tb_lasti:
            if line is not None and end is not None and column is not None and behind is not None:
                return line, end, column, behind
            break
    return tb.tb_lineno, tb.tb_lineno, 0, 0


def _lines_around(frame: types.FrameType, first: int, line: int) -> _source_lines.Source | None:
    name = frame.f_code.co_filename
    known = linecache.getlines(name, frame.f_globals)
    start = max(first, line - BEFORE, 1)
    return (start, known[start - 1 : line + AFTER]) if len(known) >= line > 0 else None


def rebuild(exc: BaseException, trace: Trace, where: str) -> None:
    """Gives an exception a traceback of frames that were sent; never raises.

    Parameters:
        exc: the exception; those of a group are given theirs.
        trace: the frames.
        where: what the process is called that they come from.

    >>> import traceback
    >>> lines = ["def f():\\n", "    1 / 0\\n"]
    >>> frame = Frame("/no/such/file.py", "f", "f", "m", 7, (8, 8, 4, 9), (7, lines))
    >>> error = ZeroDivisionError("division by zero")
    >>> rebuild(error, ([frame], []), "worker 2")
    >>> print("".join(traceback.format_tb(error.__traceback__)), end="")
      File "/no/such/file.py", line 8, in f
        1 / 0
        ~~^~~
    """
    frames, members = trace
    try:
        tb = None
        renamed: dict[str, str] = {}
        for frame in frames:
            _show_lines(frame, where, renamed)
        for frame in reversed(frames):
            tb = _entry(tb, frame, renamed.get(frame.filename, frame.filename))
        # Not by the attribute: a class may forbid to set any.
        BaseException.__setattr__(exc, "__traceback__", tb)
        if members and isinstance(exc, BaseExceptionGroup):
            for member, its in zip(exc.exceptions, members, strict=False):
                if member.__traceback__ is None:
                    rebuild(member, its, where)
    except Exception:  # what was sent is no frame that the compiler of this Python can make
        return


def _show_lines(frame: Frame, where: str, renamed: dict[str, str]) -> None:
    """Has `linecache` know the lines of a frame, under another name where the file here has other ones."""
    if frame.lines is None:
        return
    name = renamed.get(frame.filename, frame.filename)
    if not _may_register(name, frame.lines):
        name = renamed[frame.filename] = _renamed(frame.filename, where)
    _source_lines.register(name, frame.lines)


def _may_register(filename: str, source: _source_lines.Source) -> bool:
    """Whether what is known of a file here agrees with some lines of it."""
    first, lines = source
    here = linecache.getlines(filename)[first - 1 : first - 1 + len(lines)]
    entry = linecache.cache.get(filename)
    if entry is None or (len(entry) == 4 and entry[1] is None):
        # There are only lines that have come along with code, and empty ones in place of others.
        return all(mine in ("\n", its) for mine, its in zip(here, lines, strict=False))
    return here == lines


def _renamed(filename: str, where: str) -> str:
    return f"{filename[:-1]} on {where}>" if filename.endswith(">") else f"{filename} on {where}"


def _entry(following: types.TracebackType | None, frame: Frame, filename: str) -> types.TracebackType:
    code = _stub(filename, frame.name, frame.qualname, frame.first, frame.position)
    # The frame of a generator that has not begun knows no caller, so that it keeps none alive.
    generator = types.FunctionType(code, {"__name__": frame.module, "__file__": filename})()
    return types.TracebackType(following, generator.gi_frame, 0, frame.position[0])


def _nothing() -> Iterator[None]:
    yield


@functools.lru_cache(maxsize=256)
def _stub(filename: str, name: str, qualname: str, first: int, position: Position) -> types.CodeType:
    """Makes code all of which is at one position."""
    code = _nothing.__code__
    return code.replace(
        co_filename=filename,
        co_name=name,
        co_qualname=qualname,
        co_firstlineno=first,
        co_linetable=_line_table(len(code.co_code) // 2, first, position),
    )


def _line_table(units: int, first: int, position: Position) -> bytes:
    """Encodes a position for some code units, as the table of locations of CPython has it since 3.11."""
    line, end, column, behind = position
    table = bytearray()
    delta = line - first
    for start in range(0, units, 8):
        kind = 14 if behind else 13  # with columns, and without
        table.append(0x80 | kind << 3 | min(units - start, 8) - 1)
        table += _varint(-delta << 1 | 1 if delta < 0 else delta << 1)
        if behind:
            table += _varint(end - line) + _varint(column + 1) + _varint(behind + 1)
        delta = 0
    return bytes(table)


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 0x40:
        parts.append(0x40 | value & 0x3F)
        value >>= 6
    parts.append(value)
    return bytes(parts)
