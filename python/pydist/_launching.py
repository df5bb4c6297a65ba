"""Starting workers through a cluster manager, whatever it does."""

from __future__ import annotations

import math
import pickle
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from . import _core, _log, _output, _session
from ._errors import LaunchWorkerError
from ._tls import Choice
from .managers.base import ClusterManager, WorkerConfig
from .managers.local import LocalManager

HOOK_SECONDS = 10.0
"""So long a method of a manager may take where nobody has set a time for it."""
QUEUE_SECONDS = 2e6
"""What stands for no limit where the system needs a number: some weeks."""
CLEAN_UP_SECONDS = 2.0
"""So long it may take for a worker that did not start."""

_deadlines: dict[int, tuple[float, Choice, bool]] = {}


def deadline_of(pid: int) -> float:
    """When a worker that is being started has to be up, by the monotonic clock."""
    known = _deadlines.get(pid)
    return time.monotonic() + HOOK_SECONDS if known is None else known[0]


def encryption_of(pid: int) -> tuple[Choice, bool]:
    """What `addprocs` was told of a worker that is being started: `tls` and `allow_plaintext`."""
    return _deadlines.get(pid, (0.0, None, False))[1:]


class Worker:
    """A worker with its manager.

    Parameters:
        pid: its id.
        manager: who launched it.
        config: what the manager tells of it.
    """

    def __init__(self, pid: int, manager: ClusterManager, config: WorkerConfig) -> None:
        self.pid = pid
        self.manager = manager
        self.config = config
        self.joined = False
        self._released = threading.Event()

    @property
    def host(self) -> str | None:
        """The host it runs on, where that is known."""
        return self.config.host

    def output(self) -> str:
        """The end of what it printed."""
        if self.has_ended():
            _output.await_end(self.pid, 0.5)
        return _output.tail(self.pid)

    def drain(self, seconds: float) -> None:
        """Waits until what it printed has been passed on."""
        _output.await_end(self.pid, seconds)

    def has_ended(self) -> bool:
        """Whether it is gone, as far as its manager can see; its connection may still be there."""
        try:
            return bool(self.manager.has_ended(self.pid, self.config))
        except Exception:
            _log.logger().exception("the manager of worker %d cannot tell of its end", self.pid)
            return True

    def status(self) -> int | None:
        """The exit status of the process that stands for it here, if that has ended."""
        poll = getattr(self.config.process, "poll", None)
        return None if poll is None else poll()

    def exit_reason(self, seconds: float = math.inf) -> str:
        """How its process has ended, if its manager can tell within so many seconds; else an empty text."""
        tell = getattr(self.config.process, "exit_reason", None)
        return "" if tell is None else str(tell(seconds))

    def terminate(self) -> None:
        """Presses it to end."""
        self._ask_manager(self.manager.terminate, HOOK_SECONDS)

    def kill(self, seconds: float = HOOK_SECONDS) -> None:
        """Ends it, and its connection."""
        self._ask_manager(self.manager.kill, seconds)
        if not isinstance(self.manager, LocalManager):
            _core.drop_worker(self.pid, "it was told to end")

    def await_leave(self) -> None:
        """Waits a moment until nobody takes it for a member any more."""
        until = time.monotonic() + 1
        while any(member[0] == self.pid for member in _core.members()) and time.monotonic() < until:
            time.sleep(0.002)

    def manage(self, op: str, seconds: float = HOOK_SECONDS) -> Any:
        """Tells the manager what happens; what it raises is logged."""
        return self._ask_manager(self.manager.manage, seconds, op)

    def _ask_manager(self, method: Callable[..., Any], seconds: float, *args: Any) -> Any:
        try:
            return self.call(method, seconds, *args)
        except Exception as error:
            name = getattr(method, "__name__", method)
            _log.logger().warning("%s of the manager of worker %d: %r", name, self.pid, error)
            return None

    def call(self, method: Callable[..., Any], seconds: float, *args: Any) -> Any:
        """Calls a method of the manager, and waits no longer than so many seconds.

        Raises:
            TimeoutError: it has not come back.
        """
        if self.manager._trusted:
            return method(self.pid, self.config, *args)
        done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                done.put((method(self.pid, self.config, *args), None))
            except BaseException as error:
                done.put((None, error))

        threading.Thread(target=run, name="pydist-manager", daemon=True).start()
        try:
            value, error = done.get(timeout=max(seconds, 0.001))
        except queue.Empty:
            raise TimeoutError(f"it did not come back within {seconds:.3g} s") from None
        if error is not None:
            raise error
        return value

    def release(self, seconds: float = HOOK_SECONDS) -> None:
        """It has left: its manager lets go of it."""
        try:
            if self.joined:
                self.manage("deregister", seconds)
            self.manage("finalize", seconds)
            _output.forget(self.pid)
            if not isinstance(self.manager, LocalManager):
                from . import _transport

                _transport.close_taken()
        finally:
            self._released.set()

    def await_release(self) -> None:
        """Waits until another thread has let go of it."""
        self._released.wait(2 * HOOK_SECONDS)


