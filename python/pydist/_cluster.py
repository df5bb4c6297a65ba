"""The processes of the cluster: adding, removing, listing and interrupting them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from . import _cookies, _core, _launching, _log, _session, _tls
from ._abstract_pool import AbstractWorkerPool
from ._errors import (
    REMOVED,
    ConnectionLostError,
    LaunchWorkerError,
    NotConnectedError,
    ProcessExitedException,
)
from .managers import _params, _registry
from .managers.base import ClusterManager, WorkerConfig
from .managers.local import LocalManager

TERM_AFTER = 5.0
"""Seconds until a worker that was asked to end gets SIGTERM."""
KILL_AFTER = 10.0
"""Seconds until it gets SIGKILL."""
ENDS_WITHIN = 30.0
"""Seconds in which a local worker that has left ends: it may have much memory to give back."""
TOLD_WITHIN = 2.0
"""Seconds that managers have to tell how workers ended that have left together, all in all."""

_workers: dict[int, _launching.Worker] = {}
_gone: dict[int, tuple[str | None, str]] = {}
_admitting: dict[int, ClusterManager] = {}
_started_with: dict[int, dict[str, Any]] = {}
_lock = threading.RLock()
_removed: set[int] = set()
_settings: tuple[str, bool] | None = None
_left = False
_letting_go = False


def addprocs(n: Any = None, **params: Any) -> list[int]:
    """Starts worker processes.

    Parameters:
        n: how many on this machine, None for the number of CPUs that this process may use; or a list of
            machines, `"[user@]host[:port] [bind_addr[:port]]"` or `(machine, count)`, reached through ssh,
            whose own keywords `SSHManager` lists; or a `ClusterManager`; or the name of one in the
            entry-point group `pydist.cluster_managers`.
        topology: which workers may call each other: "all_to_all", "master_worker" or "custom".
        lazy: connect workers to each other only when they call.
        dir: the workers' working directory; that of this process by default.
        exename: the Python executable; that of this process by default.
        exeflags: flags for it, a list or one string.
        env: environment variables, in addition to those of this process.
        enable_threaded_blas: leave BLAS and OpenMP pools of a worker as they are, instead of one thread each.
        timeout: seconds for the start; else the environment variable PYDIST_WORKER_TIMEOUT, or 60.
        tls: True to encrypt connections over TCP on loopback too; `TlsFiles` to do so with one's own
            certificate. By default connections beyond loopback are encrypted, with keys made for it.
        allow_plaintext: let connections over a network be unencrypted.

    Returns:
        The new ids, sorted, once each of them answers calls.

    Raises:
        RuntimeError: this is not process 1.
        TypeError: an unknown keyword.
        ValueError: a negative number, a malformed machine or none, an unknown topology, or one other than
            that of the workers there are; TLS that cannot be as it is asked for.
        LaunchWorkerError: workers that did not start; `.started` lists those that did and stay usable.

    Distributed.jl: `addprocs`.

    >>> import pydist as d
    >>> pids = d.addprocs(1)
    >>> d.remotecall_fetch(pow, pids[0], 2, 10)
    1024
    >>> d.rmprocs(pids)
    """
    return start_workers(n, params)


def start_workers(n: Any, params: dict[str, Any], given_up: threading.Event | None = None) -> list[int]:
    """Does what `addprocs` does; where it is `given_up` meanwhile, the workers are ended.

    Raises:
        GivenUp: that was so.
    """
    if not _session.is_head():
        raise RuntimeError("Only process 1 can add and remove workers")
    manager = _registry.manager_of(n)
    checked = _params.check(manager, params)
    if isinstance(manager, LocalManager):
        manager.prepare(checked)
    try:
        _session.ensure_started()
        _tls.use(checked["tls"])
        from . import _pools  # noqa: F401 - needed once the workers are there, and imported while they start

        _check_settings(checked)
    except BaseException:
        if isinstance(manager, LocalManager):
            manager.forgo()
        raise
    return _start(manager, checked, given_up)


def _check_settings(params: dict[str, Any]) -> None:
    global _settings
    wanted = (params["topology"], params["lazy"])
    if _settings is not None and _settings != wanted and len(_core.members()) > 1:
        raise ValueError(
            f"the workers that run have topology={_settings[0]!r}, lazy={_settings[1]!r}; "
            f"all workers must have the same, not topology={wanted[0]!r}, lazy={wanted[1]!r}"
        )
    _settings = wanted


def _start(
    manager: ClusterManager, params: dict[str, Any], given_up: threading.Event | None = None
) -> list[int]:
    launch = _launching.start(manager, params, _workers, given_up)
    if not manager._trusted:
        _core.watch_members()
    started = launch.run()
    # A worker that nobody asks any more is to be reaped, too, once it has died.
    _core.watch_members()
    if isinstance(manager, LocalManager):
        _started_with.update(dict.fromkeys(started, params))
    asked = len(started) + len(launch.failures)
    launch.failures += _catch_up(started, pooled=not _is_private(manager))
    _launching.fail(launch.failures, started, asked)
    return started


def _is_private(manager: ClusterManager) -> bool:
    """Whether the workers of a manager belong to an executor."""
    return isinstance(manager, LocalManager) and manager.for_executor


def shared_workers() -> list[int]:
    """The workers that belong to no executor, as far as this process knows."""
    if not _session._started:
        return []
    with _lock:
        private = {worker.pid for worker in _workers.values() if _is_private(worker.manager)}
    return [pid for pid in procs() if pid != 1 and pid not in private]


def start_like(pid: int) -> int:
    """Starts a worker with the parameters of another, which may have gone; returns its id."""
    return _start(LocalManager(1), _started_with[pid])[0]


def worker_joined(pid: int, listener: int) -> None:
    """A worker that was not waited for has joined by dialling in at a listener."""
    manager = _admitting.get(listener)
    if manager is None:
        return
    host = next((member[2] for member in _core.members() if member[0] == pid), None)
    worker = _launching.Worker(pid, manager, WorkerConfig(host=host))
    worker.joined = True
    with _lock:
        _workers[pid] = worker
    threading.Thread(target=_take_up, args=(worker,), name="pydist-joined", daemon=True).start()


def _take_up(worker: _launching.Worker) -> None:
    worker.manage("register")
    for failure in _catch_up([worker.pid]):
        _log.logger().warning("%s", failure)


def worker_silent(pid: int) -> None:
    """A worker has been given up since it was not heard any more: its manager is to put an end to it."""
    worker = _workers.get(pid)
    if worker is not None:
        threading.Thread(target=_put_an_end_to, args=(worker,), name="pydist-silent", daemon=True).start()


def _put_an_end_to(worker: _launching.Worker) -> None:
    worker.kill()
    worker.drain(1.0)
    _forget(worker)


def admit(listener: int, manager: ClusterManager | None) -> None:
    """Has the workers that dial in at a listener belong to a manager; None: to none any more."""
    if manager is None:
        _admitting.pop(listener, None)
    else:
        _admitting[listener] = manager
        _core.watch_members()


class _Peek(threading.local):
    """Whether this thread asks for what the core knows of an end, and not its manager."""

    on = False


_peek = _Peek()


def _was_silent(pid: int) -> bool:
    """Whether a worker was given up for its silence: who puts an end to it lets go of it."""
    _peek.on = True
    try:
        _core.check_pid(pid)
    except ProcessExitedException as error:
        return error.reason.startswith("no heartbeat")
    finally:
        _peek.on = False
    return False


def members_changed() -> None:
    """Has a thread let go of workers that have left by themselves: the one that is at it, if there is one."""
    global _left, _letting_go
    if _session.session is None or not _that_have_left():
        return
    with _lock:
        _left = True
        if _letting_go:
            return
        _letting_go = True
    try:
        threading.Thread(target=_let_go, name="pydist-left", daemon=True).start()
    except RuntimeError:
        # The system has no thread left, or the process ends: the next change tries again.
        with _lock:
            _letting_go = False


def _that_have_left() -> list[_launching.Worker]:
    alive = {member[0] for member in _core.members()}
    with _lock:
        return [w for w in _workers.values() if w.joined and w.pid not in alive]


def _let_go() -> None:
    """Lets go of workers that have left, until no more have done so meanwhile."""
    global _left, _letting_go
    while True:
        with _lock:
            if not _left:
                _letting_go = False
                return
            _left = False
        try:
            _let_go_of(_that_have_left())
        except Exception:
            _log.logger().exception("workers that have left are still kept")


def _let_go_of(gone: list[_launching.Worker]) -> None:
    until = time.monotonic() + TOLD_WITHIN
    ending = []
    for worker in gone:
        if _was_silent(worker.pid):
            continue
        if isinstance(worker.manager, LocalManager):
            ending.append(worker)
            continue
        # It is kept until its manager can tell how it ended, for those that ask.
        worker.exit_reason(max(until - time.monotonic(), 0))
        if worker.has_ended():
            _forget(worker)
    until = time.monotonic() + ENDS_WITHIN
    while ending and not _left and time.monotonic() < until:
        for worker in ending:
            if worker.has_ended():
                _forget(worker)
        ending = [worker for worker in ending if worker.pid in _workers]
        time.sleep(0.005 if ending else 0)


def _catch_up(started: list[int], pooled: bool = True) -> list[LaunchWorkerError]:
    """Has new workers run what persists; `pooled` adds them to the default pool. Removes those that fail."""
    from . import _pools

    if _session.trace is not None:
        _session.trace.take_up(started)
    failures = []
    # What nobody has imported has nothing that persists.
    everywhere = sys.modules.get(f"{__package__}._everywhere")
    for pid, error in everywhere.catch_up(started) if everywhere is not None else ():
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
    if pooled:
        _pools.take_up(started)
    return failures


class Removal:
    """Workers that have been asked to end; `wait` waits until they have."""

    def __init__(self, workers: list[_launching.Worker]) -> None:
        self._workers = workers
        self._since = time.monotonic()
        self._lock = threading.Lock()
        self._pressed: dict[int, int] = {}

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

    def _is_gone(self, worker: _launching.Worker) -> bool:
        # In this order: the core tells how it ended only as long as nobody has reaped it.
        return all(member[0] != worker.pid for member in _core.members()) and worker.has_ended()

    def _press(self, workers: list[_launching.Worker]) -> None:
        waited = time.monotonic() - self._since
        step = 2 if waited > KILL_AFTER else 1 if waited > TERM_AFTER else 0
        with self._lock:
            for worker in workers:
                if step > self._pressed.get(worker.pid, 0):
                    self._pressed[worker.pid] = step
                    if step == 1:
                        worker.terminate()
                    else:
                        worker.kill()
                        _core.drop_worker(worker.pid, "it did not end when it was asked to")


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
    _session.ensure_started()
    if 1 in chosen:
        raise ValueError("process 1 cannot be removed")
    for pid in chosen:
        if pid >= _core.next_id():
            raise ValueError(f"there is no process {pid} in this cluster")
    _await_known(chosen)
    if _session.trace is not None:
        _session.trace.collect_before_end(chosen)
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


def _await_known(pids: list[int]) -> None:
    """Waits until it is known to whom workers belong that have joined by themselves this very moment."""
    until = time.monotonic() + 1
    while time.monotonic() < until:
        members = {member[0] for member in _core.members()}
        if all(pid in _workers or pid not in members for pid in pids):
            return
        time.sleep(0.001)


def _pids_of(pids: tuple[Any, ...]) -> list[int]:
    if len(pids) == 1 and isinstance(pids[0], Iterable) and not isinstance(pids[0], (str, bytes)):
        pids = tuple(pids[0])
    return [_session.as_pid(pid) for pid in pids]


def _forget(worker: _launching.Worker) -> None:
    with _lock:
        known = worker.pid in _workers
        if known:
            # In this order, since `process_exited` looks without the lock.
            _gone[worker.pid] = (worker.host, worker.output())
            del _workers[worker.pid]
    if known:
        worker.release()
    else:
        worker.await_release()


def process_exited(pid: int, reason: str, lives: bool = False) -> ProcessExitedException:
    """The exception for a process that has gone, or `lives` out of reach, with what is known of it here."""
    if lives:
        return ConnectionLostError(pid, reason)
    if _peek.on:
        return ProcessExitedException(pid, reason)
    worker = _workers.get(pid)
    host, output = None, ""
    if worker is not None:
        if reason.startswith("no heartbeat"):
            # It may still be there: who puts an end to it lets go of it, and a signal then is not why.
            host, output = worker.host, _launching.tail(worker)
        else:
            reason = worker.exit_reason() or reason
            if not worker.has_ended():
                worker.drain(0.2)
            if worker.has_ended():
                worker.drain(0.2)
                _forget(worker)
            else:
                host, output = worker.host, worker.output()
    host, output = _gone.get(pid, (host, output))
    if pid in _removed:
        reason = f"{REMOVED} ({reason})"
    return ProcessExitedException(pid, reason, host, output)


def not_connected(here: int, there: int) -> NotConnectedError:
    """The exception for a process that this one is not connected to, with the reason that is known here."""
    reason = ""
    if not _core.has_route_to(there):
        hosts = {member[0]: member[2] for member in _core.members()}
        reason = (
            f"{hosts.get(here, '?')} has no route to it on {hosts.get(there, '?')}, where it listens on "
            "loopback or a Unix socket alone; workers behind tunnels reach process 1 and those of their host"
        )
    return NotConnectedError(here, there, reason)


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
        worker = _workers.get(pid)
        if worker is None or worker.manager._trusted or worker.manage("interrupt") is not True:
            _core.interrupt(pid)


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


def cluster_cookie(cookie: bytes | str | None = None) -> bytes:
    """The secret that the processes of this cluster prove to each other to know; with an argument, sets it.

    Parameters:
        cookie: at least 16 bytes, or text; hexadecimal digits stand for their bytes.

    Returns:
        The cookie, as it was given; one that nobody gave has 32 random bytes.

    Raises:
        RuntimeError: this is not process 1; or one is given, and there are workers.
        ValueError: it has less than 16 bytes.

    Distributed.jl: `cluster_cookie`.

    >>> import pydist as d
    >>> len(d.cluster_cookie()) >= 16
    True
    """
    checked = None if cookie is None else _cookies.check(cookie)
    _session.ensure_started()
    if _session.session is None:
        raise RuntimeError("only process 1 tells the cookie")
    if checked is not None and checked != _session.session.cookie:
        if len(_core.members()) > 1:
            raise RuntimeError("the cookie can only be set before there are workers")
        _session.session.set_cookie(checked)
    return _session.session.cookie


def check_same_host(pids: Any) -> bool:
    """Whether processes run on one host.

    Parameters:
        pids: their ids.

    Raises:
        ValueError: there is no such process.

    Distributed.jl: `check_same_host`.

    >>> import pydist as d
    >>> d.check_same_host([1])
    True
    """
    chosen = [_session.as_pid(pid) for pid in pids]
    _session.ensure_started()
    for pid in chosen:
        _core.check_pid(pid)
    return len({member[2] for member in _core.members() if member[0] in chosen}) <= 1


def shut_down() -> None:
    """Ends all workers at the end of this process: asked first, killed after 3 s or at a second Ctrl-C."""
    with _lock:
        left = list(_workers.values())
    for listener in list(_admitting):
        _core.close_listener(listener)
    try:
        removal = None
        if left:
            removal = rmprocs([worker.pid for worker in left], waitfor=0)
        if removal is not None:
            removal.wait(3.0)
    except (Exception, KeyboardInterrupt):
        for worker in left:
            worker.kill()
