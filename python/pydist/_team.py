"""The workers of one map: those of its pool, as they come and go."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable

from . import _calls, _cluster, _core, _pools, _session
from ._abstract_pool import AbstractWorkerPool
from ._errors import NoWorkersError

HEAD = 1
UP_TO_DATE_SECONDS = 10.0
"""So long a map waits at its start for workers that have joined and run what persists."""


class Team:
    """Tells which workers a map may use, and replaces those that die where that is wanted.

    Parameters:
        pool: a pool, ids, or None for the default pool.
        respawn: start a worker for each that dies.
        queue: is woken, under the key `wake`, when a new worker is there, or could not be started.
        wake: that key.

    Raises:
        NoWorkersError: the pool is empty.
        ValueError: there is no such process.
        RuntimeError: `respawn` on another process than 1.
    """

    def __init__(
        self, pool: AbstractWorkerPool | Iterable[int] | None, respawn: bool, queue: _core.Queue, wake: int
    ) -> None:
        if respawn and not _session.is_head():
            raise RuntimeError("Only process 1 can add and remove workers: respawn=True works there alone")
        self._respawn = respawn
        self._queue = queue
        self._wake = wake
        self._taken: list[int] = []
        self._pool: AbstractWorkerPool | None = None
        self._fixed: list[int] = []
        if pool is None:
            self._pool = _pools.default_worker_pool()
        elif isinstance(pool, AbstractWorkerPool):
            self._pool = pool
        else:
            self._fixed = list(dict.fromkeys(_session.as_pid(pid) for pid in pool))
            for pid in self._fixed:
                _core.check_pid(pid)
        self._alive = self._members()
        self._known = self._listed_once_up_to_date()
        if not self._known:
            raise NoWorkersError("the pool has no workers")
        # The default pool names process 1 where there are no workers: it does not step in for those that die.
        self._head_works = HEAD in self._known
        turn = next(_calls._turns) % len(self._known)
        self.pids = self._known[turn:] + self._known[:turn]
        self._lock = threading.Lock()
        self._coming = 0
        self._new: list[int] = []
        self._failure: Exception | None = None

    def _members(self) -> frozenset[int]:
        return frozenset(member[0] for member in _core.members())

    def _listed_once_up_to_date(self) -> list[int]:
        """The workers of the pool; where it has none yet, those that have joined are waited for."""
        until = time.monotonic() + UP_TO_DATE_SECONDS
        while self._pool is not None and _pools.is_behind(self._pool) and time.monotonic() < until:
            if self._listed() not in ([], [HEAD]):
                break
            time.sleep(0.001)
        return self._listed()

    def _listed(self) -> list[int]:
        if self._pool is None:
            return list(self._fixed)
        try:
            return self._pool.workers()
        except NotImplementedError:
            return self._take_free()

    def _take_free(self) -> list[int]:
        """Takes the free workers of a pool that does not tell which it has."""
        assert self._pool is not None
        if not self._taken and len(self._pool):
            self._taken.append(self._pool.take())
            while len(self._taken) < len(self._pool) and self._pool.isready():
                self._taken.append(self._pool.take())
        return list(self._taken)

    def look(self) -> tuple[list[int], list[int]]:
        """Returns the workers that have come, and those that have gone, since the last look.

        Raises:
            LaunchWorkerError: a worker that was to replace another did not start.
        """
        with self._lock:
            new, self._new = self._new, []
            failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        alive = self._members()
        local = not isinstance(self._pool, _pools.WorkerPool) or self._pool._free is not None
        listed = self._known
        if self._pool is not None and (local or alive != self._alive):
            listed = [pid for pid in self._listed() if self._head_works or pid != HEAD]
        self._alive = alive
        joined = [pid for pid in dict.fromkeys([*listed, *new]) if pid in alive and pid not in self.pids]
        gone = [pid for pid in self.pids if pid not in alive]
        self._known = listed
        self.pids = [pid for pid in self.pids if pid in alive] + joined
        return joined, gone

    def lost(self, pid: int) -> None:
        """A worker has died: another is started in its place where that is wanted."""
        if pid in self.pids:
            self.pids.remove(pid)
        if self._respawn and pid in _cluster._started_with:
            with self._lock:
                self._coming += 1
            threading.Thread(target=self._replace, args=(pid,), name="pydist-respawn", daemon=True).start()

    def _replace(self, pid: int) -> None:
        new, failure = None, None
        try:
            new = _cluster.start_like(pid)
            if self._pool is not None:
                self._pool.push(new)
        except Exception as error:
            failure = error
        with self._lock:
            self._coming -= 1
            self._failure = failure
            if new is not None and failure is None:
                self._new.append(new)
        with contextlib.suppress(RuntimeError):
            self._queue.push(self._wake)

    def is_coming(self) -> bool:
        """Whether a worker is being started, or has joined and is not in the default pool yet."""
        if self._pool is not None and _pools.is_behind(self._pool):
            return True
        with self._lock:
            return self._coming > 0 or bool(self._new) or self._failure is not None

    def release(self) -> None:
        """The map has ended: workers that were taken from the pool go back."""
        taken, self._taken = self._taken, []
        for pid in taken:
            assert self._pool is not None
            with contextlib.suppress(Exception):
                self._pool.put(pid)


class Threads:
    """Stands for the workers of a map that runs in threads of this process."""

    def __init__(self, count: int) -> None:
        self.pids = list(itertools.islice(itertools.count(1 << 31), count))

    def look(self) -> tuple[list[int], list[int]]:
        """Threads neither come nor go."""
        return [], []

    def lost(self, pid: int) -> None:
        """Threads do not die."""

    def is_coming(self) -> bool:
        """No thread is being started."""
        return False

    def release(self) -> None:
        """There is nothing to give back."""
