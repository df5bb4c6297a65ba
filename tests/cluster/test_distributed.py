"""Loops whose range is split between the workers."""

from __future__ import annotations

import collections
import operator
import os
import signal
import threading
from typing import Any

import numpy as np
import pytest

import pydist as d
from support import run_script, wait_until

Workers = list[int]


def parts_of(iterable: Any, **options: Any) -> list[tuple[int, list[Any]]]:
    """Return the ids of the workers that took part, in order, each with what its body got."""
    pairs = d.distributed(iterable, operator.add, **options)(lambda x: [(d.myid(), x)])
    found: dict[int, list[Any]] = {}
    for pid, x in pairs:
        found.setdefault(pid, []).append(x)
    return list(found.items())


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100])
def test_the_parts_are_contiguous_and_in_order(workers, n):
    parts = parts_of(range(n))
    assert [pid for pid, _ in parts] == workers[: min(n, 2)]
    assert [x for _, items in parts for x in items] == list(range(n))
    sizes = [len(items) for _, items in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: [3, 1, 2],
        lambda: (3, 1),
        lambda: "abcd",
        lambda: {"a": 1, "b": 2, "c": 3},
        lambda: range(5, 0, -2),
        lambda: iter([1, 2, 3]),
        lambda: (x * x for x in range(5)),
        lambda: b"abc",
        lambda: np.arange(5.0),
        lambda: collections.deque([1, 2, 3]),
    ],
)
def test_any_iterable_is_read_once(workers, make):
    parts = parts_of(make())
    assert [x for _, items in parts for x in items] == list(make())


def test_a_range_is_sent_as_ranges(workers):
    before = d.stats()["bytes_sent"]
    total = d.distributed(range(200_000), operator.add)(lambda i: 1)
    assert total == 200_000
    assert d.stats()["bytes_sent"] - before < 20_000


def test_as_a_decorator_with_a_reducer(workers):
    power = 2

    @d.distributed(range(1, 101), operator.add)
    def total(i):
        return i**power

    assert total == sum(i * i for i in range(1, 101))

    @d.distributed(["b", "c", "a"], max)
    def largest(text):
        return text * 2

    assert largest == "cc"


def test_a_reducer_that_is_not_commutative(workers):
    calls = d.distributed("abcdefg", lambda a, b: a + b)(str.upper)
    assert calls == "ABCDEFG"


def test_one_element_is_its_own_value(workers):
    assert d.distributed([5], operator.add)(lambda x: x * 2) == 10


def test_each_worker_reduces_its_part_first(workers):
    here = d.myid()

    def reduce(a: list[int], b: list[int]) -> list[int]:
        return [a[0] + b[0], a[1] + b[1] + (1 if d.myid() == here else 0)]

    count = d.distributed(range(10), reduce)(lambda i: [1, 0])
    assert count == [10, 1]


def test_an_empty_iterable(workers):
    with pytest.raises(TypeError, match="empty iterable"):
        d.distributed([], operator.add)(abs)
    loop = d.distributed(iter(()))(abs)
    assert loop.fetch() is None


def test_without_a_reducer_a_future_of_the_whole_loop(workers):
    gate = d.Future()
    seen = d.RemoteChannel(lambda: d.Channel(100))

    @d.distributed(range(10))
    def loop(i):
        gate.fetch()
        seen.put((i, d.myid()))

    assert isinstance(loop, d.Future)
    assert not loop.isready()
    gate.put(None)
    assert loop.fetch(timeout=20) is None
    pairs = [seen.take() for _ in range(10)]
    assert sorted(i for i, _ in pairs) == list(range(10))
    assert {pid for _, pid in pairs} == set(workers)


def test_the_future_can_be_fetched_elsewhere(workers):
    loop = d.distributed(range(4))(abs)
    assert d.remotecall_fetch(d.fetch, workers[0], loop) is None


@pytest.mark.parametrize("kind", ["list", "pool", "id", "here"])
def test_pids(workers, kind):
    chosen: Any = {
        "list": workers[::-1],
        "pool": d.WorkerPool(workers),
        "id": workers[1],
        "here": [1, workers[0]],
    }[kind]
    expected = {"list": workers[::-1], "pool": workers, "id": [workers[1]], "here": [1, workers[0]]}[kind]
    assert [pid for pid, _ in parts_of(range(6), pids=chosen)] == expected
    assert d.distributed(range(6), pids=chosen)(abs).fetch() is None


def test_wrong_arguments(workers):
    with pytest.raises(TypeError, match="not iterable"):
        d.distributed(5)
    with pytest.raises(TypeError, match="callable"):
        d.distributed([1], 5)
    with pytest.raises(TypeError, match="callable"):
        d.distributed([1])(5)
    with pytest.raises(d.NoWorkersError):
        d.distributed([1], pids=[])(abs)
    with pytest.raises(ValueError, match="99999"):
        d.distributed([1], pids=[99_999])(abs)


def test_nested(workers):
    def row(i: int) -> int:
        return d.distributed(range(4), operator.add)(lambda j: i * j)

    assert d.distributed(range(5), operator.add)(row) == sum(i * j for i in range(5) for j in range(4))


