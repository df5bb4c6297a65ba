"""Workers for the tests, and the check that nothing of them is left."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

import support
import tally

WITHOUT_PROCESSES = {"unit", "examples", "typing", "cli", "docs", "notebook"}
USUAL_SIGNALS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGQUIT: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
WARM_THREADS = 17  # the executors that stay warm between calls (IDLE_MAX of the core), and the one of `_ends`


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--milestone", action="store_true", help="the full figures of load tests, which take many minutes"
    )
    parser.addoption("--chaos-seconds", type=float, help="how long the chaos soak goes on")
    parser.addoption(
        "--chaos-seed", type=int, help="the seed of its faults; without it they differ each time"
    )


def pytest_configure() -> None:
    # What a shell starts in the background ignores the first two, and under nohup the last; children too.
    for number, usual in USUAL_SIGNALS.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    # Unbuffered, Python's print writes a line in parts, and what workers print may come between them.
    os.environ.pop("PYTHONUNBUFFERED", None)


@pytest.fixture
def milestone(request: pytest.FixtureRequest) -> bool:
    """Say whether load tests are to run with their full figures."""
    return bool(request.config.getoption("--milestone"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("faults and what came of them")
    for line in tally.lines():
        terminalreporter.write_line(line)


class Held:
    """What this process holds of the system, and the core of the cluster."""

    def __init__(self, d: ModuleType) -> None:
        me = psutil.Process()
        self.children = {child.pid for child in me.children(recursive=True)}
        self.fds = me.num_fds()
        self.threads = me.num_threads()
        self.segments = support.segments()
        self.sockets = {
            str(file)
            for address in support.unix_listeners(os.getpid())
            if address.startswith("/")
            for file in Path(address).parent.iterdir()
            if file.is_socket()  # the file with the cookie stays until the end of the process
        }
        stats = d.stats()
        names = (
            "refs_owned",
            "refs_held",
            "calls_outstanding",
            "calls_running",
            "queued_bytes",
            "connections",
        )
        self.core = {name: stats[name] for name in names}

    def beyond(self, base: Held) -> dict[str, tuple[int, str]]:
        """Count what is held beyond an earlier state, by its kind in the tally, and describe it."""
        children = sorted(self.children - base.children)
        sockets = sorted(self.sockets - base.sockets)
        core = {name: n - base.core[name] for name, n in self.core.items() if n > base.core[name]}
        found = {
            "processes": (len(children), f"child processes {[described(pid) for pid in children]}"),
            "threads": (self.threads - base.threads - WARM_THREADS, ""),
            "descriptors": (self.fds - base.fds, ""),
            "references": (sum(core.values()), ", ".join(f"{name} +{n}" for name, n in core.items())),
            "shared-memory segments": (self.segments - base.segments, ""),
            "sockets": (len(sockets), f"sockets {sockets}"),
        }
        return {kind: (n, text or f"{n} {kind}") for kind, (n, text) in found.items() if n > 0}


def described(ospid: int) -> str:
    """Say what a process is, for whoever has to find out why it is left."""
    try:
        process = psutil.Process(ospid)
        return f"{ospid} ({process.status()}, {' '.join(process.cmdline())})"
    except psutil.Error:
        return str(ospid)


@pytest.fixture(scope="session")
def d() -> ModuleType:
    """Give the module under test. From here on its interrupts, failed launches and signals are counted."""
    import pydist

    tally.watch_signals(Path(pydist.__file__).parent)
    from pydist import _cluster

    # In both places, so that they still go by name where they are pickled.
    pydist.interrupt = _cluster.interrupt = tally.counted("interrupt", pydist.interrupt)
    pydist.addprocs = _cluster.addprocs = tally.counted(
        "launch failure", pydist.addprocs, pydist.LaunchWorkerError
    )
    return pydist


@pytest.fixture(scope="session")
def resting_state(d: ModuleType) -> Held:
    """Give what a process holds that has had a worker, and calls of all kinds here, and has none."""
    d.rmprocs(d.addprocs(1))
    d.remotecall_fetch(support.nothing_async, 1)
    return Held(d)


@pytest.fixture(scope="module", autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail where a module's tests leave processes, descriptors, threads, sockets or references behind."""
    if request.path.parent.name in WITHOUT_PROCESSES:
        yield
        return
    d = request.getfixturevalue("d")
    base = request.getfixturevalue("resting_state")
    yield
    d.rmprocs([pid for pid in d.procs() if pid != 1])

    def clean() -> bool:
        gc.collect()
        return not Held(d).beyond(base)

    try:
        support.wait_until(clean, 5)
    except AssertionError:
        left = Held(d).beyond(base)
        for kind, (n, _) in left.items():
            tally.leak(kind, n)
        pytest.fail(f"left behind: {', '.join(text for _, text in left.values())}")


@pytest.fixture(scope="module")
def module_workers(d: ModuleType, nothing_left: None) -> Iterator[list[int]]:
    """Keep the list of a module's two workers; `workers` fills it."""
    pids: list[int] = []
    yield pids
    d.rmprocs(pids)


@pytest.fixture
def workers(d: ModuleType, module_workers: list[int]) -> list[int]:
    """Give two workers that answer; the tests of a module share them."""

    def answers(pid: int) -> bool:
        try:
            return d.remotecall(d.myid, pid).fetch(timeout=10) == pid
        except (d.ProcessExitedException, TimeoutError):
            return False

    healthy = [pid for pid in module_workers if pid in d.procs() and answers(pid)]
    d.rmprocs([pid for pid in module_workers if pid not in healthy])
    module_workers[:] = healthy + d.addprocs(2 - len(healthy))
    return list(module_workers)


@pytest.fixture
def fresh_workers(d: ModuleType) -> Iterator[Callable[..., list[int]]]:
    """Give a function that starts workers for one test."""
    started: list[int] = []

    def start(n: int = 1, **params: Any) -> list[int]:
        pids = d.addprocs(n, **params)
        started.extend(pids)
        return pids

    yield start
    d.rmprocs(started)


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Give the function that awaits a condition with a deadline."""
    return support.wait_until


@pytest.fixture
def run_script() -> Callable[..., Any]:
    """Give the function that runs a user's script in a process of its own."""
    return support.run_script
