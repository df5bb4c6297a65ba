"""The processes of the cluster: adding, removing, listing and interrupting them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from . import _core, _launch, _session
from ._abstract_pool import AbstractWorkerPool
from ._errors import LaunchWorkerError, ProcessExitedException

TERM_AFTER = 5.0
"""Seconds until a worker that was asked to end gets SIGTERM."""
KILL_AFTER = 10.0
"""Seconds until it gets SIGKILL."""

_workers: dict[int, _launch.LocalWorker] = {}
_gone: dict[int, tuple[str, str]] = {}
_started_with: dict[int, _launch.Params] = {}
_lock = threading.RLock()
_next_pid = 2
_removed: set[int] = set()
_settings: tuple[str, bool] | None = None


def addprocs(n: int | None = None, **params: Any) -> list[int]:
    """Starts worker processes on this machine.

    Parameters:
        n: how many; None for the number of CPUs that this process may use.
        topology: which workers may call each other: "all_to_all", "master_worker" or "custom".
        lazy: connect workers to each other only when they call.
        dir: the workers' working directory; that of this process by default.
        exename: the Python executable; that of this process by default.
        exeflags: flags for it, a list or one string.
        env: environment variables, in addition to those of this process.
        enable_threaded_blas: leave BLAS and OpenMP pools of a worker as they are, instead of one thread each.
        timeout: seconds for the start; else the environment variable PYDIST_WORKER_TIMEOUT, or 60.

    Returns:
        The new ids, sorted, once each of them answers calls.

    Raises:
        RuntimeError: this is not process 1.
        TypeError: an unknown keyword.
        ValueError: a negative number, an unknown topology, or one other than that of the workers there are.
        LaunchWorkerError: workers that did not start; `.started` lists those that did and stay usable.

    Distributed.jl: `addprocs`.

    >>> import pydist as d
    >>> pids = d.addprocs(1)
    >>> d.remotecall_fetch(pow, pids[0], 2, 10)
    1024
    >>> d.rmprocs(pids)
    """
    if not _session.is_head():
        raise RuntimeError("Only process 1 can add and remove workers")
    checked = _launch.check_params(params)
    count = len(os.sched_getaffinity(0)) if n is None else _count(n)
    _session.ensure_started()
    _check_settings(checked)
    return _start(count, checked)


def _count(n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"addprocs() takes a number of workers, not {type(n).__name__}")
    if n < 0:
        raise ValueError(f"the number of workers must not be negative: {n}")
    return n


def _check_settings(params: _launch.Params) -> None:
    global _settings
    wanted = (params.topology, params.lazy)
    if _settings is not None and _settings != wanted and len(_core.members()) > 1:
        raise ValueError(
            f"the workers that run have topology={_settings[0]!r}, lazy={_settings[1]!r}; "
            f"all workers must have the same, not topology={wanted[0]!r}, lazy={wanted[1]!r}"
        )
    _settings = wanted


def _start(count: int, params: _launch.Params) -> list[int]:
    global _next_pid
    with _lock:
        pids = range(_next_pid, _next_pid + count)
        _next_pid += count
    workers = [_launch.LocalWorker(pid, params) for pid in pids]
    _started_with.update(dict.fromkeys(pids, params))
    failures: list[LaunchWorkerError] = []
    started: list[int] = []
    coming: list[_launch.LocalWorker] = []
    try:
        for worker in workers:
            try:
                coming.append(worker)
                worker.start()
            except OSError as error:
                coming.remove(worker)
                failures.append(_launch.launch_error(error, worker))
        until = time.monotonic() + (workers[0].timeout() if workers else 0)
        for worker in list(coming):
            try:
                with _lock:
                    _workers[worker.pid] = worker
                worker.await_start(until)
                started.append(worker.pid)
            except LaunchWorkerError as error:
                failures.append(error)
                _workers.pop(worker.pid, None)
            coming.remove(worker)
    except BaseException:
        for worker in coming:
            worker.kill()
            _core.forget_worker(worker.pid)
            _workers.pop(worker.pid, None)
        if started:
            rmprocs(started)
        raise
    failures += _catch_up(started)
    if len(failures) == 1 and count == 1:
        raise failures[0]
    if failures:
        raise LaunchWorkerError(
            f"{len(failures)} of {count} workers did not start",
            failures=failures,
            started=started,
            host=failures[0].host,
            status=failures[0].status,
            output=failures[0].output,
        )
    return started


def start_like(pid: int) -> int:
    """Starts a worker with the parameters of another, which may have gone; returns its id."""
    return _start(1, _started_with[pid])[0]


def _catch_up(started: list[int]) -> list[LaunchWorkerError]:
    """Has new workers run what is to persist, and adds them to the default pool; removes those that fail."""
    from . import _everywhere, _pools

    failures = []
    for pid, error in _everywhere.catch_up(started):
        host = _workers[pid].host if pid in _workers else None
        failure = LaunchWorkerError(
            f"worker {pid} could not run what everywhere(..., persist=True) keeps for new workers: {error!r}",
            failures=[error],
            host=host,
        )
        failure.__cause__ = error
        failures.append(failure)
        started.remove(pid)
        rmprocs(pid)
    _pools.take_up()
    return failures


class Removal:
    """Workers that have been asked to end; `wait` waits until they have."""

    def __init__(self, workers: list[_launch.LocalWorker]) -> None:
        self._workers = workers
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._signalled: dict[int, int] = {}

    def wait(self, timeout: float | None = None) -> None:
        """Waits until the workers are gone: SIGTERM after 5 s, SIGKILL after 10 s.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: some are still there; the message names them.
        """
        until = None if timeout is None else time.monotonic() + timeout
        try:
            while True:
                left = [worker for worker in self._workers if not self._is_gone(worker)]
                if not left:
                    break
                if until is not None and time.monotonic() >= until:
                    names = ", ".join(str(worker.pid) for worker in left)
                    raise TimeoutError(f"still there after {timeout} s: worker {names}")
                self._press(left)
                time.sleep(0.002)
        except KeyboardInterrupt:
            for worker in self._workers:
                worker.kill()
            raise
        for worker in self._workers:
            worker.drain(1.0)
            _forget(worker)

    def _is_gone(self, worker: _launch.LocalWorker) -> bool:
        return worker.ended() and all(member[0] != worker.pid for member in _core.members())

    def _press(self, workers: list[_launch.LocalWorker]) -> None:
        waited = time.monotonic() - self._since
        number = signal.SIGKILL if waited > KILL_AFTER else signal.SIGTERM if waited > TERM_AFTER else None
        with self._lock:
            for worker in workers:
                if number is not None and self._signalled.get(worker.pid) != number:
                    self._signalled[worker.pid] = number
                    worker.signal(number)


def rmprocs(*pids: Any, waitfor: float | None = None) -> Removal | None:
    """Ends workers: asks first, with SIGTERM after 5 s and SIGKILL after 10 s.

    Parameters:
        pids: ids, or one list of them; one that has gone is passed over.
        waitfor: None to wait until they are gone; seconds to wait; 0 to return at once.

    Returns:
        None; with `waitfor=0` an object whose `wait()` waits.

    Raises:
        RuntimeError: this is not process 1.
        ValueError: id 1, or one that never was.
        TimeoutError: after `waitfor` seconds some are still there; the message names them.

    Distributed.jl: `rmprocs`.
    """
    if not _session.is_head():
        raise RuntimeError("Only process 1 can add and remove workers")
    chosen = _pids_of(pids)
    if 1 in chosen:
        raise ValueError("process 1 cannot be removed")
    for pid in chosen:
        if pid >= _next_pid:
            raise ValueError(f"there is no process {pid} in this cluster")
    with _lock:
        workers = [_workers[pid] for pid in chosen if pid in _workers]
        for worker in workers:
            if worker.pid not in _removed:
                _removed.add(worker.pid)
                _core.ask_exit(worker.pid)
    removal = Removal(workers)
    if waitfor is not None and waitfor == 0:
        return removal
    removal.wait(waitfor)
    return None


def _pids_of(pids: tuple[Any, ...]) -> list[int]:
    if len(pids) == 1 and isinstance(pids[0], Iterable) and not isinstance(pids[0], (str, bytes)):
        pids = tuple(pids[0])
    return [_session.as_pid(pid) for pid in pids]


def _forget(worker: _launch.LocalWorker) -> None:
    with _lock:
        if _workers.pop(worker.pid, None) is not None:
            _gone[worker.pid] = (worker.host, worker.output())
    worker.release()


def process_exited(pid: int, reason: str) -> ProcessExitedException:
    """The exception for a process that has gone, with what is known of it here."""
    worker = _workers.get(pid)
    if worker is not None:
        worker.ended()
        worker.drain(0.2)
        if worker.ended():
            _forget(worker)
    host, output = _gone.get(pid, (None, ""))
    if pid in _removed:
        reason = f"removed by rmprocs ({reason})"
    return ProcessExitedException(pid, reason, host, output)


def myid() -> int:
    """The id of this process.

    Distributed.jl: `myid`.

    >>> import pydist as d
    >>> d.myid()
    1
    """
    return _core.me() if _session._started else 1


def procs(pid: int | None = None) -> list[int]:
    """The ids of all processes, sorted; with `pid`, of those on the same host as that one.

    Raises:
        ValueError: there is no process `pid`.

    Distributed.jl: `procs`.

    >>> import pydist as d
    >>> d.procs()
    [1]
    """
    _session.ensure_started()
    members = _core.members()
    if pid is None:
        return [member[0] for member in members]
    number = _session.as_pid(pid)
    _core.check_pid(number)
    host = next(member[2] for member in members if member[0] == number)
    return [member[0] for member in members if member[2] == host]


def workers(pool: AbstractWorkerPool | None = None) -> list[int]:
    """The ids of the workers, sorted; with no workers, that of process 1.

    Parameters:
        pool: a pool, whose workers are told then, free or not; all workers by default.

    Distributed.jl: `workers`.

    >>> import pydist as d
    >>> d.workers()
    [1]
    """
    if pool is not None:
        return _check_pool(pool).workers()
    return [pid for pid in procs() if pid != 1] or [1]


def _check_pool(pool: Any) -> AbstractWorkerPool:
    if not isinstance(pool, AbstractWorkerPool):
        raise TypeError(f"expected a pool of workers, not {type(pool).__name__}")
    return pool


def nprocs() -> int:
    """The number of processes.

    Distributed.jl: `nprocs`.

    >>> import pydist as d
    >>> d.nprocs()
    1
    """
    return len(procs())


def nworkers(pool: AbstractWorkerPool | None = None) -> int:
    """The number of workers; 1 where there are none, as process 1 then does the work.

    Parameters:
        pool: a pool, whose workers are counted then, free or not; all workers by default.

    Distributed.jl: `nworkers`.

    >>> import pydist as d
    >>> d.nworkers()
    1
    """
    return len(workers()) if pool is None else len(_check_pool(pool))


def interrupt(*pids: Any) -> None:
    """Raises KeyboardInterrupt in the calls that run on processes, and in nothing else; they go on serving.

    Parameters:
        pids: ids, or one list of them; all workers by default.

    Raises:
        ValueError: there is no such process.
        ProcessExitedException: it has gone.

    Distributed.jl: `interrupt`.
    """
    chosen = _pids_of(pids) if pids else [pid for pid in workers() if pid != 1]
    for pid in chosen:
        _core.check_pid(pid)
    for pid in chosen:
        _core.interrupt(pid)


@contextmanager
def cluster(n: int | None = None, **params: Any) -> Iterator[list[int]]:
    """Starts workers for the length of a block, and ends just those.

    Parameters:
        n: as for `addprocs`.
        params: as for `addprocs`.

    Returns:
        A context manager that yields the new ids.

    >>> import pydist as d
    >>> with d.cluster(1) as pids:
    ...     d.remotecall_fetch(abs, pids[0], -3)
    3
    """
    pids = addprocs(n, **params)
    try:
        yield pids
    finally:
        rmprocs(pids)


def stats(pid: int | None = None) -> dict[str, int]:
    """What a process holds and has done, counted by its core.

    Parameters:
        pid: the process; this one by default.

    Returns:
        Among others `refs_owned`, `refs_held`, `calls_outstanding`, `calls_running`, `bytes_sent`,
        `bytes_received`, `messages_sent`, `messages_received`, `connections`, `queued_bytes`, `shared_bytes`.

    Raises:
        ValueError: there is no such process.

    >>> import pydist as d
    >>> d.stats()["calls_outstanding"]
    0
    """
    _session.ensure_started()
    if pid is None or _session.as_pid(pid) == _core.me():
        return _core.stats()
    from ._calls import remotecall_fetch

    counted: dict[str, int] = remotecall_fetch(stats, pid)
    counted["calls_running"] -= 1
    return counted


def cluster_cookie() -> bytes:
    """The secret that the processes of this cluster prove to each other that they know.

    Raises:
        RuntimeError: this is not process 1.

    Distributed.jl: `cluster_cookie`.
    """
    _session.ensure_started()
    if _session.session is None:
        raise RuntimeError("only process 1 tells the cookie")
    return _session.session.cookie


def shut_down() -> None:
    """Ends all workers at the end of this process: asked first, killed after 3 s or at a second Ctrl-C."""
    with _lock:
        left = list(_workers.values())
    try:
        removal = None
        if left:
            removal = rmprocs([worker.pid for worker in left], waitfor=0)
        if removal is not None:
            removal.wait(3.0)
    except (Exception, KeyboardInterrupt):
        for worker in left:
            worker.kill()
