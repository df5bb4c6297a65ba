"""What the tests on real processes share. Workers import it too: importing it starts nothing."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

import tally

TESTS = Path(__file__).parent
TOKEN = "PYDIST_TEST_TOKEN"
SEGMENT = "/memfd:pydist "
TCP_LISTEN = psutil.CONN_LISTEN


def wait_until(condition: Callable[[], Any], timeout: float = 10, what: str = "") -> Any:
    """Return the condition's value once it is true; fail when it is not by the deadline."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or condition}")
        time.sleep(0.005)
    return value


def sends_nothing(attempt: Callable[[], Any]) -> None:
    """Fail where no attempt passes without a message; notices about earlier references may come between."""
    import pydist

    def quiet() -> bool:
        before = pydist.stats()["messages_sent"]
        attempt()
        return pydist.stats()["messages_sent"] == before

    wait_until(quiet, what="an attempt that sends nothing")


# --- functions for workers ----------------------------------------------------------------------------------


def touch(path: str | os.PathLike[str]) -> None:
    Path(path).touch()


async def nothing_async() -> None:
    return None


def is_coroutine_function(f: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(f)


NUMBER = 0


def by_value() -> int:
    """Return a global: that of the caller's process where this module is sent by value."""
    return NUMBER


class Unloadable:
    """A callable that a process without a certain module cannot load."""

    def __call__(self) -> None:
        """Do nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return imported_function, ("no_such_module_of_pydist",)


def imported_function(module: str) -> Any:
    return importlib.import_module(module).f


def hold_gil(seconds: float, started: str | None = None) -> str:
    """Keep the interpreter lock in one C call; touch the file `started` just before."""
    usleep = ctypes.PyDLL(None).usleep
    if started is not None:
        touch(started)
    usleep(int(seconds * 1e6))
    return "released"


def nap(seconds: float, started: str | None = None) -> float:
    """Sleep in short steps, between which Python may raise what another thread sent."""
    if started is not None:
        touch(started)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return seconds


def stop(ospid: int) -> None:
    """Stop a process with SIGSTOP; return once every thread of it stands."""

    def stands() -> bool:
        stats = [path.read_text() for path in Path(f"/proc/{ospid}/task").glob("*/stat")]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    os.kill(ospid, signal.SIGSTOP)
    wait_until(stands)


def ignore_sigterm() -> None:
    """Ignore SIGTERM, from any thread."""
    ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))


def segfault() -> None:
    ctypes.string_at(8)


def kill_self(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


# --- processes ----------------------------------------------------------------------------------------------


def alive(ospid: int) -> bool:
    """Say whether a process runs; one that has ended and is not reaped does not."""
    try:
        return psutil.Process(ospid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def exists(ospid: int) -> bool:
    """Say whether a process is there, be it only to be reaped."""
    return Path(f"/proc/{ospid}").exists()


def holders(token: str) -> list[int]:
    """Return the processes that run with this token in their environment."""
    wanted = f"{TOKEN}={token}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has just ended, or belongs to someone else
            continue
    return [pid for pid in found if alive(pid)]


def unix_listeners(ospid: int) -> list[str]:
    """Return the addresses of the Unix sockets on which a process listens; abstract ones begin with `@`."""
    inodes = set()
    for entry in Path(f"/proc/{ospid}/fd").iterdir():
        try:
            inodes.add(os.readlink(entry))
        except OSError:
            continue
    listening = 0x10000  # __SO_ACCEPTCON
    found = []
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[3], 16) & listening and f"socket:[{fields[6]}]" in inodes:
            found.append(fields[7] if len(fields) > 7 else "")
    return found


def tcp_listeners(ospid: int) -> list[tuple[str, int]]:
    """Return the addresses on which a process listens for TCP."""
    connections = psutil.Process(ospid).net_connections("tcp")
    return [tuple(c.laddr) for c in connections if c.status == TCP_LISTEN]


def segments(ospid: int | str = "self") -> int:
    """Count the shared-memory segments that a process has open or mapped."""
    found = set()
    for entry in Path(f"/proc/{ospid}/fd").iterdir():
        try:
            if os.readlink(entry).startswith(SEGMENT):
                found.add(entry.stat().st_ino)
        except OSError:  # it has just been closed
            continue
    for line in Path(f"/proc/{ospid}/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) > 5 and fields[5].startswith(SEGMENT):
            found.add(int(fields[4]))
    return len(found)


def rss(ospid: int | None = None) -> int:
    return psutil.Process(ospid).memory_info().rss


def trim() -> None:
    """Have the C library give back what it keeps: how much that is depends on which threads have run."""
    ctypes.CDLL(None).malloc_trim(0)


def threads_of(ospid: int | None = None) -> int:
    return psutil.Process(ospid).num_threads()


# --- scripts ------------------------------------------------------------------------------------------------


class Script:
    """A user's script that runs in a process of its own, with all the processes that it starts.

    Its output goes to files: a worker left behind must not keep a reader waiting.
    """

    def __init__(
        self,
        text: str,
        *,
        how: str = "file",
        cwd: str | os.PathLike[str] | None = None,
        arguments: Sequence[str] = (),
        flags: Sequence[str] = (),
        env: dict[str, str] | None = None,
        stdout: int | None = None,
    ) -> None:
        self.token = uuid.uuid4().hex
        self._folder = tempfile.TemporaryDirectory(prefix="pydist-test-")
        folder = Path(self._folder.name)
        self.cwd = Path(cwd) if cwd is not None else folder
        text = textwrap.dedent(text)
        if how == "file":
            path = self.cwd / "script.py"
            path.write_text(text)
            command = [str(path)]
        elif how == "-c":
            command = ["-c", text]
        else:
            command = ["-"] if how == "-" else []
        self._stdin = folder / "stdin"
        self._stdin.write_text(text if how in ("-", "stdin") else "")
        self._out, self._err = folder / "stdout", folder / "stderr"
        environment = {**os.environ, TOKEN: self.token, "PYTHONPATH": str(TESTS), **(env or {})}
        with self._stdin.open() as stdin, self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *flags, *command, *arguments],
                stdin=stdin,
                stdout=out if stdout is None else stdout,
                stderr=err,
                cwd=self.cwd,
                env=environment,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            error.add_note(f"the script printed:\n{self.out}\nand on stderr:\n{self.err}")
        with tally.tidying():
            for pid in {self.pid, *holders(self.token)}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.process.wait(10)
        self._folder.cleanup()

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Wait until the script has printed a text."""
        wait_until(
            lambda: text in self.out or self.process.poll() is not None, timeout, f"{text!r} in {self.out!r}"
        )
        assert text in self.out, f"the script ended without {text!r}"

    def survivors(self) -> list[int]:
        """Return the processes that the script started and that still run."""
        return [pid for pid in holders(self.token) if pid != self.pid]

    def wait_gone(self, timeout: float) -> None:
        """Wait until no process that the script started is left."""
        wait_until(lambda: not self.survivors(), timeout, "the end of the script's processes")

    def finish(self, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Wait for the script's end."""
        code = self.process.wait(timeout)
        return subprocess.CompletedProcess(self.process.args, code, self.out, self.err)


def run_script(text: str, *, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a user's script to its end, and see that no process of it is left five seconds later."""
    with Script(text, **options) as script:
        done = script.finish(timeout)
        script.wait_gone(5)
        return done


def executable(folder: Path, shell: str) -> str:
    """Write a shell script that can stand in for Python, and return its path."""
    path = folder / f"python-{uuid.uuid4().hex[:8]}"
    path.write_text(f'#!/bin/sh\nPYTHON="{sys.executable}"\n{textwrap.dedent(shell)}\n')
    path.chmod(0o755)
    return str(path)
