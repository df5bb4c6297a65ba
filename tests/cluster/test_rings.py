"""Short messages between processes of one machine, which pass through memory while their reader spins."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pydist as d
from support import stop, wait_until

SECONDS = 20


def rings() -> int:
    """Return how many rings this process maps."""
    return Path("/proc/self/maps").read_text().count("memfd:pydist-ring")


def spin_until_ringed(pid: int) -> None:
    """Make calls until both ends have a ring, which needs a core for each that is free for a while."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: nobody spins")
    here, there = rings, lambda: d.remotecall_fetch(rings, pid)
    until = time.monotonic() + SECONDS
    before = here()
    while here() < before + 2 or there() < 2:
        if time.monotonic() > until:
            pytest.skip("the machine is busy: nobody spins for long")
        for _ in range(500):
            d.remotecall_fetch(abs, pid, -1)


@pytest.fixture
def ringed(fresh_workers: Callable[[int], list[int]]) -> int:
    (pid,) = fresh_workers(1)
    spin_until_ringed(pid)
    return pid


def test_answers_are_those_of_their_calls_whatever_way_they_take(ringed):
    sizes = [0, 1, 100, 3000, 4000, 5000, 20_000, 70_000, 600_000]

    def call(thread: int) -> None:
        for turn in range(600):
            sent = bytes([turn % 251, thread]) * sizes[(turn // 20) % len(sizes)]
            got = d.remotecall_fetch(bytes, ringed, sent)
            if got != sent:
                wrong.append((thread, turn))

    wrong: list[tuple[int, int]] = []
    threads = [threading.Thread(target=call, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_one_thread_sends_arrives_in_order(ringed):
    channel = d.RemoteChannel(lambda: d.Channel(10_000), ringed)
    count = 3000
    for n in range(count):
        # Short ones and such that do not fit into a ring; a round trip now and then, so that threads spin.
        channel.put((n, bytes(6000 if n % 7 == 0 else 5)))
        if n % 3 == 0:
            d.remotecall_fetch(abs, ringed, -1)
    assert [channel.take()[0] for _ in range(count)] == list(range(count))


def test_a_worker_that_is_stopped_while_it_spins_goes_on(ringed):
    ospid = d.remotecall_fetch(os.getpid, ringed)
    for turn in range(30):
        for _ in range(200):
            d.remotecall_fetch(abs, ringed, -1)
        stop(ospid)
        futures = [d.remotecall(abs, ringed, -n) for n in range(50)]
        os.kill(ospid, signal.SIGCONT)
        assert [future.fetch() for future in futures] == list(range(50)), turn


def test_a_worker_that_is_killed_while_it_spins_is_lost_as_ever(fresh_workers):
    for _ in range(3):
        (pid,) = fresh_workers(1)
        spin_until_ringed(pid)
        ospid = d.remotecall_fetch(os.getpid, pid)
        killer = threading.Timer(0.05, os.kill, (ospid, signal.SIGKILL))
        killer.start()
        with pytest.raises(d.ProcessExitedException):
            while True:
                assert d.remotecall_fetch(abs, pid, -3) == 3
        killer.join()


def test_rings_go_with_their_connections(fresh_workers):
    before = rings()
    (pid,) = fresh_workers(1)
    spin_until_ringed(pid)
    d.rmprocs(pid)
    wait_until(lambda: rings() == before)


def test_few_connections_have_one(fresh_workers):
    pids = fresh_workers(20)
    for _ in range(3):
        for pid in pids:
            for _ in range(300):
                d.remotecall_fetch(abs, pid, -1)
    # Those that this process reads, and one for each of the others' own.
    assert rings() <= 16 + len(pids)


def test_a_forked_child_does_not_have_them(ringed):
    assert rings() >= 2
    child = os.fork()
    if child == 0:
        os._exit(min(rings(), 100))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert d.remotecall_fetch(abs, ringed, -3) == 3
