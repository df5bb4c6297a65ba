"""Workers that another framework starts: what runs there, in one of its processes, and what runs here."""

from __future__ import annotations

import importlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from types import ModuleType
from typing import Any, ClassVar

from .. import _core, _launching, _network, _output, _session, _tls
from .._errors import LaunchWorkerError
from .base import ClusterManager, Launched, WorkerConfig
from .local import READ_SETTINGS, environment_of, spawn

LOST = -int(signal.SIGKILL)
"""The status of a worker whose host has gone with it."""

_BOOTSTRAP = READ_SETTINGS + "from pydist._assigned import main\nmain(cookie,config)\n"

Parts = list[tuple[int, bytes]]
"""What a worker has printed: to which descriptor, and what."""


def need(module: str, extra: str) -> ModuleType:
    """Imports what a manager is for.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module:
            raise
        raise ImportError(
            f"{module} is not installed, which this manager needs: pip install 'pydist[{extra}]'", name=module
        ) from error


class Secret:
    """The cookie on its way to a worker: frameworks print the arguments of their calls."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "<cookie>"


class Host:
    """Holds the process of one worker, in the process where the framework has placed it.

    A thread of its own starts it, as a worker ends with the thread that started it.
    """

    def __init__(self) -> None:
        self._parts: queue.SimpleQueue[Parts] = queue.SimpleQueue()
        self._started: ThreadFuture[subprocess.Popen[bytes]] = ThreadFuture()
        self._status: ThreadFuture[int] = ThreadFuture()

    def start(self, cookie: Secret, settings: dict[str, Any]) -> tuple[int, str]:
        """Starts the worker; returns its process id and the name of the machine.

        Raises:
            OSError: it cannot be started.
        """
        threading.Thread(
            target=self._run, args=(cookie, settings), name="pydist-launcher", daemon=True
        ).start()
        return self._started.result().pid, _session.host()

    def read(self, timeout: float | None = None) -> Parts | None:
        """What the worker has printed since; empty once it has ended, None after the timeout."""
        try:
            return self._parts.get(timeout=timeout)
        except queue.Empty:
            return None

    def wait(self) -> int:
        """Waits for the worker's end; returns its exit status."""
        return self._status.result()

    def signal(self, number: int) -> None:
        """Sends a signal to the worker, if it is still there."""
        if self._started.done() and not self._status.done():
            self._started.result().send_signal(number)

    def _run(self, cookie: Secret, settings: dict[str, Any]) -> None:
        try:
            process = spawn(settings, environment_of(settings), _BOOTSTRAP)
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(process)
        assert process.stdin is not None
        try:
            os.write(process.stdin.fileno(), _first_lines(cookie, settings))
        except BrokenPipeError:
            pass
        self._forward(process)
        status = process.wait()
        process.stdin.close()
        self._status.set_result(status)
        self._parts.put([])

    def _forward(self, process: subprocess.Popen[bytes]) -> None:
        """Passes on what the worker prints until it ends, though others may keep its pipes open."""
        assert process.stdout is not None
        assert process.stderr is not None
        ended = os.pidfd_open(process.pid)
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ, 0)
            for number, stream in ((1, process.stdout), (2, process.stderr)):
                selector.register(stream, selectors.EVENT_READ, number)
            rounds = 0
            while rounds < _output.DRAIN_ROUNDS:
                ready = [(key.data, key.fileobj) for key, _ in selector.select()]
                rounds += any(number == 0 for number, _ in ready)
                read = [(number, pipe, _read(pipe)) for number, pipe in ready if number]
                if parts := [(number, data) for number, _, data in read if data]:
                    self._parts.put(parts)
                elif rounds:
                    break
                for _, pipe, data in read:
                    if not data:
                        selector.unregister(pipe)
        os.close(ended)
        process.stdout.close()
        process.stderr.close()


def _read(pipe: Any) -> bytes:
    try:
        return os.read(pipe.fileno(), 1 << 16)
    except OSError:
        return b""


