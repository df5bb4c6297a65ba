"""pgenerate: order, laziness, bounded memory, and that nothing is left when it ends early."""

import gc
import itertools
import os
import threading
import time

import pytest

import pydist as d
from support import rss, wait_until

MIB = 2**20


def square(x):
    return x * x


def nothing_runs(pids):
    """Nothing is under way, here or there."""
    return d.stats()["calls_outstanding"] == 0 and all(d.stats(pid)["calls_running"] == 0 for pid in pids)


class Count:
    """Counts without an end, and says how far it has come."""

    def __init__(self):
        self.taken = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.taken += 1
        return self.taken - 1


@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"batch_size": 7}, {"distributed": False}])
@pytest.mark.parametrize("n", [0, 1, 2, 500])
def test_values_come_in_order(workers, n, options):
    assert list(d.pgenerate(square, range(n), **options)) == [x * x for x in range(n)]
    assert list(d.pgenerate(square, (x for x in range(n)), **options)) == [x * x for x in range(n)]


def test_the_shortest_iterable_ends_it(workers):
    assert list(d.pgenerate(pow, itertools.count(2), [2, 3, 4])) == [4, 27, 256]
    assert list(d.pgenerate(pow, [2, 3], iter([2, 2, 2]))) == [4, 9]


def test_nothing_happens_before_the_first_value_is_wanted(workers):
    source = Count()
    values = d.pgenerate(square, source)
    assert source.taken == 0
    assert iter(values) is values
    assert next(values) == 0
    values.close()


def test_an_input_is_asked_only_for_what_a_worker_can_take(workers):
    source = Count()
    values = d.pgenerate(lambda x: time.sleep(0.05) or x, source, batch_size=1)
    next(values)
    assert source.taken <= 8
    values.close()


def test_the_look_ahead_is_bounded(workers):
    source = Count()
    values = d.pgenerate(square, source)
    for _ in range(3000):
        next(values)
    wait_until(lambda: nothing_runs(workers))
    assert source.taken < 3000 + 200_000
    values.close()


def test_a_long_element_does_not_let_others_run_ahead_without_bound(workers):
    gate = d.Future()

    def work(x):
        if x == 0:
            gate.fetch()
        return x

    source = Count()
    values = d.pgenerate(work, source)
    got = []
    thread = threading.Thread(target=lambda: got.append(next(values)))
    thread.start()
    wait_until(lambda: source.taken > 100)
    wait_until(lambda: d.stats()["calls_outstanding"] == 1, what="all but the first have ended")
    assert source.taken < 500_000
    gate.put(None)
    thread.join(20)
    assert got == [0]
    assert [next(values) for _ in range(1000)] == list(range(1, 1001))
    values.close()


def test_many_elements_in_constant_memory(workers):
    n = 300_000
    values = d.pgenerate(square, (x for x in range(n)))
    list(itertools.islice(values, 50_000))
    before = [rss(), *(d.remotecall_fetch(rss, pid) for pid in workers)]
    assert sum(1 for _ in values) == n - 50_000
    after = [rss(), *(d.remotecall_fetch(rss, pid) for pid in workers)]
    assert all(b - a < 20 * MIB for a, b in zip(before, after, strict=True)), (before, after)


def test_large_elements_in_constant_memory(workers):
    def source():
        for i in range(400):
            yield bytes(1_000_000 + i)

    values = d.pgenerate(len, source())
    list(itertools.islice(values, 100))
    before = rss()
    assert list(values) == [1_000_000 + i for i in range(100, 400)]
    assert rss() - before < 80 * MIB


@pytest.mark.parametrize("how", ["close", "drop", "error", "cycle"])
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_ended_early_nothing_keeps_running(workers, tmp_path, how, batch_size):
    refs = d.stats()["refs_held"] + d.stats()["refs_owned"]

    def work(x, folder):
        if x == 20:
            (folder / "long").touch()
            for _ in range(6000):
                time.sleep(0.01)
        return x

    source = Count()
    values = d.pgenerate(work, source, itertools.repeat(tmp_path), batch_size=batch_size)

    def consume(values):
        for x in values:
            if x == 15:
                raise LookupError("by the consumer")

    if how == "error":
        with pytest.raises(LookupError):
            consume(values)
    else:
        assert [next(values) for _ in range(16)] == list(range(16))
    if batch_size == 1 and how != "error":
        assert [next(values) for _ in range(4)] == [16, 17, 18, 19]
    wait_until((tmp_path / "long").exists)
    if how == "close":
        values.close()
    if how == "cycle":
        cycle = [values]
        cycle.append(cycle)
        del cycle
    del values
    gc.collect()
    wait_until(lambda: nothing_runs(workers))
    wait_until(lambda: gc.collect() >= 0 and d.stats()["refs_held"] + d.stats()["refs_owned"] <= refs)
    taken = source.taken
    assert d.pmap(square, range(50)) == [x * x for x in range(50)]
    assert source.taken == taken


def test_ended_early_with_coroutines_and_threads(workers):
    async def sleep(x):
        import asyncio

        await asyncio.sleep(0 if x == 0 else 60)
        return x

    values = d.pgenerate(sleep, itertools.count())
    assert next(values) == 0
    values.close()
    wait_until(lambda: nothing_runs(workers))

    def nap(x):
        for _ in range(6000 if x else 1):
            time.sleep(0.01)
        return x

    values = d.pgenerate(nap, itertools.count(), distributed=False)
    assert next(values) == 0
    values.close()
    wait_until(lambda: d.stats()["calls_running"] == 0)


def test_closed_before_it_began(workers):
    source = Count()
    values = d.pgenerate(square, source)
    values.close()
    assert list(values) == []
    assert source.taken == 0


def test_an_error_of_the_input_comes_after_the_values_before_it(workers):
    def source():
        yield from range(5)
        raise LookupError("the input is broken")

    values = d.pgenerate(square, source())
    assert list(itertools.islice(values, 5)) == [0, 1, 4, 9, 16]
    with pytest.raises(LookupError, match="the input is broken"):
        next(values)


def test_several_at_once_and_nested(workers):
    def inner(n):
        return sum(itertools.islice(d.pgenerate(square, itertools.count()), n))

    wanted = [sum(x * x for x in range(n)) for n in range(10)]
    first, second = d.pgenerate(inner, range(10)), d.pgenerate(inner, range(10), batch_size=1)
    assert list(zip(first, second, strict=True)) == list(zip(wanted, wanted, strict=True))


def test_from_a_worker(workers):
    def consume(n):
        return list(d.pgenerate(square, range(n))), os.getpid() != 0

    assert d.remotecall_fetch(consume, workers[0], 100) == ([x * x for x in range(100)], True)


def test_in_parallel_with_calls(workers):
    values = d.pgenerate(square, range(2000))
    for i, value in enumerate(values):
        assert value == i * i
        if i % 100 == 0:
            assert d.remotecall_fetch(square, workers[i % 2], i) == i * i
