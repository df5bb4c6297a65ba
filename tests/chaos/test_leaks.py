"""Leak checks of section 4: workers that come and go, and many calls, leave nothing behind."""

from __future__ import annotations

import gc
import os

import psutil
import pytest

import pydist as d
from support import rss, threads_of, trim, wait_until

MIB = 1 << 20
KEPT_THREADS = 16  # IDLE_MAX of the core


def come_and_go(times: int) -> None:
    for _ in range(times):
        (pid,) = d.addprocs(1)
        assert d.remotecall_fetch(d.myid, pid) == pid
        d.rmprocs(pid)


def held() -> dict[str, int]:
    """Say what this process holds; the template of workers has to have ended, as it does by itself."""
    me = psutil.Process()
    wait_until(lambda: not me.children(), 20)
    gc.collect()
    executors = d.stats()["threads"]  # those that idle stay for a while, and are few
    return {"descriptors": me.num_fds(), "threads": threads_of() - executors}


@pytest.mark.timeout(900)
def test_workers_that_come_and_go_leave_nothing(milestone):
    """Descriptors and threads exactly as before, memory + < 10 MiB after the first cycles."""
    first, cycles = (100, 1000) if milestone else (20, 100)
    come_and_go(first)
    before, memory = held(), rss()
    come_and_go(cycles - first)
    assert held() == before
    assert rss() - memory < 10 * MIB
    assert d.workers() == [1]


def call_often(pid: int, number: int) -> None:
    """Make calls of all kinds: with an answer at once, in bursts, by value, with a buffer."""
    offset = number
    for _ in range(number // 1000):
        for x in range(100):
            assert d.remotecall_fetch(abs, pid, -x) == x
        futures = [d.remotecall(abs, pid, -x) for x in range(780)]
        assert [future.fetch() for future in futures] == list(range(780))
        assert [d.remotecall_fetch(lambda x: x + offset, pid, x) for x in range(100)][-1] == 99 + offset
        assert [len(d.remotecall_fetch(bytes, pid, 20_000)) for _ in range(20)] == [20_000] * 20


def start_threads(pid: int) -> None:
    """Have a worker start all the threads that it keeps; on a busy machine calls do so by and by."""
    gate = d.Future(1)
    waiting = [d.remotecall(d.fetch, pid, gate) for _ in range(KEPT_THREADS)]
    wait_until(lambda: d.stats(pid)["calls_running"] >= KEPT_THREADS)
    gate.put(None)
    d.wait(waiting)


def used(pid: int, ospid: int) -> tuple[int, int]:
    """Measure the memory of this process and of a worker, without what their C libraries keep for later."""
    gc.collect()
    trim()
    d.remotecall_fetch(trim, pid)
    return rss(), rss(ospid)


@pytest.mark.timeout(7200)
def test_calls_leave_nothing(workers, milestone):
    """Memory of both ends + < 1 MiB in all after the first tenth, references 0 two seconds later."""
    number, room = (10_000_000, MIB) if milestone else (100_000, 4 * MIB)
    pid = workers[0]
    ospid = d.remotecall_fetch(os.getpid, pid)
    start_threads(pid)
    call_often(pid, max(number // 10, 20_000))
    before = used(pid, ospid)
    call_often(pid, number * 9 // 10)

    def none_left() -> bool:
        counted = [d.stats(), d.stats(pid)]
        return not any(stats[name] for stats in counted for name in ("refs_owned", "refs_held"))

    gc.collect()
    wait_until(none_left, 2)
    after = used(pid, ospid)
    grown = [(now - then) >> 10 for now, then in zip(after, before, strict=True)]
    print(f"{number * 9 // 10} calls: process 1 has grown by {grown[0]} KiB, the worker by {grown[1]} KiB")
    assert max(grown) < room >> 10, grown
