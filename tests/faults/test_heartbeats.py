"""Rows F13 to F18 of the fault table: processes that are silent, and those that only seem so."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import pydist as d
import tally
from pydist import _core, _session
from support import TESTS, Script, alive, exists, hold_gil, holders, stop, touch, wait_until
from support_managers import DialledManager
from support_network import DialIn, Relay, dial_in, error_of

H = 1.0
INTERVAL = 0.15
LATEST = 2 * H + INTERVAL + 0.5
"""The contract says H + INTERVAL + 0.5; here the machine may have other things to do."""


@pytest.fixture(autouse=True)
def short() -> Iterator[None]:
    d.set_heartbeat(H, INTERVAL)
    yield
    d.set_heartbeat(30)


@pytest.fixture
def dialled() -> Iterator[DialIn]:
    with dial_in() as workers:
        yield workers


def block(path: str) -> None:
    touch(path)
    time.sleep(60)


def ask(pid: int, path: str) -> None:
    d.remotecall_fetch(block, pid, path)


def lose_head() -> None:
    """End the connection to process 1, as if that had given this worker up."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(fd)) as s:
                if s.getpeername() == os.path.join(os.path.dirname(s.getpeername()), "1"):
                    s.shutdown(socket.SHUT_RDWR)
        except (OSError, TypeError):  # no socket, or not a connected one of this kind
            continue


def test_f14_a_worker_that_is_given_up_leaves_the_others_their_head(fresh_workers):
    """F14: it exits <= 2 s, and process 1 goes on listening for those that start."""
    (pid,) = fresh_workers()
    ospid = d.remotecall_fetch(os.getpid, pid)
    listener = _session.session.address.removeprefix("unix:")
    d.remote_do(lose_head, pid)
    wait_until(lambda: not alive(ospid), 2)
    assert os.path.exists(listener)
    (other,) = fresh_workers()
    assert d.remotecall_fetch(d.myid, other) == other


def test_f13_stopped_worker(fresh_workers, tmp_path):
    """F13: PEE "no heartbeat" in the H window for all that waits, wherever; the manager then kills it."""
    victim, other = fresh_workers(2)
    ospid = d.remotecall_fetch(os.getpid, victim)
    channel = d.RemoteChannel(lambda: d.Channel(1), victim)
    flags = [str(tmp_path / name) for name in ("a", "b", "c")]
    future = d.remotecall(block, victim, flags[0])
    nested = d.remotecall(ask, other, victim, flags[1])
    bystander = d.remotecall(time.sleep, other, 0.5)
    waits = {
        "fetch": future.fetch,
        "remotecall_fetch": lambda: d.remotecall_fetch(block, victim, flags[2]),
        "take": channel.take,
        "elsewhere": nested.fetch,
    }
    with ThreadPoolExecutor(len(waits)) as threads:
        running = {name: threads.submit(error_of, wait) for name, wait in waits.items()}
        wait_until(lambda: all(os.path.exists(flag) for flag in flags))
        wait_until(lambda: d.stats()["calls_outstanding"] >= 4)
        begin = time.monotonic()
        stop(ospid)
        errors = {name: call.result(30) for name, call in running.items()}
        took = time.monotonic() - begin
        tally.recovery(took)
    assert H <= took < LATEST
    for error in errors.values():
        assert isinstance(error, d.ProcessExitedException), error
        assert not isinstance(error, d.ConnectionLostError)
        assert error.pid == victim
        assert error.reason == f"no heartbeat for {H:g} s"
    assert errors["fetch"].host
    assert d.workers() == [other]
    wait_until(lambda: not exists(ospid), 5, "the manager puts an end to it")
    assert bystander.fetch(timeout=10) is None
    assert isinstance(error_of(lambda: d.remotecall_fetch(abs, victim, 1)), d.ProcessExitedException)


def test_f13_map_goes_on_elsewhere(fresh_workers, tmp_path):
    """F13 and F9: the elements of a stopped worker run elsewhere."""
    victim, other = fresh_workers(2)
    ospid = d.remotecall_fetch(os.getpid, victim)

    def element(x: int) -> int:
        if d.myid() == victim:
            block(str(tmp_path / "there"))
        return -x

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(
            d.pmap, element, d.WorkerPool([victim, other]), range(20), retry_delays=[0] * 3
        )
        wait_until((tmp_path / "there").exists)
        stop(ospid)
        assert running.result(30) == [-x for x in range(20)]


def test_f14_stopped_worker_that_resumes_finds_itself_out(dialled):
    """F14: it exits within 2 s; what it had to say reaches nobody, and no result is delivered twice."""
    pid = dialled.start()
    other = dialled.start()
    process = dialled.processes[pid]
    assert d.remotecall_fetch(d.remotecall_fetch, other, d.myid, pid) == pid
    channel = d.RemoteChannel(lambda: d.Channel(10), 1)
    future = d.remotecall(lambda: [time.sleep(0.05) or channel.put(i) for i in range(100_000)], pid)
    wait_until(channel.isready)
    stop(process.pid)
    assert isinstance(error_of(lambda: future.fetch(timeout=30)), d.ProcessExitedException)
    while channel.isready():
        channel.take()
    os.kill(process.pid, signal.SIGCONT)
    process.wait(2)
    assert not channel.isready()
    assert isinstance(error_of(lambda: future.fetch(timeout=30)), d.ProcessExitedException)
    assert d.workers() == [other]
    assert d.remotecall_fetch(d.workers, other) == [other]