def _first_lines(cookie: Secret, settings: dict[str, Any]) -> bytes:
    own = settings["exename"] in (None, sys.executable)
    asked = [path for path in settings["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    here = [path for path in sys.path if path] if own else []
    others = [path for path in settings["path"] if path not in here and os.path.exists(path)]
    config = {
        **settings["join"],
        "parent": os.getpid(),
        "sys_path": [*asked, *here, *others] if own else [],
        "more_path": others,
    }
    return cookie.text.encode() + b"\n" + json.dumps(config).encode() + b"\n"


class Placed:
    """A worker as process 1 sees it; it stands for the worker's process.

    A subclass starts it where the framework puts it, and asks the framework what has become of it.
    """

    @abstractmethod
    def start(self, pid: int, cookie: Secret, settings: dict[str, Any], until: float) -> tuple[int, str]:
        """Has the framework start it until a time; returns its process id and its machine's name.

        Raises:
            LaunchWorkerError: it did not.
        """

    @abstractmethod
    def read(self) -> Parts:
        """What it has printed since, once there is something; empty at its end."""

    @abstractmethod
    def poll(self) -> int | None:
        """Its exit status once it has ended."""

    @abstractmethod
    def signal(self, number: int) -> None:
        """Sends it a signal."""

    @abstractmethod
    def release(self) -> None:
        """Lets go of what the framework keeps for it."""


def _follow(pid: int, read: Callable[[], Parts]) -> None:
    """Passes on what a worker prints."""
    pipes = {}
    for number, target in ((1, _output.stdout), (2, _output.stderr)):
        ours, pipes[number] = os.pipe()
        _output.follow(pid, ours, target)

    def copy() -> None:
        try:
            while parts := read():
                for number, data in parts:
                    while data:
                        data = data[os.write(pipes[number], data) :]
        finally:
            for fd in pipes.values():
                os.close(fd)

    threading.Thread(target=copy, name="pydist-output", daemon=True).start()


class HostedManager(ClusterManager):
    """Has another framework start workers, which dial in under the ids that they were given."""

    _shares_config: ClassVar[bool] = False

    def __init__(self) -> None:
        self._params: dict[str, Any] = {}
        self._tag = b""
        self._listener = 0
        self._addresses: list[str] = []
        self._coming = 0
        self._lock = threading.Lock()

    def default_params(self) -> dict[str, Any]:
        """The keywords of every manager, and `bind_addr`: where process 1 listens for these workers."""
        return {**super().default_params(), "bind_addr": None}

    @abstractmethod
    def _places(self) -> list[Placed]:
        """The workers to start.

        Raises:
            Exception: the framework cannot be used.
        """

    @abstractmethod
    def _is_here(self) -> bool:
        """Whether all machines of the framework are this one."""

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Has the workers started."""
        places = self._places()
        if not places:
            return
        self._params = params
        self._coming = len(places)
        self._open(params)
        for number, place in enumerate(places):
            try:
                launched(WorkerConfig(process=place))
            except BaseException:
                self._arrived(len(places) - number)
                raise

    def _open(self, params: dict[str, Any]) -> None:
        host = params["bind_addr"]
        if host is None:
            own = [] if self._is_here() else _network.own_addresses(0)
            host = _network.split_any(own[0])[0] if own else "127.0.0.1"
        ip = _network.split_any(_network.resolve(host, 0)[0])[0]
        scheme = _tls.scheme(ip, params["tls"], params["allow_plaintext"])
        self._tag = os.urandom(16)
        bound, self._listener = _core.bind_listener(f"{scheme}:{_network.join(ip, 0)}", self._tag, False)
        ip, port = _network.split(bound.removeprefix(f"{scheme}:"))
        on_all = ip in ("0.0.0.0", "::")
        self._addresses = _network.own_addresses(port) if on_all else [_network.join(ip, port)]
        _core.open_listener(self._listener)

    def _settings(self, pid: int, until: float) -> dict[str, Any]:
        session = _session.session
        assert session is not None
        params = self._params
        prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix)
        join = {
            "pid": pid,
            "cluster": session.cluster.hex(),
            "heads": self._addresses,
            "head_inst": self._tag.hex(),
            "timeout": max(1.0, until - time.monotonic()),
            "topology": params["topology"],
            "lazy": params["lazy"],
            "tls": _tls.tell(params["tls"]),
            "allow_plaintext": params["allow_plaintext"],
        }
        names = ("exename", "exeflags", "dir", "env", "enable_threaded_blas")
        here = [os.path.abspath(path) for path in sys.path if not path.startswith(prefixes)]
        return {**{name: params[name] for name in names}, "path": here, "join": join}

    def connect(self, pid: int, config: WorkerConfig) -> None:
        """Has the worker started, which dials process 1 then."""
        assert _session.session is not None
        until = _launching.deadline_of(pid)
        until -= min(1.0, (until - time.monotonic()) / 10)
        cookie = Secret(_session.session.cookie_text())
        placed: Placed = config.process
        config.ospid, config.host = placed.start(pid, cookie, self._settings(pid, until), until)
        _follow(pid, placed.read)

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Lets go of what is kept for a worker once it has left."""
        if op == "register" or (op == "finalize" and config.userdata != "register"):
            config.userdata = op
            self._arrived()
        if op == "finalize":
            config.process.release()

    def _arrived(self, count: int = 1) -> None:
        """Some have come, or will not: after the last, nobody dials in any more."""
        with self._lock:
            self._coming -= count
            last = self._coming == 0
        if last:
            _core.close_listener(self._listener)

    def terminate(self, pid: int, config: WorkerConfig) -> None:
        """Sends SIGTERM."""
        config.process.signal(signal.SIGTERM)

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """Sends SIGKILL."""
        config.process.signal(signal.SIGKILL)

    def has_ended(self, pid: int, config: WorkerConfig) -> bool:
        """Whether the worker's process has ended, as far as the framework can tell."""
        return config.process.poll() is not None


def not_placed(framework: str, seconds: float, hint: str) -> LaunchWorkerError:
    """The error for a worker that the framework has not started in time."""
    return LaunchWorkerError(f"{framework} has not started the worker within {seconds:.3g} s: {hint}")
