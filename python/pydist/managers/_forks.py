"""Local workers that are forked from a template process; `_template` is what runs there.

A template stands for what a new process would be like: it is used as long as all that a process inherits
is as it was when the template was started.
"""

from __future__ import annotations

import _socket
import array
import collections
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from .. import _config, _log, _output, _template

_BOOTSTRAP = (
    "import sys,__future__\n"
    "sys.path[:]=[p for p in sys.path if p]\n"
    "path=sys.path[:]\n"
    "sys.path.insert(0,sys.argv[1])\n"
    "import pydist\n"
    "sys.path[:]=path\n"
    "from pydist._template import serve\n"
    "serve(int(sys.argv[2]))\n"
)
_PARENT_FOLDER = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_INHERITED = (
    "Umask:",
    "Uid:",
    "Gid:",
    "Groups:",
    "SigIgn:",
    "SigBlk:",
    "Cap",
    "NoNewPrivs:",
    "Seccomp",
    "Cpus_",
)
_FILES = ("limits", "cgroup", "oom_score_adj")
WAIT_SECONDS = 5.0
"""So long a start waits for templates at most, since what workers print is not passed on meanwhile."""
FORK_SECONDS = 2.0
"""So long a template that is up may take for one worker."""
_KILL_SECONDS = 0.5


