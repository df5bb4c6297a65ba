"""Rows F22, F23, F32, F33 and F34 of the fault table: what is too large, too much, or not to be had."""

import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import pydist as d
import tally
from pydist import _core
from support import Script, rss, run_script, threads_of, wait_until

MIB = 1 << 20


def square(x: int) -> int:
    return x * x


def size_of(array: Any) -> int:
    return len(memoryview(array).cast("B"))


def make(size: int) -> np.ndarray:
    return np.ones(size, np.uint8)


# --- F32: messages over the limit ---------------------------------------------------------------------------

LIMITED = """
    import numpy as np
    import pydist as d
    one, two = d.addprocs(2)
    LIMIT = 2 << 20
    before = d.stats()["bytes_sent"]

    def refused(attempt):
        try:
            attempt()
        except d.FrameTooLargeError as error:
            assert isinstance(error, ValueError)
            assert f"over the limit of {LIMIT}" in str(error) and "PYDIST_MESSAGE_MAX" in str(error), error
            return True
        return False

    large, fits = np.ones(LIMIT, np.uint8), np.ones(LIMIT - 4096, np.uint8)
    channel = d.RemoteChannel(lambda: d.Channel(4), one)
    mine = d.Future()
    print(
        refused(lambda: d.remotecall(len, one, large)),
        refused(lambda: d.remotecall_fetch(len, one, "x" * LIMIT)),
        refused(lambda: d.remote_do(len, one, large)),
        refused(lambda: d.pmap(len, [large])),
        refused(lambda: channel.put(large)),
        refused(lambda: d.Future(one).put(large)),
    )
    # Nothing of them was sent.
    print(d.stats()["bytes_sent"] - before < LIMIT // 2)
    # What is too large for an answer is the error of its call.
    print(
        refused(lambda: d.remotecall_fetch(np.ones, one, LIMIT)),
        refused(lambda: d.remotecall(np.ones, one, LIMIT).fetch()),
        refused(lambda: d.remotecall_fetch(d.remotecall_fetch, one, len, two, fits.tobytes() * 2)),
    )
    # The processes are the same, and answer; their queues and records are empty.
    print(d.remotecall_fetch(len, one, fits) == len(fits), channel.isready(), d.workers() == [one, two])
    del channel
    import gc, support
    gc.collect()
    support.wait_until(lambda: d.stats()["calls_outstanding"] == 0, 5, "answers")
    support.wait_until(lambda: d.stats(one)["refs_owned"] == 0, 5, "freed references")
    """


@pytest.mark.parametrize("shared", ["1e9", "0"], ids=["shared memory", "streamed"])
def test_f32_a_message_over_the_limit(shared):
    """F32: FrameTooLargeError before anything is sent; the link is intact, and other messages go on."""
    env = {"PYDIST_MESSAGE_MAX": str(2 << 20), "PYDIST_SHARED_MAX": shared}
    done = run_script(LIMITED, env=env)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "True True True True True True",
        "True",
        "True True True",
        "True False True",
    ]


def test_f32_more_buffers_than_a_head_can_name(workers):
    """F32: FrameTooLargeError before anything is sent, for a head that its receiver would refuse."""
    with pytest.raises(d.FrameTooLargeError, match="1100000 out-of-band buffers"):
        _core.call_future(workers[0], b"", [b""] * 1_100_000, [])
    assert d.remotecall_fetch(square, workers[0], 3) == 9


def test_f32_a_limit_below_what_pydist_needs_is_named():
    """F32: a limit under which pydist itself could not speak is refused at the start."""
    done = run_script("import pydist as d; d.addprocs(1)", env={"PYDIST_MESSAGE_MAX": "1000"})
    assert "PYDIST_MESSAGE_MAX must be at least 1048576 bytes, not 1000" in done.stderr


def test_f32_a_receiver_with_a_lower_limit(fresh_workers):
    """F32: a message over the receiver's limit ends that connection with the reason, and nothing else."""
    low, other = fresh_workers(1, env={"PYDIST_MESSAGE_MAX": str(1 << 20)}) + fresh_workers(1)
    with pytest.raises(d.ProcessExitedException):
        d.remotecall_fetch(size_of, low, make(3 * MIB))
    assert d.remotecall_fetch(size_of, other, make(3 * MIB)) == 3 * MIB


