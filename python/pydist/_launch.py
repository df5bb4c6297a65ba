"""Starting and ending the worker processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import _config, _core, _output, _session
from ._errors import LaunchWorkerError

BLAS_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

_BOOTSTRAP = (
    "import os,sys\n"
    "sys.path[:]=[p for p in sys.path if p]\n"
    "b=b''\n"
    "while b.count(b'\\n')<2:\n"
    " c=os.read(0,65536)\n"
    " if not c: os._exit(1)\n"
    " b+=c\n"
    "cookie,config=b.split(b'\\n')[:2]\n"
    "import json\n"
    "config=json.loads(config)\n"
    "sys.path[:]=config['sys_path'] or [p for p in sys.path if p]+config['more_path']\n"
    "from pydist._worker import main\n"
    "main(cookie,config)\n"
)


@dataclass
class Params:
    """How workers of this machine are started."""

    topology: str = "all_to_all"
    lazy: bool = True
    dir: str | None = None
    exename: str | None = None
    exeflags: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    enable_threaded_blas: bool = False
    timeout: float | None = None


class LocalWorker:
    """A worker process that this process has started."""

    def __init__(self, pid: int, params: Params) -> None:
        session = _session.session
        assert session is not None
        self.pid = pid
        self.host = session.host
        self.inst = os.urandom(16)
        self.address = f"unix:{os.path.join(session.folder, str(pid))}"
        self._params = params
        self.process: subprocess.Popen[bytes] | None = None
        self._streams: list[_output.Stream] = []

    def start(self) -> None:
        """Starts the process, and tells it through its standard input what it needs to know.

        Raises:
            OSError: the program could not be started.
        """
        _core.expect_worker(self.pid, self.address, self.inst, self.host)
        _output.launcher().run(self._start)
        assert self.process is not None
        _core.set_worker_ospid(self.pid, self.process.pid)

    def _start(self) -> None:
        params = self._params
        program = params.exename or sys.executable
        self.process = subprocess.Popen(
            [program, *params.exeflags, "-c", _BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=params.dir,
            env=self._environment(),
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        launcher = _output.launcher()
        for pipe, target in ((self.process.stdout, _output.stdout), (self.process.stderr, _output.stderr)):
            stream = _output.Stream(self.pid, os.dup(pipe.fileno()), target)
            pipe.close()
            self._streams.append(stream)
            launcher.watch(stream)
        try:
            os.write(self.process.stdin.fileno(), self._first_lines())
        except BrokenPipeError:
            # The process has ended already; who waits for it sees that.
            return

    def _environment(self) -> dict[str, str]:
        env = dict(os.environ)
        if not self._params.enable_threaded_blas:
            for name in BLAS_VARIABLES:
                env.setdefault(name, "1")
        env.update(self._params.env)
        return env

    def _first_lines(self) -> bytes:
        session = _session.session
        assert session is not None
        own = self._params.exename in (None, sys.executable)
        prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix)
        here = _import_path()
        asked = [p for p in self._params.env.get("PYTHONPATH", "").split(os.pathsep) if p]
        config = {
            "pid": self.pid,
            "host": self.host,
            "cluster": session.cluster.hex(),
            "head": session.address,
            "head_inst": session.inst.hex(),
            "address": self.address,
            "inst": self.inst.hex(),
            "parent": os.getpid(),
            "sys_path": asked + here if own else [],
            "more_path": [] if own else [p for p in here if not p.startswith(prefixes)],
            "timeout": self.timeout(),
            "topology": self._topology(),
        }
        return session.cookie.hex().encode() + b"\n" + json.dumps(config).encode() + b"\n"

    def _topology(self) -> str:
        if self._params.topology != "all_to_all":
            return "star"
        return "lazy" if self._params.lazy else "eager"

    def timeout(self) -> float:
        """Seconds that the worker has for its start."""
        return _config.worker_timeout() if self._params.timeout is None else float(self._params.timeout)

    def await_start(self, until: float) -> None:
        """Waits until the worker answers calls.

        Raises:
            LaunchWorkerError: it has ended, or has not come up by `until`.
        """
        assert self.process is not None
        while True:
            arrived = _core.worker_arrived(self.pid, 0.02)
            if arrived == "":
                return
            status = self.process.poll()
            if status is not None:
                raise self.failed(f"worker {self.pid} ended before it was ready", status)
            if arrived is not None and time.monotonic() < until:
                # Its connection has broken: it is about to end, and then says why.
                try:
                    status = self.process.wait(1)
                except subprocess.TimeoutExpired:
                    raise self.failed(f"worker {self.pid} could not join: {arrived}", None) from None
                raise self.failed(f"worker {self.pid} ended before it was ready", status)
            if time.monotonic() >= until:
                raise self.failed(f"worker {self.pid} did not come up within {self.timeout():g} s", None)

    def failed(self, message: str, status: int | None) -> LaunchWorkerError:
        """The error of a worker that did not start, after its end."""
        self.kill()
        _core.forget_worker(self.pid)
        return LaunchWorkerError(message, host=self.host, status=status, output=self.output())

    def output(self) -> str:
        """The end of what the worker printed, on both streams."""
        for stream in self._streams:
            if self.process is None or self.process.poll() is not None:
                stream.ended.wait(0.5)
        return b"".join(bytes(stream.tail) for stream in reversed(self._streams)).decode("utf-8", "replace")

    def signal(self, number: int) -> None:
        """Sends a signal, unless the process has ended."""
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """Ends the process now and reaps it."""
        if self.process is None:
            return
        self.signal(signal.SIGKILL)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            return
        self.release()

    def ended(self) -> bool:
        """Whether the process has ended; it is reaped then."""
        return self.process is None or self.process.poll() is not None

    def release(self) -> None:
        """Frees what this process kept for one that has ended."""
        if self.process is not None and self.process.stdin is not None:
            try:
                self.process.stdin.close()
            except OSError:
                pass
        try:
            os.unlink(self.address.removeprefix("unix:"))
        except OSError:
            pass

    def drain(self, seconds: float) -> None:
        """Waits until what it printed has been passed on."""
        for stream in self._streams:
            stream.ended.wait(seconds)


def _import_path() -> list[str]:
    """`sys.path` of this process, without the working directory where that is gone."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = ""
    return [path for path in (str(p) or folder for p in sys.path) if path]


