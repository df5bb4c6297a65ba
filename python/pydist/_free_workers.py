"""The workers of a pool, on the process that owns it: which there are, which are free, who waits for one."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable

from . import _core, _session
from ._errors import NoWorkersError

HEAD = 1

Holder = tuple[int, int]
"""Who has a worker: the process that took it, and the number of that take there."""


class _Waiter:
    """A take, or a wait, that has found no worker free."""

    def __init__(self, holder: Holder, takes: bool) -> None:
        self.holder = holder
        self.takes = takes
        self.wake = _core.Queue()
        self.pid: int | None = None
        self.error: Exception | None = None

    def end(self, pid: int | None, error: Exception | None = None) -> None:
        self.pid, self.error = pid, error
        self.wake.push(0)


class FreeWorkers:
    """The queue of the free workers of a pool; those that wait for one are served in the order they came.

    Workers that have gone are dropped before anything is answered; so are the claims of processes that have
    gone with a worker taken, which is free again then.

    Parameters:
        pids: the workers.
        falls_back: whether process 1 does the work while there are no workers.
    """

    def __init__(self, pids: Iterable[int], *, falls_back: bool = False) -> None:
        self._lock = threading.RLock()
        self._falls_back = falls_back
        self._workers: set[int] = set()
        self._free: deque[int] = deque()
        self._taken: dict[int, Holder] = {}
        self._waiters: deque[_Waiter] = deque()
        self._withdrawn: set[Holder] = set()
        with _watched_lock:
            _watched.add(self)
        _core.watch_members()
        for pid in pids:
            self._workers.add(pid)
            if pid not in self._free:
                self._free.append(pid)

    def push(self, pid: int) -> None:
        """Adds a worker, which is free; one that is in the pool stays as it is."""
        with self._lock:
            if pid not in self._workers:
                self._workers.add(pid)
                self._release(pid)

    def put(self, pid: int) -> None:
        """Takes a worker back that was taken.

        Raises:
            ValueError: there is such a process, but it is not in the pool.
        """
        with self._lock:
            self.renew()
            if self._taken.pop(pid, None) is not None:
                self._release(pid)
            elif pid not in self._workers and not (self._falls_back and pid == HEAD) and pid in _alive():
                raise ValueError(f"process {pid} is not in this pool")

    def take(self, holder: Holder, timeout: float | None = None) -> int:
        """Takes the worker that has been free longest, once there is one.

        Raises:
            NoWorkersError: no worker is left.
            TimeoutError: the time is over.
        """
        return self._await(_Waiter(holder, True), timeout)

    def wait(self, timeout: float | None = None) -> None:
        """Waits until a worker is free, and leaves it there.

        Raises:
            NoWorkersError: no worker is left.
            TimeoutError: the time is over.
        """
        self._await(_Waiter((_core.me(), 0), False), timeout)

    def isready(self) -> bool:
        """Whether a take would not wait."""
        with self._lock:
            self.renew()
            return bool(self._free) or (self._falls_back and not self._workers)

    def workers(self) -> list[int]:
        """The ids of all workers, free or not, sorted."""
        with self._lock:
            self.renew()
            if self._falls_back and not self._workers:
                return [HEAD]
            return sorted(self._workers)

    def withdraw(self, holder: Holder) -> None:
        """Nobody waits for the outcome of a take any more, wherever it has come to."""
        with self._lock:
            for pid, other in list(self._taken.items()):
                if other == holder:
                    self.put(pid)
                    return
            for waiter in self._waiters:
                if waiter.holder == holder:
                    self._waiters.remove(waiter)
                    waiter.end(None, _given_up())
                    return
            self._withdrawn.add(holder)

    def renew(self) -> None:
        """Drops the workers that have gone, and what those have taken that have gone."""
        with self._lock:
            alive = _alive()
            for pid in self._workers - alive:
                self._workers.discard(pid)
                self._taken.pop(pid, None)
                if pid in self._free:
                    self._free.remove(pid)
            for waiter in [waiter for waiter in self._waiters if waiter.holder[0] not in alive]:
                self._waiters.remove(waiter)
                waiter.end(None, _given_up())
            for pid, holder in list(self._taken.items()):
                if holder[0] not in alive:
                    del self._taken[pid]
                    self._release(pid)
            self._withdrawn = {holder for holder in self._withdrawn if holder[0] in alive}
            if not self._workers:
                while self._waiters:
                    self._waiters.popleft().end(None, self._none_left())

    def _await(self, waiter: _Waiter, timeout: float | None) -> int:
        with self._lock:
            self.renew()
            if waiter.holder in self._withdrawn or waiter.holder[0] not in _alive():
                self._withdrawn.discard(waiter.holder)
                raise _given_up()
            if not self._workers:
                if self._falls_back:
                    return HEAD
                raise self._none_left()
            if self._free:
                return self._hand(self._free[0], waiter)
            self._waiters.append(waiter)
        try:
            if timeout is None or timeout > 0:
                waiter.wake.wait(timeout)
        except BaseException:
            self._give_up(waiter)
            raise
        with self._lock:
            if waiter.pid is not None:
                return waiter.pid
            self._give_up(waiter)
            raise waiter.error or TimeoutError(f"no worker of the pool was free within {timeout} s")

    def _give_up(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            elif waiter.pid is not None and waiter.takes and self._taken.get(waiter.pid) == waiter.holder:
                self.put(waiter.pid)

    def _hand(self, pid: int, waiter: _Waiter) -> int:
        if waiter.takes:
            self._free.remove(pid)
            self._taken[pid] = waiter.holder
        return pid

    def _release(self, pid: int) -> None:
        """A worker is free: whoever has waited longest gets it."""
        self._free.append(pid)
        while self._waiters and self._free:
            waiter = self._waiters.popleft()
            waiter.end(self._hand(pid, waiter))

    def _none_left(self) -> NoWorkersError:
        return NoWorkersError("no worker is left in the pool: make one of workers that run, or push() some")


_watched: weakref.WeakSet[FreeWorkers] = weakref.WeakSet()
_watched_lock = threading.Lock()


def _given_up() -> TimeoutError:
    return TimeoutError("the process that wanted a worker has gone, or wants it no more")


def _alive() -> set[int]:
    return {member[0] for member in _core.members()}


def members_changed() -> None:
    """Some process has joined the cluster, or left it."""
    from . import _pools

    _pools.take_up()
    with _watched_lock:
        pools = list(_watched)
    for free in pools:
        free.renew()


def check_pids(pids: Iterable[int]) -> list[int]:
    """The ids of processes that a pool is made of; those that have gone are left out.

    Raises:
        TypeError: an id is no integer.
        ValueError: one never was.
    """
    from ._errors import ProcessExitedException

    _session.ensure_started()
    numbers = []
    for pid in pids:
        number = _session.as_pid(pid)
        try:
            _core.check_pid(number)
        except ProcessExitedException:
            continue
        numbers.append(number)
    return numbers
