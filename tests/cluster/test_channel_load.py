"""Channels under load: busy owners, producers and consumers, pipelines in bounded memory, rings of calls."""

import heapq
import math
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pydist as d
from stores import Store
from support import hold_gil, wait_until

MB = 1 << 20


def make(size: float = 1, pid: int = 1) -> d.RemoteChannel:
    return d.RemoteChannel(lambda: d.Channel(size), pid)


# --- a busy owner -------------------------------------------------------------------------------------------


def put_and_take(channel: d.RemoteChannel, number: int) -> list[float]:
    """Put and take items in turn, and return the seconds that each operation took."""
    took = []
    for n in range(number):
        start = time.perf_counter()
        channel.put(n)
        middle = time.perf_counter()
        assert channel.take() == n
        took += [middle - start, time.perf_counter() - middle]
    return took


@pytest.mark.parametrize("what", ["channel", "future"])
def test_a_worker_that_holds_the_interpreter_serves_others(workers, tmp_path, what):
    """1,000 puts and takes, each within 50 ms, all while the interpreter is held."""
    busy, other = workers
    channel = make(10, busy)
    futures = [d.Future(busy) for _ in range(200)]
    d.remotecall_fetch(put_and_take, other, channel, 1)
    held = d.remotecall(hold_gil, busy, 3.0, str(tmp_path / "held"))
    wait_until((tmp_path / "held").exists)
    if what == "channel":
        there = d.remotecall(put_and_take, other, channel, 500)
        took = there.fetch(timeout=20) + put_and_take(channel, 500)
        assert channel.isempty()
        assert channel.isopen()
        with pytest.raises(TimeoutError):
            channel.wait(0.01)
    else:
        took = []
        for n, future in enumerate(futures):
            start = time.perf_counter()
            assert not future.isready()
            d.remotecall_fetch(d.Future.put, other, future, n)
            assert future.wait().fetch() == n
            took.append(time.perf_counter() - start)
    assert not held.isready(), "the interpreter was let go before all were served"
    assert statistics.median(took) < 0.05
    assert statistics.quantiles(took, n=100)[98] < 0.05
    held.fetch()


# --- producers and consumers --------------------------------------------------------------------------------


def produce(channel: d.RemoteChannel, producer: int, number: int) -> None:
    for n in range(number):
        channel.put((producer, n))


def consume(channel: d.RemoteChannel) -> list[tuple[int, int]]:
    return list(channel)


@pytest.mark.timeout(600)
def test_producers_and_consumers(workers, fresh_workers, milestone):
    """4 workers put, 4 others take: each item comes once, in the order of its producer."""
    number = 100_000 if milestone else 5_000
    pids = [*workers, *fresh_workers(6)]
    channel = make(100)
    producers = [d.remotecall(produce, pid, channel, i, number) for i, pid in enumerate(pids[:4])]
    consumers = [d.remotecall(consume, pid, channel) for pid in pids[4:]]
    for producer in producers:
        producer.fetch(timeout=500)
    channel.close()
    taken = [consumer.fetch(timeout=60) for consumer in consumers]
    everything = Counter(item for items in taken for item in items)
    assert everything == Counter((i, n) for i in range(4) for n in range(number))
    for items in taken:
        for i in range(4):
            mine = [n for producer, n in items if producer == i]
            assert mine == sorted(mine)


# --- a pipeline in bounded memory ---------------------------------------------------------------------------


def reset_peak() -> int:
    """Forget the peak of this process's memory; return what it uses now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> int:
    """Return the most memory that this process has used since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def source(out: d.RemoteChannel, number: int, size: int, count: d.RemoteChannel) -> None:
    for n in range(number):
        out.put(bytes([n % 256]) * size)
        count.put(n)
    out.close()


def relay(inward: d.RemoteChannel, out: d.RemoteChannel) -> None:
    for item in inward:
        out.put(item)
    out.close()


def drain(inward: d.RemoteChannel, permits: d.RemoteChannel, size: int) -> int:
    """Take an item for each permit."""
    number = 0
    for _ in permits:
        item = inward.take()
        assert item == bytes([number % 256]) * size
        number += 1
    return number