def launch_error(error: OSError, worker: LocalWorker) -> LaunchWorkerError:
    """The error of a worker whose program could not be started."""
    _core.forget_worker(worker.pid)
    return LaunchWorkerError(f"worker {worker.pid} could not be started: {error}", host=worker.host)


def check_params(params: dict[str, Any]) -> Params:
    """Turns the keywords of `addprocs` into parameters.

    Raises:
        TypeError: an unknown keyword, or one of the wrong type.
        ValueError: a value that makes no sense.
    """
    known = Params.__dataclass_fields__
    for name in params:
        if name not in known:
            raise TypeError(
                f"addprocs() got an unexpected keyword argument {name!r}; it takes {', '.join(sorted(known))}"
            )
    made = Params(**{name: value for name, value in params.items() if value is not None or name == "timeout"})
    if made.topology not in ("all_to_all", "master_worker", "custom"):
        raise ValueError(
            f"unknown topology {made.topology!r}; it is 'all_to_all', 'master_worker' or 'custom'"
        )
    if isinstance(made.exeflags, str):
        made.exeflags = made.exeflags.split()
    made.exeflags = [str(flag) for flag in made.exeflags]
    if made.dir is not None:
        made.dir = os.fspath(made.dir)
        if not os.path.isdir(made.dir):
            raise ValueError(f"dir: there is no folder {made.dir!r}")
    if made.exename is not None:
        made.exename = os.fspath(made.exename)
    if not isinstance(made.env, Mapping):
        raise TypeError(f"env must be a mapping, not {type(made.env).__name__}")
    made.env = {str(name): str(value) for name, value in made.env.items()}
    if made.timeout is not None and not made.timeout > 0:
        raise ValueError(f"timeout must be a positive number of seconds, not {made.timeout!r}")
    return made