@pytest.mark.timeout(600)
def test_f32_more_than_four_gib(fresh_workers, milestone):
    """F32: a 5 GiB round trip is equal. (Here 100 MiB.)"""
    size = (5 << 30) + 12_345 if milestone else 100 * MIB
    (pid,) = fresh_workers(1, env={"PYDIST_SHARED_MAX": "0"})
    array = np.arange(size // 8, dtype=np.uint64)
    back = d.remotecall_fetch(lambda a: a, pid, array)
    assert np.array_equal(array, back)


# --- F23: no memory -----------------------------------------------------------------------------------------


class Hungry:
    """Unpickling it needs more memory than there is."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (1 << 60,)


def test_f23_memory_error_while_an_argument_is_unpickled(workers):
    """F23: RemoteException(MemoryError); the worker lives."""
    ospid = d.remotecall_fetch(os.getpid, workers[0])
    with pytest.raises(MemoryError) as caught:
        d.remotecall_fetch(size_of, workers[0], Hungry())
    assert isinstance(caught.value, d.RemoteException)
    assert d.remotecall_fetch(os.getpid, workers[0]) == ospid


def limit_address_space(beyond: int | None) -> None:
    """Let this process have so many bytes more than it has; None for as many as it wants."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if beyond is None else used + beyond, hard))


@pytest.mark.parametrize("env", [{}, {"PYDIST_SHARED_MAX": "0"}], ids=["shared memory", "streamed"])
def test_f23_no_memory_for_a_message(fresh_workers, env):
    """F23: where the core has no memory for a call, that call fails with MemoryError; the worker lives."""
    receiver, sender = fresh_workers(1) + fresh_workers(1, env=env)
    ospid = d.remotecall_fetch(os.getpid, receiver)
    d.remotecall_fetch(limit_address_space, receiver, 100 * MIB)
    tally.fault("no memory", 3)
    sizes = [300 * MIB, 1 * MIB, 300 * MIB]
    outcomes = d.remotecall_fetch(try_sizes, sender, receiver, sizes)
    assert outcomes == ["remote", 1 * MIB, "remote"]
    # A value that is fetched there is the caller's loss.
    far = d.remotecall_wait(make, sender, 300 * MIB)
    with pytest.raises(MemoryError):
        d.remotecall_fetch(lambda f: len(f.fetch()), receiver, far)
    d.remotecall_fetch(limit_address_space, receiver, None)
    assert d.remotecall_fetch(try_sizes, sender, receiver, sizes) == sizes
    assert d.remotecall_fetch(os.getpid, receiver) == ospid


def try_sizes(pid: int, sizes: list[int]) -> list[Any]:
    outcomes: list[Any] = []
    for size in sizes:
        try:
            outcomes.append(d.remotecall_fetch(size_of, pid, make(size)))
        except MemoryError as error:
            outcomes.append("remote" if isinstance(error, d.RemoteException) else "local")
    return outcomes


# --- F22: killed for want of memory -------------------------------------------------------------------------


@contextmanager
def control_group(controller: str, limits: dict[str, str]) -> Iterator[Path]:
    """Make a group of processes with limits; the names of version 1 and 2 of a limit may differ."""
    for root in (Path("/sys/fs/cgroup") / controller, Path("/sys/fs/cgroup")):
        group = root / f"pydist-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            known = [name for name in limits if (group / name).exists()]
            if known:
                for name in known:
                    (group / name).write_text(limits[name])
                yield group
                return
        finally:
            wait_until(lambda g=group: remove(g), 10, "the end of a control group")
    pytest.skip(f"no control group for {controller}")


def remove(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


def eat(size: int) -> int:
    blocks = []
    for _ in range(size // MIB):
        blocks.append(b"x" * MIB)
    return len(blocks)


def test_f22_oom_kill(fresh_workers):
    """F22: as F1; the reason says signal 9, possibly out of memory."""
    victim, other = fresh_workers(2)
    ospid = d.remotecall_fetch(os.getpid, victim)
    most = str(150 * MIB)
    limits = {"memory.limit_in_bytes": most, "memory.max": most, "memory.swap.max": "0"}
    with control_group("memory", limits) as group:
        (group / "cgroup.procs").write_text(str(ospid))
        tally.fault("killed for want of memory")
        with pytest.raises(d.ProcessExitedException) as caught:
            d.remotecall_fetch(eat, victim, 400 * MIB)
        assert caught.value.reason == "signal 9 (SIGKILL), possibly out of memory"
        assert d.remotecall_fetch(square, other, 3) == 9


# --- F33: no descriptors, no threads ------------------------------------------------------------------------


def fill_descriptors(left: int) -> int:
    """Open files until no more than `left` can be opened; return how many are open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + left, hard))
    FILLED.append((soft, hard))
    with pytest.raises(OSError, match="Too many open files"):
        while True:
            OPENED.append(os.open("/dev/null", os.O_RDONLY))
    for _ in range(left):
        os.close(OPENED.pop())
    return len(OPENED)


def import_all() -> None:
    import pydist._calls
    import pydist._cluster  # noqa: F401


def free_descriptors() -> None:
    while OPENED:
        os.close(OPENED.pop())
    while FILLED:
        resource.setrlimit(resource.RLIMIT_NOFILE, FILLED.pop())


OPENED: list[int] = []
FILLED: list[tuple[int, int]] = []


def test_f33_a_worker_without_descriptors_connects_to_no_other(fresh_workers):
    """F33: the call fails with an error that names the limit; once that is lifted, it does not."""
    one, two = fresh_workers(2)
    theirs = d.Future(two)
    d.remotecall_fetch(import_all, one)
    d.remotecall_fetch(fill_descriptors, one, 0)
    tally.fault("no descriptors")
    with pytest.raises(d.RemoteException, match=r"OSError.*Too many open files.*ulimit -n"):
        d.remotecall_fetch(d.remotecall_fetch, one, square, two, 3)
    # What the core has to say there by itself waits until it can.
    waiting = d.remotecall(d.fetch, one, theirs)
    assert not waiting.isready()
    assert d.remotecall_fetch(square, one, 3) == 9
    theirs.put(49)
    assert not waiting.isready()
    d.remotecall_fetch(free_descriptors, one)
    assert waiting.fetch(timeout=10) == 49
    assert d.remotecall_fetch(d.remotecall_fetch, one, square, two, 3) == 9
    assert {one, two} <= set(d.workers())
    del waiting, theirs
    wait_until(lambda: d.stats(two)["refs_owned"] == 0)
    wait_until(lambda: d.stats(one)["calls_outstanding"] == 0)


def test_f33_no_descriptors_for_a_worker(workers):
    """F33: addprocs fails with an error that names the limit; once that is lifted, it does not."""
    try:
        fill_descriptors(3)
        tally.fault("no descriptors")
        with pytest.raises(d.LaunchWorkerError, match=r"ulimit -n") as caught:
            d.addprocs(1)
        assert d.remotecall_fetch(square, workers[0], 3) == 9
    finally:
        free_descriptors()
    assert caught.value.started == []
    pids = d.addprocs(1)
    assert d.remotecall_fetch(square, pids[0], 3) == 9
    d.rmprocs(pids)


BACK_OFF = """
    import signal
    import pydist as d
    manager = d.ElasticManager()
    d.addprocs(manager)
    from test_limits import fill_descriptors, free_descriptors
    print(manager.address, flush=True)
    fill_descriptors(0)
    print("full", flush=True)
    gate = d.RemoteChannel(1)
    signal.signal(signal.SIGUSR1, lambda *_: (free_descriptors(), print("free", flush=True)))
    print("waits", flush=True)
    gate.take()
    """


def test_f33_accepting_backs_off_without_descriptors():
    """F33: accept waits 100 ms each time, with little CPU; who stands in the queue is taken up later."""
    folder = str(Path(__file__).parent)
    with Script(BACK_OFF, env={"PYTHONPATH": os.pathsep.join([folder, str(Path(folder).parent)])}) as script:
        script.wait_for("waits")
        host, _, port = script.out.split()[0].rpartition(":")
        with socket.create_connection((host.split("/")[-1], int(port)), 10) as stranger:
            process = psutil.Process(script.pid)
            begin, used = time.monotonic(), sum(process.cpu_times()[:2])
            wait_until(lambda: time.monotonic() - begin > 1.0)
            assert sum(process.cpu_times()[:2]) - used < 0.2
            os.kill(script.pid, signal.SIGUSR1)
            script.wait_for("free")
            stranger.settimeout(10)
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            # It is accepted, and refused.
            assert stranger.recv(100) == b""


def naps_at_once(pid: int) -> int:
    d.wait([d.remotecall(nap, pid, 0.2) for _ in range(8)])
    return d.stats(pid)["threads"]


def take(channel: d.RemoteChannel) -> Any:
    return channel.take()


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def test_f33_no_threads(fresh_workers):
    """F33: where the system has no thread, calls wait for those that there are; it recovers later."""
    pid, other = fresh_workers(2)
    ospid = d.remotecall_fetch(os.getpid, pid)
    before = d.stats(pid)["threads"]
    with control_group("pids", {"pids.max": "max"}) as group:
        (group / "cgroup.procs").write_text(str(ospid))
        (group / "pids.max").write_text("1")
        tally.fault("no threads")
        calls = [d.remotecall(nap, pid, 0.01) for _ in range(20)]
        assert [call.fetch(timeout=20) for call in calls] == [0.01] * 20
        assert d.stats(pid)["threads"] <= max(before, 2) + 1
        # One that blocks in Python leaves threads that answer.
        assert d.remotecall_fetch(nap, pid, 0.01) == 0.01
        (group / "pids.max").write_text("max")
        # What sleeps does not wait for others: it is not refused meanwhile.
        wait_until(lambda: naps_at_once(pid) > 4, 10, "threads")
        # All of them at once need more threads than there were.
        gate = d.RemoteChannel(lambda: d.Channel(40))
        blocked = [d.remotecall(take, pid, gate) for _ in range(20)]
        wait_until(lambda: d.stats(pid)["threads"] > 20, 10, "more threads")
        for i in range(20):
            gate.put(i)
        assert sorted(call.fetch(timeout=20) for call in blocked) == list(range(20))
        assert d.remotecall_fetch(square, other, 3) == 9
        d.rmprocs(pid)


# --- F34: many calls ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 64])
def test_f34_ten_thousand_outstanding_calls(fresh_workers, tmp_path, threads):
    """F34: all resolve; the head's threads are constant, a worker's within the cap; RSS +<200 MiB."""
    cap = 64
    (pid,) = fresh_workers(1, env={"PYDIST_MAX_THREADS": str(cap)})
    gate = tmp_path / "gate"
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: d.remotecall_fetch(square, pid, 1), range(threads)))
        base, running = rss(), threads_of()
        blocked = d.remotecall(wait_for, pid, str(gate))
        calls = list(pool.map(lambda i: d.remotecall(square_after, pid, str(gate), i), range(10_000)))
        assert d.stats()["calls_outstanding"] >= 10_000
        assert threads_of() <= running + 1
        assert rss() - base < 200 * MIB
        gate.touch()
        assert list(pool.map(lambda f: f.fetch(timeout=60), calls)) == [i * i for i in range(10_000)]
    blocked.fetch(timeout=10)
    assert d.stats(pid)["threads"] <= cap
    assert d.stats()["calls_outstanding"] == 0


def wait_for(path: str) -> None:
    wait_until(Path(path).exists, 60)


def square_after(path: str, x: int) -> int:
    wait_for(path)
    return x * x


def test_f34_more_calls_than_are_allowed():
    """F34: a call over the limit raises an error that names it; once others have ended, calls go on."""
    text = """
        import pydist as d
        (pid,) = d.addprocs(1)
        gate = d.RemoteChannel(lambda: d.Channel(1))
        calls = [d.remotecall(lambda g: g.fetch(), pid, gate)]
        try:
            while True:
                calls.append(d.remotecall(lambda g: g.fetch(), pid, gate))
        except d.CallLimitError as error:
            print(len(calls) <= 100, "PYDIST_MAX_CALLS" in str(error), "100 calls" in str(error))
        try:
            d.remotecall_fetch(abs, pid, -3)
        except d.CallLimitError as error:
            print(isinstance(error, RuntimeError))
        gate.put(3)
        print({f.fetch(timeout=20) for f in calls}, d.remotecall_fetch(abs, pid, -3))
        """
    done = run_script(text, env={"PYDIST_MAX_CALLS": "100"})
    assert (done.stdout, done.stderr) == ("True True True\nTrue\n{3} 3\n", "")
