"""Locks that a fork takes first, so that a child finds nothing in the midst of a change."""

from __future__ import annotations

import os
import threading
from types import TracebackType

FORK_SECONDS = 1.0
"""So long a fork waits at most for who holds a lock, who may wait for a reader of what it writes."""


class ForkLock:
    """A lock that the same thread may take again, that a fork waits for, and that is free in the child.

    What writes to a stream holds a lock inside of it, which CPython leaves locked for good in a child that is
    forked meanwhile. A thread of pydist therefore takes one of these before it writes to a stream.
    """

    def __init__(self) -> None:
        self._renew()
        _locks.append(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _take(self) -> None:
        if self._lock.acquire(timeout=FORK_SECONDS):
            self._forking.add(threading.get_ident())

    def _give_back(self) -> None:
        if threading.get_ident() in self._forking:
            self._forking.remove(threading.get_ident())
            self._lock.release()

    def _in_child(self) -> None:
        if threading.get_ident() in self._forking:
            self._give_back()
        else:
            self._renew()

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._forking: set[int] = set()


_locks: list[ForkLock] = []
"""In the order in which a fork takes them: what writes to a stream is made before the stream."""


def _take_all() -> None:
    for lock in _locks:
        lock._take()


def _give_back_all() -> None:
    for lock in _locks:
        lock._give_back()


def _all_in_child() -> None:
    for lock in _locks:
        lock._in_child()


os.register_at_fork(before=_take_all, after_in_parent=_give_back_all, after_in_child=_all_in_child)