def test_a_pipeline_runs_in_bounded_memory(fresh_workers):
    """A fast producer blocks: no process grows by more than a few items."""
    a, b, c = pids = fresh_workers(3)
    number, size = 200, MB
    first, second = make(4, a), make(4, c)
    permits, count = make(math.inf), make(math.inf)
    base = {pid: d.remotecall_fetch(reset_peak, pid) for pid in (1, *pids)}
    producer = d.remotecall(source, a, first, number, size, count)
    middle = d.remotecall(relay, b, first, second)
    consumer = d.remotecall(drain, c, second, permits, size)
    wait_until(lambda: d.stats(a)["calls_running"] and count.isready())
    made = 0
    while True:  # nothing is taken out yet, so the producer stops by itself
        try:
            count.take(timeout=0.5)
        except TimeoutError:
            break
        made += 1
    assert made <= 4 + 1 + 4 + 1
    for n in range(number):
        permits.put(n)
    producer.fetch(timeout=60)
    middle.fetch(timeout=60)
    permits.close()
    assert consumer.fetch(timeout=60) == number
    grown = {pid: (d.remotecall_fetch(peak, pid) - base[pid]) // MB for pid in base}
    assert max(grown.values()) < 40, f"MB by process: {grown}"


# --- rings --------------------------------------------------------------------------------------------------


def go_round(ring: list[int], deep: int) -> int:
    """Call the next process in a ring, and from there the next, until it is deep enough."""
    if deep == 0:
        return 0
    return 1 + d.remotecall_fetch(go_round, ring[0], ring[1:] + ring[:1], deep - 1)


def test_a_ring_of_calls_does_not_stop(workers, fresh_workers):
    """A calls B calls C calls A, 50 deep, 100 at a time."""
    a, b, c = *workers, *fresh_workers(1)
    calls = [d.remotecall(go_round, a, [b, c, a], 50) for _ in range(100)]
    assert [call.fetch(timeout=100) for call in calls] == [50] * 100
    assert [d.stats(pid)["calls_running"] for pid in (1, a, b)] == [0] * 3


def put_through_a_ring(inward: d.RemoteChannel, out: d.RemoteChannel) -> int:
    number = 0
    for item in inward:
        out.put(item + 1)
        number += 1
    out.close()
    return number


def test_items_go_round_a_ring_of_channels(workers):
    """Channels of each process that are served while all three relay: 20 rounds of 20 items."""
    ring = [make(5, pid) for pid in (1, *workers)]
    relays = [d.remotecall(put_through_a_ring, pid, ring[i], ring[i + 1]) for i, pid in enumerate(workers)]
    for n in range(20):
        ring[0].put(n)
        assert ring[2].take(timeout=20) == n + 2
    ring[0].close()
    assert [relay.fetch(timeout=20) for relay in relays] == [20, 20]


# --- custom channels ----------------------------------------------------------------------------------------


class PriorityQueue(d.AbstractChannel):
    """The smallest item first; `put` blocks while it is full."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: list[Any] = []
        self.open = True
        self.changed = threading.Condition()

    def put(self, item: Any) -> None:
        with self.changed:
            self.changed.wait_for(lambda: len(self.items) < self.size)
            heapq.heappush(self.items, item)
            self.changed.notify_all()

    def take(self) -> Any:
        with self.changed:
            self.changed.wait_for(lambda: self.items)
            self.changed.notify_all()
            return heapq.heappop(self.items)

    def fetch(self) -> Any:
        with self.changed:
            self.changed.wait_for(lambda: self.items)
            return self.items[0]

    def isready(self) -> bool:
        return bool(self.items)

    def isopen(self) -> bool:
        return self.open

    def close(self, exc: BaseException | None = None) -> None:
        self.open = False


@pytest.fixture(params=["here", "worker"])
def owner(request: pytest.FixtureRequest, workers: list[int]) -> int:
    return 1 if request.param == "here" else workers[0]


def test_blocked_takes_of_a_store_hold_up_nobody(owner, workers):
    store = d.RemoteChannel(Store, owner)
    takes = [d.remotecall(d.RemoteChannel.take, workers[1], store, n) for n in range(50)]
    fetches = [d.remotecall(d.RemoteChannel.fetch, workers[1], store, "shared") for _ in range(20)]
    store.put("other", 1)
    assert store.take("other") == 1
    assert not store.isready(0)
    assert d.remotecall_fetch(d.myid, owner) == owner
    assert not any(call.isready() for call in takes + fetches)
    for n in reversed(range(50)):
        store.put(n, n * n)
        assert takes[n].fetch(timeout=20) == n * n
    store.put("shared", "all")
    assert [call.fetch(timeout=20) for call in fetches] == ["all"] * 20


def test_closing_a_store_ends_those_who_wait(owner, workers):
    store = d.RemoteChannel(Store, owner)
    takes = [d.remotecall(d.RemoteChannel.take, pid, store, n) for n, pid in enumerate((1, *workers))]
    store.put("other", 1)
    store.close()
    for take in takes:
        with pytest.raises(d.ChannelClosedError):
            take.fetch(timeout=20)
    with pytest.raises(d.ChannelClosedError):
        store.put("late", 1)
    assert store.take("other") == 1


def test_a_priority_queue(owner, workers):
    queue = d.RemoteChannel(lambda: PriorityQueue(40), owner)
    puts = [d.remotecall(d.RemoteChannel.put, pid, queue, n) for n in range(30) for pid in workers]
    wait_until(lambda: sum(put.isready() for put in puts) == 40)
    assert queue.fetch() >= 0
    taken = [queue.take() for _ in range(20)]
    for put in puts:
        put.fetch(timeout=20)
    taken += [queue.take() for _ in range(40)]
    assert taken[-20:] == sorted(taken[-20:])
    assert Counter(taken) == Counter([*range(30)] * 2)
    assert queue.isempty()