def test_f15_workers_that_hold_the_interpreter(fresh_workers, dialled, tmp_path):
    """F15: workers that hold the GIL for 10 H in C code are not given up: their cores answer."""
    d.set_heartbeat(0.3)
    pids = [*fresh_workers(1), dialled.start()]
    d.remotecall_eval(f"import sys; sys.path.append({str(TESTS)!r})", pids[1])
    channels = [d.RemoteChannel(lambda: d.Channel(10), pid) for pid in pids]
    futures = [d.remotecall(hold_gil, pid, 3, str(tmp_path / str(pid))) for pid in pids]
    wait_until(lambda: all((tmp_path / str(pid)).exists() for pid in pids))
    for channel in channels:
        channel.put("served")
        assert channel.take(timeout=2) == "served"
    assert not any(future.isready() for future in futures)
    assert [future.fetch(timeout=30) for future in futures] == ["released"] * 2
    assert d.workers() == pids


CLUSTER = """
import os, subprocess, shlex, sys, time
import pydist as d
d.set_heartbeat({h})
(local,) = d.addprocs(1)
with d.ElasticManager() as manager:
    d.addprocs(manager)
    process = subprocess.Popen(shlex.split(manager.command()))
    while len(d.workers()) < 2:
        time.sleep(0.01)
    pids = d.workers()
    futures = [d.remotecall(time.sleep, pid, {seconds}) for pid in pids]
    print(*[d.remotecall_fetch(os.getpid, pid) for pid in pids], "ready", flush=True)
    for future in futures:
        future.fetch()
    assert d.workers() == pids
    assert [d.remotecall_fetch(d.remotecall_fetch, pids[0], d.myid, p) for p in pids] == pids
    d.rmprocs(pids)
    process.wait(10)
print("all there")
"""


def test_f16_stopped_head():
    """F16: process 1 is stopped for less than the worker's limit (4 H): all goes on."""
    with Script(CLUSTER.format(h=0.6, seconds=2.5)) as script:
        script.wait_for("ready")
        stop(script.pid)
        time.sleep(1.6)  # the fault itself
        os.kill(script.pid, signal.SIGCONT)
        assert script.finish(20).returncode == 0
        assert "all there" in script.out


def test_f16_head_that_stays_stopped():
    """F16 and F18: a worker over a network gives process 1 up after 4 H; a local one waits."""
    with Script(CLUSTER.format(h=0.4, seconds=60)) as script:
        script.wait_for("ready")
        local, remote = map(int, script.out.split()[:2])
        begin = time.monotonic()
        stop(script.pid)
        wait_until(lambda: not alive(remote), 10)
        assert time.monotonic() - begin >= 1.6
        assert alive(local)
        os.kill(script.pid, signal.SIGKILL)
        script.wait_gone(5)


def test_f17_frozen_machine():
    """F17: all processes of a cluster stand still for 10 H and go on: nobody is given up.

    SIGSTOP for each of them stands for the freezer, which containers do not offer.
    """
    h = 0.3
    with Script(CLUSTER.format(h=h, seconds=3.5)) as script:
        script.wait_for("ready")
        everyone = holders(script.token)
        assert len(everyone) >= 3  # and the template of the workers, if it has not ended yet
        for pid in everyone:
            stop(pid)
        time.sleep(10 * h)  # the fault itself
        for pid in everyone:
            os.kill(pid, signal.SIGCONT)
        assert script.finish(20).returncode == 0
        assert "all there" in script.out


def test_f18_silent_network(dialled):
    """F18: PEE in the H window; a healed link does not resurrect; the far worker exits by itself (4 H)."""
    with Relay(dialled.manager.address) as relay:
        d.set_heartbeat(0.5)
        pid = dialled.start(relay.address)
        assert d.remotecall_fetch(abs, pid, -1) == 1
        future = d.remotecall(time.sleep, pid, 60)
        wait_until(lambda: d.stats(pid)["calls_running"] == 1)
        begin = time.monotonic()
        relay.cut()
        error = error_of(lambda: future.fetch(timeout=30))
        assert 0.5 <= time.monotonic() - begin < 2
        assert isinstance(error, d.ProcessExitedException)
        assert error.reason == "no heartbeat for 0.5 s"
        assert pid not in d.workers()
        dialled.processes[pid].wait(10)
        assert time.monotonic() - begin >= 2
        relay.heal()
        assert pid not in d.workers()
        assert isinstance(error_of(lambda: d.remotecall_fetch(abs, pid, 1)), d.ProcessExitedException)