class ForkedProcess:
    """A worker's process that a template has made, with what is used of a `subprocess.Popen`.

    Parameters:
        pid: its id in the system; it is a child of this process.
        stdin: the pipe to its standard input.
        stdout: that from its standard output.
        stderr: that from its standard error.
    """

    def __init__(self, pid: int, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Its exit status if it has ended, minus the signal where one has ended it; it is reaped then."""
        with self._lock:
            if self.returncode is None:
                try:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:
                    # Someone else has reaped it.
                    self.returncode = 0
                else:
                    if pid == self.pid:
                        self.returncode = os.waitstatus_to_exitcode(status)
            return self.returncode

    def wait(self, timeout: float) -> int:
        """Waits for its end; returns the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() >= until:
                raise subprocess.TimeoutExpired(f"worker process {self.pid}", timeout)
            time.sleep(0.001)
        return status

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            with self._lock:
                if self.returncode is None:
                    os.kill(self.pid, number)

    def discard(self) -> None:
        """Ends it, which has not been told what it is to do."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
        self.send_signal(signal.SIGKILL)
        self.wait(_KILL_SECONDS)


class _Ignored:
    """What a template prints: a worker would tell the same again."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def feed(self, data: bytes) -> None:
        """Takes what was read."""

    def finish(self) -> None:
        """The template has closed its end."""


class _Template:
    """A template process, as seen from here; used on the thread that starts workers."""

    def __init__(self, wanted: object, dir: str | None, environment: Mapping[str, str]) -> None:
        self.wanted = wanted
        self.ready = False
        self.ended = threading.Event()
        self._asked: collections.deque[tuple[int, int, int]] = collections.deque()
        self._answers: collections.deque[bytes] = collections.deque()
        # Python makes its standard streams for what it finds at its start, and workers have pipes.
        read, write = os.pipe()
        try:
            self.connection, there = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        except BaseException:
            os.close(read)
            os.close(write)
            raise
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, _PARENT_FOLDER, str(there.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=write,
                stderr=write,
                cwd=dir,
                env=environment,
                start_new_session=True,
                pass_fds=(there.fileno(),),
            )
        except BaseException:
            self.connection.close()
            os.close(read)
            raise
        finally:
            there.close()
            os.close(write)
        _output.launcher().watch(_Ignored(read))
        self.fd = self.connection.fileno()
        _output.launcher().watch(self)

    def await_ready(self, until: float) -> bool:
        """Waits until it can be asked for workers; says whether it can."""
        self.ready = self.ready or self._receive(until) == _template.READY
        return self.ready

    def _receive(self, until: float) -> bytes:
        """The next message; nothing where it has ended, or lets one wait for too long, and is killed."""
        try:
            self.connection.settimeout(max(until - time.monotonic(), 0.001))
            try:
                return self.connection.recv(64)
            except TimeoutError:
                self.process.kill()
                # A worker that it has just told of is one all the same.
                self.connection.settimeout(_KILL_SECONDS)
                return self.connection.recv(64)
        except OSError:
            return b""

    def fork(self, until: float, ahead: bool) -> ForkedProcess | None:
        """Makes a worker; None where the template has ended.

        Parameters:
            until: when it has to be there, by the monotonic clock.
            ahead: whether to ask for another one, too, which is made while this one is seen to.

        Raises:
            OSError: the system has no process left, or no descriptor.
        """
        if not self._asked:
            self._ask(until)
        if ahead:
            self.ask_ahead(2)
        return self._made(until)

    def ask_ahead(self, count: int) -> None:
        """Has so many workers made which `fork` then gives, one after the other."""
        try:
            while len(self._asked) < count:
                self._ask(time.monotonic() + FORK_SECONDS)
        except OSError:
            # The system has no descriptor left: it is asked again when the worker is wanted.
            return

    def _ask(self, until: float) -> None:
        (stdin, to), (out, stdout), (err, stderr) = _pipes(_template.STREAMS)
        self._asked.append((to, out, err))
        theirs = [stdin, stdout, stderr]
        try:
            self.connection.settimeout(max(until - time.monotonic(), 0.001))
            self.connection.sendmsg(
                [_template.FORK], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", theirs))]
            )
        except OSError:
            # It has ended: there is no answer.
            pass
        finally:
            for fd in theirs:
                os.close(fd)

    def _made(self, until: float) -> ForkedProcess | None:
        """The worker that was asked for first."""
        to, out, err = self._asked.popleft()
        answer = self._answers.popleft() if self._answers else self._receive(until)
        pid = error = 0
        if len(answer) == _template.ANSWER.size:
            pid, error = _template.ANSWER.unpack(answer)
        if pid:
            return ForkedProcess(pid, open(to, "wb", 0), open(out, "rb", 0), open(err, "rb", 0))
        for fd in (to, out, err):
            os.close(fd)
        if error in (errno.EAGAIN, errno.ENOMEM):
            raise OSError(error, os.strerror(error))
        return None

    def forgo(self) -> None:
        """Ends the workers that were asked for and are not wanted."""
        until = time.monotonic() + FORK_SECONDS
        while self._asked:
            try:
                process = self._made(until)
            except OSError:
                continue
            if process is not None:
                process.discard()

    def close(self) -> None:
        """Lets it end."""
        try:
            self.connection.shutdown(_socket.SHUT_WR)
        except OSError:
            return

    def feed(self, data: bytes) -> None:
        """A message that has come while nobody waited."""
        if data == _template.READY:
            self.ready = True
        else:
            self._answers.append(data)

    def finish(self) -> None:
        """It has closed its end: it is about to end."""
        self.process.wait()
        self.connection.detach()
        self.ended.set()


def _pipes(count: int) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    try:
        for _ in range(count):
            made.append(os.pipe())
    except OSError:
        for fd in (fd for ends in made for fd in ends):
            os.close(fd)
        raise
    return made


_current: _Template | None = None
_refused: object = None
"""What a process inherits where no template has come up, so that none is tried again."""


def inherited(params: Mapping[str, Any], environment: Mapping[str, str]) -> object | None:
    """What a process inherits that is started on this thread now; None where no template can stand for it."""
    own = params["exename"] in (None, sys.executable) and not params["exeflags"]
    if not own or not sys.executable or not _config.uses_template():
        return None
    try:
        folder = os.stat(params["dir"] or ".")
        with open("/proc/thread-self/status") as status:
            lines = [line for line in status if line.startswith(_INHERITED)]
        files = []
        for name in _FILES:
            with open(f"/proc/thread-self/{name}") as file:
                files.append(file.read())
        nice = os.getpriority(os.PRIO_PROCESS, 0)
    except OSError:
        return None
    return dict(environment), params["dir"], folder.st_dev, folder.st_ino, lines, files, nice


def prepare(wanted: object | None, params: Mapping[str, Any], environment: Mapping[str, str]) -> bool:
    """Starts a template unless there is one that fits; says whether there is one then, ready or not.

    The parameters are those of `start`.
    """
    global _current
    if wanted is None or wanted == _refused:
        return False
    if _current is not None and (_current.wanted != wanted or _current.ended.is_set()):
        _drop()
    if _current is None:
        try:
            _current = _Template(wanted, params["dir"], environment)
        except OSError:
            return False
    return True


def ask_ahead(count: int) -> None:
    """Has the first of so many workers made that `start` is about to be called for; `forgo` takes it back."""
    if _current is not None:
        _current.ask_ahead(min(count, 2))


def _drop() -> None:
    global _current
    if _current is not None:
        _current.forgo()
        _current.close()
    _current = None


def forgo() -> None:
    """Ends workers that were made ahead, and that nobody wants."""
    if _current is not None:
        _current.forgo()


def start(
    wanted: object, params: Mapping[str, Any], environment: Mapping[str, str], ahead: bool = False
) -> ForkedProcess | None:
    """Forks a worker from the template, which is started first where there is none that fits.

    Parameters:
        wanted: what `inherited` told, on this same thread.
        params: those of `addprocs`.
        environment: of the worker.
        ahead: whether there will be another call like this one, or one of `forgo`.

    Returns:
        The process; None where no template can be had, and a new interpreter has to do.

    Raises:
        OSError: the system has no process left, or no descriptor.
    """
    global _refused
    # A template that hangs leaves enough time for what is done without one.
    until = time.monotonic() + min(params["timeout"] / 2, WAIT_SECONDS)
    for _ in range(2):
        if not prepare(wanted, params, environment):
            return None
        assert _current is not None
        process = None
        if _current.await_ready(until):
            process = _current.fork(min(until, time.monotonic() + FORK_SECONDS), ahead)
        if process is not None:
            return process
        # It has ended because nobody wanted anything of it, or was killed: another one may do.
        _drop()
    _refused = wanted
    _log.logger().info("no template process for workers comes up: each starts an interpreter")
    return None


def end() -> None:
    """Ends the template at the end of this process."""
    if _current is not None and not _current.ended.is_set():
        _current.process.kill()
        _current.process.wait()
        _current.connection.detach()
