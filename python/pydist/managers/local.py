"""Workers on this machine."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
import subprocess
import sys
from typing import Any, ClassVar

from .. import _cookies, _core, _output, _session, _tls
from .._errors import LaunchWorkerError
from . import _forks
from .base import ClusterManager, Launched, WorkerConfig

BLAS_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)

READ_SETTINGS = (
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
)
"""What a worker runs first: reads the cookie and its settings from two lines of standard input."""
_BOOTSTRAP = READ_SETTINGS + "from pydist._worker import main\nmain(cookie,config)\n"


class LocalManager(ClusterManager):
    """Starts workers on this machine; `addprocs(n)` uses it.

    Parameters:
        n: how many; None for the number of CPUs that this process may use.

    Raises:
        ValueError: a negative number.

    Distributed.jl: `LocalManager`.

    >>> import pydist as d
    >>> pids = d.addprocs(d.LocalManager(1))
    >>> d.remotecall_fetch(abs, pids[0], -3)
    3
    >>> d.rmprocs(pids)
    """

    _trusted: ClassVar[bool] = True
    _keeps_time: ClassVar[bool] = True
    _shares_config: ClassVar[bool] = False

    for_executor = False
    """Its workers belong to an executor, which alone uses them; what they print is passed on as it is."""

    def __init__(self, n: int | None = None) -> None:
        self.count = len(os.sched_getaffinity(0)) if n is None else n
        if self.count < 0:
            raise ValueError(f"the number of workers must not be negative: {n}")
        self._params: dict[str, Any] = {}
        self._prepared: tuple[object | None, dict[str, str]] | None = None

    def prepare(self, params: dict[str, Any]) -> None:
        """Starts what takes longest, so that it goes on while this process makes itself ready.

        `launch` follows, or `forgo`.
        """
        if not self.count:
            return
        environment = environment_of(params)

        def prepare() -> object | None:
            wanted = _forks.inherited(params, environment)
            if _forks.prepare(wanted, params, environment):
                _forks.ask_ahead(self.count)
            return wanted

        self._prepared = _output.launcher().run(prepare), environment

    def forgo(self) -> None:
        """Ends what `prepare` has started of workers that are not wanted after all."""
        self._prepared = None
        _output.launcher().run(_forks.forgo)

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Starts the processes; each is told what it needs to know once it has its id."""
        try:
            self._launch(params, launched)
        except BaseException:
            self.forgo()
            raise

    def _launch(self, params: dict[str, Any], launched: Launched) -> None:
        if params["dir"] is not None and not os.path.isdir(params["dir"]):
            raise ValueError(f"dir: there is no folder {params['dir']!r}")
        self._params = params
        launcher = _output.launcher()
        if self._prepared is None:
            environment = environment_of(params)
            wanted = launcher.run(lambda: _forks.inherited(params, environment))
        else:
            wanted, environment = self._prepared
            self._prepared = None
        for left in reversed(range(self.count)):
            try:
                process = launcher.run(functools.partial(_start, wanted, params, environment, ahead=left > 0))
            except OSError as error:
                host = _session.host()
                text = f"a worker could not be started: {error}{_advice(error)}"
                launched.failed(LaunchWorkerError(text, host=host))
                continue
            launched(WorkerConfig(process=process, host=_session.host(), ospid=process.pid))

    def connect(self, pid: int, config: WorkerConfig) -> None:
        """Tells the worker through its standard input what it needs to know; it dials process 1 then."""
        process: subprocess.Popen[bytes] | _forks.ForkedProcess = config.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        _core.set_worker_ospid(pid, process.pid)
        for pipe, target in ((process.stdout, _output.stdout), (process.stderr, _output.stderr)):
            try:
                fd = os.dup(pipe.fileno())
            except OSError as error:
                raise LaunchWorkerError(
                    f"worker {pid} could not be started: {error}{_advice(error)}", host=config.host
                ) from error
            pipe.close()
            _output.follow(pid, fd, target, prefixed=not self.for_executor)
        try:
            os.write(process.stdin.fileno(), self._first_lines(pid))
        except BrokenPipeError:
            # The process has ended already; who waits for it sees that.
            return

    def _first_lines(self, pid: int) -> bytes:
        session = _session.session
        assert session is not None
        params = self._params
        config = {
            "pid": pid,
            "host": session.host,
            "cluster": session.cluster.hex(),
            "head": session.address,
            "head_inst": session.inst.hex(),
            "address": _address(pid),
            "inst": os.urandom(16).hex(),
            "parent": os.getpid(),
            **import_paths(params),
            "timeout": params["timeout"],
            "topology": params["topology"],
            "lazy": params["lazy"],
            "tls": files.paths() if (files := _tls.used()) else None,
        }
        return session.cookie_text().encode() + b"\n" + json.dumps(config).encode() + b"\n"

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Lets go of what is kept for a worker once it has left."""
        if op != "finalize":
            return
        if config.process.stdin is not None:
            try:
                config.process.stdin.close()
            except OSError:
                pass
        try:
            os.unlink(_address(pid).removeprefix("unix:"))
        except OSError:
            pass

    def terminate(self, pid: int, config: WorkerConfig) -> None:
        """Sends SIGTERM."""
        config.process.send_signal(signal.SIGTERM)

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """Ends the process now and reaps it."""
        config.process.send_signal(signal.SIGKILL)
        try:
            config.process.wait(5)
        except subprocess.TimeoutExpired:
            return

    def has_ended(self, pid: int, config: WorkerConfig) -> bool:
        """Whether the process has ended; it is reaped then."""
        return config.process.poll() is not None


def environment_of(params: dict[str, Any]) -> dict[str, str]:
    """The environment of a worker: that of this process, and what `addprocs` was told."""
    env = dict(os.environ)
    env.pop(_cookies.VARIABLE, None)
    if not params["enable_threaded_blas"]:
        for name in BLAS_VARIABLES:
            env.setdefault(name, "1")
    env.update(params["env"])
    return env


def import_paths(params: dict[str, Any]) -> dict[str, list[str]]:
    """Where a worker finds modules: as this process does, unless it has another Python."""
    own = params["exename"] in (None, sys.executable)
    prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix)
    here = _import_path()
    asked = [p for p in params["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
    return {
        "sys_path": asked + here if own else [],
        "more_path": [] if own else [p for p in here if not p.startswith(prefixes)],
    }


def spawn(params: dict[str, Any], environment: dict[str, str], code: str) -> subprocess.Popen[bytes]:
    """Starts the Python of a worker with pipes for its streams, in a session of its own."""
    return subprocess.Popen(
        [params["exename"] or sys.executable, *params["exeflags"], "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=params["dir"],
        env=environment,
        start_new_session=True,
    )


def _start(
    wanted: object | None, params: dict[str, Any], environment: dict[str, str], *, ahead: bool
) -> subprocess.Popen[bytes] | _forks.ForkedProcess:
    forked = None if wanted is None else _forks.start(wanted, params, environment, ahead)
    if forked is not None:
        return forked
    return spawn(params, environment, _BOOTSTRAP)


def _advice(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return (
            "; this process has as many files and connections open as it may, and needs five for each "
            "worker: raise the limit (`ulimit -n`, resource.RLIMIT_NOFILE)"
        )
    if error.errno == errno.EAGAIN:
        return "; the system lets this user have no more processes and threads: raise the limit (`ulimit -u`)"
    return ""


def _address(pid: int) -> str:
    assert _session.session is not None
    return f"unix:{os.path.join(_session.session.folder, str(pid))}"


def _import_path() -> list[str]:
    """`sys.path` of this process, without the working directory where that is gone."""
    try:
        folder = os.getcwd()
    except FileNotFoundError:
        folder = ""
    return [path for path in (str(p) or folder for p in sys.path) if path]