def test_f18_a_link_that_heals_in_time(dialled):
    """F18: what is cut for less than H goes on where it was."""
    with Relay(dialled.manager.address) as relay:
        d.set_heartbeat(4)
        pid = dialled.start(relay.address)
        relay.cut()
        future = d.remotecall(abs, pid, -1)
        time.sleep(1.5)  # the fault itself
        with pytest.raises(TimeoutError):
            future.wait(timeout=0)
        relay.heal()
        assert future.fetch(timeout=10) == 1
        assert d.workers() == [pid]


def test_heartbeats_are_no_messages_and_cost_nothing(workers):
    """An idle cluster sends heartbeats of a few bytes, which count as no messages."""
    pid = workers[0]
    before = d.stats(pid)["bytes_sent"]
    own = d.stats()["messages_sent"], d.stats()["messages_received"]
    received = d.stats()["bytes_received"]
    wait_until(lambda: d.stats()["bytes_received"] >= received + 4 * 40)
    assert (d.stats()["messages_sent"], d.stats()["messages_received"]) == own
    assert d.stats(pid)["bytes_sent"] >= before


def test_heartbeats_can_be_switched_off(fresh_workers):
    """A stopped worker is waited for where heartbeats are off, and given up once they are on."""
    d.set_heartbeat(None)
    (pid,) = fresh_workers(1)
    ospid = d.remotecall_fetch(os.getpid, pid)
    assert d.remotecall_fetch(_core.heartbeat, pid)[0] is None
    stop(ospid)
    future = d.remotecall(abs, pid, -1)
    with pytest.raises(TimeoutError):
        future.fetch(timeout=2)
    d.set_heartbeat(0.5)
    assert isinstance(error_of(lambda: future.fetch(timeout=30)), d.ProcessExitedException)
    wait_until(lambda: not exists(ospid), 5)


def test_the_heartbeat_is_set_by_process_1_alone(workers):
    d.set_heartbeat(20, 4)
    pid = workers[0]
    assert wait_until(lambda: d.remotecall_fetch(_core.heartbeat, pid) == (20.0, 4.0))
    with pytest.raises(RuntimeError, match="process 1"):
        d.remotecall_fetch(d.set_heartbeat, pid, 3)
    for wrong in [(0, None), (-1, None), (float("nan"), None), (1, 0.5), (1, 0), (None, -1)]:
        with pytest.raises(ValueError, match="heartbeat"):
            d.set_heartbeat(*wrong)
    with pytest.raises(TypeError):
        d.set_heartbeat("soon")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "30.0 5.0"),
        ({"PYDIST_HEARTBEAT": "12"}, "12.0 2.0"),
        ({"PYDIST_HEARTBEAT": "12", "PYDIST_HEARTBEAT_INTERVAL": "0.5"}, "12.0 0.5"),
        ({"PYDIST_HEARTBEAT": "0"}, "None 5.0"),
    ],
)
def test_the_heartbeat_is_set_by_the_environment(run_script, variables, expected):
    script = "import pydist as d; d.procs(); print(*d._core.heartbeat())"
    assert run_script(script, env=variables).stdout.strip() == expected


def test_many_threads_may_set_it(workers):
    """Settings change while calls run: nobody is given up."""
    stopping = threading.Event()

    def change() -> None:
        while not stopping.is_set():
            d.set_heartbeat(1)
            d.set_heartbeat(2, 0.1)

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(change) for _ in range(2)]
        for _ in range(200):
            assert d.remotecall_fetch(abs, workers[0], -1) == 1
        stopping.set()
        for thread in running:
            thread.result(10)
    assert set(workers) <= set(d.workers())


class Forwarded(DialledManager):
    """Workers that are reached through a Unix socket at a path, as those behind a tunnel of ssh."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.threads: list[threading.Thread] = []

    def close(self) -> None:
        for thread in self.threads:
            thread.join(10)
        for end in self.ends:
            end.close()

    def connect(self, pid: int, config: d.WorkerConfig) -> Any:
        dialled = super().connect(pid, config)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.path)
            listener.listen()
            near = socket.socket(socket.AF_UNIX)
            near.connect(self.path)
            end, _ = listener.accept()
        self.ends = [end, dialled.socket]
        for source, to in (self.ends, self.ends[::-1]):
            self.threads.append(threading.Thread(target=self._forward, args=(source, to)))
            self.threads[-1].start()
        return type(dialled)(near, dialled.inst, dialled.left_over)

    @staticmethod
    def _forward(source: socket.socket, to: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)
        except OSError:
            return


def test_f13_stopped_worker_behind_a_tunnel(tmp_path):
    """F13: a worker that is reached through a program that forwards is watched as well."""
    manager = Forwarded(str(tmp_path / "socket"))
    (pid,) = d.addprocs(manager)
    ospid = d.remotecall_fetch(os.getpid, pid)
    stop(ospid)
    error = error_of(lambda: d.remotecall(abs, pid, -1).fetch(timeout=30))
    assert isinstance(error, d.ProcessExitedException)
    assert error.reason == f"no heartbeat for {H:g} s"
    wait_until(lambda: not exists(ospid), 5)
    manager.close()
