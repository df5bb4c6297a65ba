"""The output of many tasks in one stream, each line with the number of its task before it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TextIO

from .. import _output

_LABEL = re.compile(rb" *(\d+): ?")


class TaskStream(_output.Stream):
    """One stream of a task: another one feeds it, as all tasks share a pipe.

    Parameters:
        pid: the worker.
        target: gives the stream of this process that its lines go to.
    """

    def __init__(self, pid: int, target: Callable[[], TextIO | None]) -> None:
        super().__init__(pid, -1, target)


class OwnStream(_output.Stream):
    """What the launcher of tasks says itself; all its workers have it at the end of their output.

    Parameters:
        hear: is called with each line.
    """

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(0, -1, lambda: None)
        self._hear = hear
        # Nobody has to wait for it: it goes on as long as any task does.
        self.ended.set()

    def _print(self, data: bytes) -> None:
        for line in data.decode("utf-8", "replace").splitlines():
            self._hear(line)


class Labelled(_output.Stream):
    """A pipe that the thread for output reads; gives each line to the task that it comes from.

    Parameters:
        fd: the pipe, which is closed at its end.
        task: gives the stream of a task by its number; None where there is no such task.
        own: where lines without a label go.
        sees: looks at a line of a task first; True where nobody is to see it.
        ended: is called at the end of the pipe.
    """

    def __init__(
        self,
        fd: int,
        task: Callable[[int], _output.Stream | None],
        own: _output.Stream,
        sees: Callable[[int, bytes], bool],
        ended: Callable[[], None],
    ) -> None:
        super().__init__(0, fd, lambda: None)
        self._task = task
        self._own = own
        self._sees = sees
        self._at_end = ended
        self._continued: _output.Stream | None = None

    def feed(self, data: bytes) -> None:
        """Takes what was read."""
        self._partial += data
        *lines, rest = bytes(self._partial).split(b"\n")
        self._partial[:] = rest
        for line in lines:
            self._take(line, b"\n")
        if len(self._partial) >= _output.LINE_BYTES:
            self._take(bytes(self._partial), b"")
            self._partial.clear()

    def _take(self, line: bytes, end: bytes) -> None:
        stream = self._continued
        if stream is None:
            stream = self._own
            label = _LABEL.match(line)
            task = None if label is None else self._task(int(label[1]))
            if label is not None and task is not None:
                line = line[label.end() :]
                if self._sees(int(label[1]), line):
                    return
                stream = task
        self._continued = None if end else stream
        stream.feed(line + end)

    def finish(self) -> None:
        """The pipe has ended."""
        if self._partial:
            self._take(bytes(self._partial), b"\n")
        self.ended.set()
        self._at_end()


def watch(labelled: Labelled) -> None:
    """Has the thread for output read a pipe from now on."""
    thread = _output.launcher()
    thread.run(lambda: thread.watch(labelled))


def when_all(count: int, call: Callable[[], None]) -> Callable[[], None]:
    """Returns a function that calls `call` when it has been called so often."""
    lock = threading.Lock()
    left = count

    def called() -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            call()

    return called
