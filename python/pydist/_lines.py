"""Whole lines: what the threads of a worker print at once does not mix within a line."""

from __future__ import annotations

import atexit
import io
import threading
from typing import BinaryIO, TextIO

from ._fork_lock import ForkLock

BEGUN_MAX = 8192
"""A line that is longer than this goes out in parts."""


class LineStream(io.TextIOWrapper):
    """A text stream that keeps the beginning of a line of each thread until its end.

    A beginning that is flushed goes out at once; the line of another thread then starts a new one.

    Parameters:
        buffer: the stream of bytes below.
        encoding: how text becomes bytes.

    >>> raw = io.BytesIO()
    >>> stream = LineStream(raw, "utf-8")
    >>> print("a", "b", file=stream, end="")
    >>> raw.getvalue()
    b''
    >>> print(file=stream)
    >>> raw.getvalue()
    b'a b\\n'
    """

    def __init__(self, buffer: BinaryIO, encoding: str) -> None:
        super().__init__(buffer, encoding, "backslashreplace", newline="\n", write_through=True)
        self._begun: dict[int, str] = {}
        self._unfinished: int | None = None
        self._lock = ForkLock()
        atexit.register(self._finish)

    def write(self, text: str) -> int:
        """Writes the lines that a text ends, and keeps the rest."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        thread = threading.get_ident()
        whole, newline, rest = text.rpartition("\n")
        with self._lock:
            start = self._begun.pop(thread, "")
            if newline:
                self._emit(thread, start + whole + newline)
                start = ""
            start += rest
            if len(start) > BEGUN_MAX:
                self._emit(thread, start)
            elif start:
                self._begun[thread] = start
                begun.add(thread)
        return len(text)

    def flush(self) -> None:
        """Writes what this thread has begun."""
        if self.closed:
            return
        with self._lock:
            begun = self._begun.pop(threading.get_ident(), "")
            if begun:
                self._emit(threading.get_ident(), begun)
            super().flush()

    def end_line(self) -> None:
        """Ends the line that this thread has begun, if any: its call has ended."""
        thread = threading.get_ident()
        if thread in self._begun or self._unfinished == thread:
            self.write("\n")

    def _finish(self) -> None:
        """Writes what all threads have begun: the process ends."""
        with self._lock:
            for thread, begun in self._begun.items():
                self._emit(thread, begun)
            self._begun.clear()

    def _emit(self, thread: int, text: str) -> None:
        """Writes lines, the last of which may be unfinished, beside an unfinished one of another thread."""
        if self._unfinished is not None and self._unfinished != thread:
            text = "\n" + text
        self._unfinished = None if text.endswith("\n") else thread
        if self._unfinished is not None:
            begun.add(thread)
        super().write(text)
        super().flush()


_installed: list[LineStream] = []
begun: set[int] = set()
"""The threads that may have begun a line."""


def install(stream: TextIO) -> LineStream:
    """Takes over the bytes below a stream of this process."""
    buffer: BinaryIO = stream.detach()  # type: ignore[attr-defined]
    lines = LineStream(buffer, stream.encoding)
    _installed.append(lines)
    return lines


def end_call() -> None:
    """A call has ended on this thread: so do the lines that it has `begun`."""
    begun.discard(threading.get_ident())
    for stream in _installed:
        stream.end_line()