def tail(worker: Worker) -> str:
    """The end of what a worker has printed so far."""
    return _output.tail(worker.pid)


class GivenUp(BaseException):
    """Nobody wants the workers any more that are being started."""


class Launch:
    """One run of `addprocs`.

    Parameters:
        manager: who launches.
        params: what it is told.
        workers: where the workers are entered as they come.
        unwanted: set by another thread where nobody wants them any more.
    """

    def __init__(
        self,
        manager: ClusterManager,
        params: dict[str, Any],
        workers: dict[int, Worker],
        unwanted: threading.Event | None = None,
    ) -> None:
        self._unwanted = unwanted
        self.manager = manager
        self.params = params
        self.until = time.monotonic() + params["timeout"]
        self.failures: list[Exception] = []
        self.error: BaseException | None = None
        self._workers = workers
        self._coming: list[Worker] = []
        self._ready: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        self._errors: dict[int, BaseException] = {}
        self._finished = threading.Event()
        self._lock = threading.Lock()
        self._cancelled = False

    def __call__(self, config: WorkerConfig) -> int:
        """Takes up a worker: what a manager calls as `launched`."""
        if not isinstance(config, WorkerConfig):
            raise TypeError(f"launched() takes a WorkerConfig, not {type(config).__name__}")
        shared = pickle.dumps(config) if self.manager._shares_config else b""
        pid = _core.take_ids(1)
        worker = Worker(pid, self.manager, config)
        with self._lock:
            cancelled = self._cancelled
            if not cancelled:
                self._coming.append(worker)
                self._workers[pid] = worker
        if cancelled:
            worker.kill()
            raise RuntimeError("addprocs() has been given up")
        until = min(self.until, time.monotonic() + QUEUE_SECONDS)
        _deadlines[pid] = (until, self.params["tls"], bool(self.params["allow_plaintext"]))
        _core.expect_worker(pid, self._connected(worker), shared)
        if self.manager._trusted:
            self._connect(worker)
        else:
            threading.Thread(target=self._connect, args=(worker,), name="pydist-connect", daemon=True).start()
        return pid

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for the workers any more."""
        return self._cancelled

    def failed(self, error: Exception) -> None:
        """Takes note of a worker that could not be launched."""
        self.failures.append(error)

    def queued(self) -> None:
        """The workers wait in a queue: no time runs."""
        self.until = math.inf

    def begun(self) -> None:
        """The workers start now: their time runs from here on."""
        self.until = time.monotonic() + self.params["timeout"]

    def _connected(self, worker: Worker) -> list[int]:
        """The workers that a custom topology connects this one to."""
        if self.params["topology"] != "custom":
            return []
        idents = worker.config.ident, list(worker.config.connect_idents or ())
        found = []
        for other in list(self._workers.values()):
            theirs = other.config.ident, list(other.config.connect_idents or ())
            if other is not worker and (
                (idents[0] is not None and idents[0] in theirs[1])
                or (theirs[0] is not None and theirs[0] in idents[1])
            ):
                found.append(other.pid)
        return found

    def _connect(self, worker: Worker) -> None:
        try:
            connection = self.manager.connect(worker.pid, worker.config)
            if connection is not None:
                from . import _transport

                _transport.attach_worker(worker.pid, connection, worker.config)
        except BaseException as error:
            self._errors[worker.pid] = error

    def _launch(self) -> None:
        try:
            self.manager.launch(dict(self.params), self)
        except BaseException as error:
            self.error = error
        self._finished.set()

    def run(self) -> list[int]:
        """Launches, and waits for the workers; returns the ids of those that are up."""
        thread = threading.Thread(target=self._launch, name="pydist-launch", daemon=True)
        thread.start()
        started: list[int] = []
        patience = HOOK_SECONDS if self.manager._keeps_time else 0.0
        try:
            while not self._finished.is_set() and time.monotonic() < self.until + patience:
                self._await_some(started)
                self._check_wanted()
                if not self._coming:
                    self._finished.wait(min(0.05, max(0.0, self.until + patience - time.monotonic())))
            if not self._finished.is_set():
                self.failures.append(
                    LaunchWorkerError(
                        f"{type(self.manager).__name__}.launch() did not return within "
                        f"{self.params['timeout']:g} s"
                    )
                )
                with self._lock:
                    self._cancelled = True
            while self._coming:
                self._await_some(started)
            if self.error is not None:
                raise self.error
        except BaseException:
            self._give_up(started)
            raise
        finally:
            self._cancelled = True
            for pid in [*started, *self._errors]:
                _deadlines.pop(pid, None)
        return sorted(started)

    def _check_wanted(self) -> None:
        if self._unwanted is not None and self._unwanted.is_set():
            raise GivenUp

    def _give_up(self, started: list[int]) -> None:
        with self._lock:
            self._cancelled = True
            left = [*self._coming, *(self._workers[pid] for pid in started if pid in self._workers)]
        for worker in left:
            _core.forget_worker(worker.pid)
            worker.kill(CLEAN_UP_SECONDS)
            worker.await_leave()
            self._workers.pop(worker.pid, None)
            _deadlines.pop(worker.pid, None)
            worker.release(CLEAN_UP_SECONDS)

    def _await_some(self, started: list[int]) -> None:
        """Waits for each worker that is on its way, until it is up or lost."""
        for worker in list(self._coming):
            try:
                while not self._is_up(worker):
                    pass
                self._register(worker)
                started.append(worker.pid)
            except LaunchWorkerError as error:
                self.failures.append(error)
            except Exception as error:
                self._lose(worker)
                if self.error is None:
                    self.error = error
            with self._lock:
                self._coming.remove(worker)

    def _register(self, worker: Worker) -> None:
        worker.joined = True
        left = min(max(self.until - time.monotonic(), 1.0), QUEUE_SECONDS)
        try:
            worker.call(worker.manager.manage, left, "register")
        except TimeoutError as error:
            raise self._lost(
                worker, f"manage(..., 'register') of worker {worker.pid}: {error}", None
            ) from error

    def _is_up(self, worker: Worker) -> bool:
        """Whether a worker is up, after a short wait.

        Raises:
            LaunchWorkerError: it has ended, or has not come up in time.
            Exception: what the manager raised.
            GivenUp: nobody wants it any more.
        """
        self._check_wanted()
        arrived = _core.worker_arrived(worker.pid, 0.02)
        if arrived == "":
            return True
        now = time.monotonic()
        status = worker.status()
        error = self._errors.pop(worker.pid, None)
        if isinstance(error, LaunchWorkerError):
            status = self._await_status(worker, 0.5)
            lost = self._lost(
                worker, error.args[0], status if status is not None else error.status, error.output
            )
            lost.host = error.host or lost.host
            raise lost from error
        if error is not None:
            raise error
        if status is not None:
            raise self._lost(worker, f"worker {worker.pid} ended before it was ready", status)
        if arrived is not None and now < self.until:
            # Its connection has broken: it may be about to end, and then says why.
            status = self._await_status(worker, 1.0)
            if status is None:
                raise self._lost(worker, f"worker {worker.pid} could not join: {arrived}", None)
            raise self._lost(worker, f"worker {worker.pid} ended before it was ready", status)
        if now >= self.until:
            seconds = self.params["timeout"]
            raise self._lost(worker, f"worker {worker.pid} did not come up within {seconds:g} s", None)
        return False

    @staticmethod
    def _await_status(worker: Worker, seconds: float) -> int | None:
        if worker.config.process is None:
            return None
        until = time.monotonic() + seconds
        while (status := worker.status()) is None and time.monotonic() < until:
            time.sleep(0.005)
        return status

    def _lose(self, worker: Worker) -> str:
        _deadlines.pop(worker.pid, None)
        worker.kill(CLEAN_UP_SECONDS)
        _core.forget_worker(worker.pid)
        worker.await_leave()
        self._workers.pop(worker.pid, None)
        output = worker.output()
        worker.release(CLEAN_UP_SECONDS)
        return output

    def _lost(self, worker: Worker, message: str, status: int | None, seen: str = "") -> LaunchWorkerError:
        output = self._lose(worker)
        return LaunchWorkerError(message, host=worker.host, status=status, output=seen + output)


def fail(failures: list[Exception], started: list[int], asked: int) -> None:
    """Raises the one error for workers that did not start, if there are any."""
    if not failures:
        return
    if len(failures) == 1 and asked == 1:
        raise failures[0]
    known = [f for f in failures if isinstance(f, LaunchWorkerError)]
    first = known[0] if known else LaunchWorkerError()
    raise LaunchWorkerError(
        f"{len(failures)} of {asked} workers did not start",
        failures=failures,
        started=started,
        host=first.host,
        status=first.status,
        output=first.output,
    )


def start(
    manager: ClusterManager,
    params: dict[str, Any],
    workers: dict[int, Worker],
    unwanted: threading.Event | None = None,
) -> Launch:
    """Makes the launch that `addprocs` runs."""
    assert _session.session is not None
    _core.set_topology(params["topology"], params["lazy"])
    return Launch(manager, params, workers, unwanted)