def test_from_a_worker_and_from_several_threads(workers):
    assert d.remotecall_fetch(lambda: d.distributed(range(9), operator.add)(int), workers[0]) == 36
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(d.distributed(range(n), operator.add)(int)))
        for n in range(2, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [sum(range(n)) for n in range(2, 8)]


def test_coroutine_functions_run_at_once_in_each_part(workers):
    async def meet(i: int) -> int:
        channel = d.RemoteChannel(lambda: d.Channel(1))
        await channel.put_async(i)
        return await channel.take_async()

    assert d.distributed(range(20), operator.add)(meet) == sum(range(20))
    assert d.distributed(range(20))(meet).fetch() is None


def test_what_the_body_captures_is_sent_once_to_each_worker(workers):
    captured = os.urandom(1_000_000)
    before = d.stats()["bytes_sent"]
    assert d.distributed(range(1000), operator.add)(lambda i: captured[i]) == sum(captured[:1000])
    assert 2_000_000 < d.stats()["bytes_sent"] - before < 2_200_000


def test_it_runs_here_without_workers():
    done = run_script("""
    import operator
    import pydist as d

    print(d.distributed(range(4), operator.add)(lambda i: d.myid()))
    print(d.distributed(range(4))(lambda i: None).fetch())
    """)
    assert (done.stdout, done.stderr) == ("4\nNone\n", "")


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reducer", [None, operator.add])
def test_errors_come_as_a_group(workers, reducer):
    for bad, failed in (({0}, workers[:1]), ({0, 9}, workers)):

        def body(i: int, bad: set[int] = bad) -> int:
            if i in bad:
                raise ValueError(f"no good: {i}")
            return i

        with pytest.raises(ExceptionGroup, match="distributed failed on process") as caught:
            d.fetch(d.distributed(range(10), reducer)(body))
        assert [error.pid for error in caught.value.exceptions] == failed
        assert [str(error) for error in caught.value.exceptions] == [f"no good: {i}" for i in sorted(bad)]
        assert all(isinstance(error, ValueError) for error in caught.value.exceptions)


def test_an_error_in_combining_the_parts(workers):
    def combine(a: int, b: int) -> int:
        if d.myid() == 1:
            raise ValueError("cannot combine")
        return a + b

    with pytest.raises(ExceptionGroup) as caught:
        d.distributed(range(10), combine)(int)
    (error,) = caught.value.exceptions
    assert isinstance(error, ValueError)
    assert error.pid == 1


def test_a_body_that_cannot_be_pickled(workers):
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        d.distributed(range(3), operator.add)(lambda i: lock)


@pytest.mark.parametrize("reducer", [None, operator.add])
def test_f10_kill_during_distributed(fresh_workers, reducer):
    """F10: composite error naming each failed worker within EOF; others complete."""
    pids = fresh_workers(3)
    ospids = [d.remotecall_fetch(os.getpid, pid) for pid in pids]
    begun, ended = (d.RemoteChannel(lambda: d.Channel(10)) for _ in range(2))
    doomed, gate = pids[:2], d.Future()

    def body(i: int) -> int:
        begun.put(i)
        if d.myid() in doomed:
            gate.fetch()
        ended.put(d.myid())
        return i

    caught = []

    def run() -> None:
        try:
            d.fetch(d.distributed(range(3), reducer, pids=pids)(body))
        except BaseException as error:
            caught.append(error)

    running = threading.Thread(target=run)
    running.start()
    assert sorted(begun.take() for _ in range(3)) == [0, 1, 2]
    for ospid in ospids[:2]:
        os.kill(ospid, signal.SIGKILL)
    running.join(2)
    assert not running.is_alive()
    (group,) = caught
    assert isinstance(group, ExceptionGroup)
    assert f"processes {pids[0]}, {pids[1]}" in str(group)
    assert [type(error) for error in group.exceptions] == [d.ProcessExitedException] * 2
    assert ended.take(timeout=5) == pids[2]
    assert d.remotecall_fetch(d.myid, pids[2]) == pids[2]


def test_f37_ctrl_c_in_distributed():
    """F37: <= 200 ms; what runs is interrupted, the cluster stays usable."""
    done = run_script("""
    import _thread, operator, threading, time
    import pydist as d
    from support import wait_until

    pids = d.addprocs(2)
    begun = d.RemoteChannel(lambda: d.Channel(9))
    sent = []

    def body(i):
        begun.put(i)
        d.Future().fetch()

    def interrupt():
        begun.take(), begun.take()
        sent.append(time.monotonic())
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    try:
        d.distributed(range(10), operator.add)(body)
    except KeyboardInterrupt:
        print("interrupted", time.monotonic() - sent[0] < 1)
    wait_until(lambda: all(d.stats(pid)["calls_running"] == 0 for pid in pids))
    print(begun.isready(), d.distributed(range(10), operator.add)(int))
    """)
    assert (done.stdout, done.stderr) == ("interrupted True\nFalse 45\n", "")


def test_cancelling_the_loop_ends_its_parts(workers):
    """F39: also where the interrupt comes just before what a part waits for."""
    begun = d.RemoteChannel(lambda: d.Channel(10))

    def body(i: int) -> None:
        begun.put(i)
        d.Future().fetch()

    for _ in range(20):
        loop = d.distributed(range(2))(body)
        assert sorted(begun.take() for _ in range(2)) == [0, 1]
        assert loop.cancel()
        with pytest.raises(d.CancelledError):
            loop.fetch()
        wait_until(lambda: all(d.stats(pid)["calls_running"] == 0 for pid in workers))


def test_the_error_of_a_loop_is_the_group_itself(workers):
    loop = d.distributed(range(2))(lambda i: 1 // i)
    with pytest.raises(ExceptionGroup) as caught:
        loop.fetch()
    assert type(caught.value) is ExceptionGroup
    with pytest.raises(ExceptionGroup):
        d.remotecall_fetch(d.fetch, workers[0], loop)
