"""pmap: order, batches, laziness, errors, threads, nesting."""

import asyncio
import itertools
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pydist as d
from support import run_script, touch, wait_until

BATCHES = [1, 7, "auto", 1000]


def square(x: int) -> int:
    return x * x


def fail_at(x: int, bad: int) -> int:
    if x == bad:
        raise ValueError(f"no good: {x}")
    return x


def inner_sum(n: int) -> int:
    return sum(d.pmap(square, range(n)))


class Source:
    """An iterator that counts what is taken from it."""

    def __init__(self, items: Iterator[int]) -> None:
        self.items = items
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        item = next(self.items)
        self.taken += 1
        return item


@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 101, 1000])
def test_results_are_in_order(workers, batch_size, n):
    result = d.pmap(square, range(n), batch_size=batch_size)
    assert type(result) is list
    assert result == [x * x for x in range(n)]


@pytest.mark.parametrize("batch_size", BATCHES)
def test_results_are_in_order_when_calls_are_not(workers, batch_size):
    def uneven(x: int) -> int:
        time.sleep(0.02 if x % 5 == 0 else 0)
        return x

    assert d.pmap(uneven, range(60), batch_size=batch_size) == list(range(60))


def test_all_workers_take_part(workers, tmp_path):
    def meet(me: int) -> int:
        touch(tmp_path / str(me))
        wait_until((tmp_path / str(1 - me)).exists, 20)
        return d.myid()

    assert sorted(d.pmap(meet, range(2), batch_size=1)) == workers


@pytest.mark.parametrize("batch_size", BATCHES)
def test_several_iterables(workers, batch_size):
    result = d.pmap(
        lambda a, b, c: (a, b, c), range(50), (str(i) for i in range(50)), [None] * 50, batch_size=batch_size
    )
    assert result == [(i, str(i), None) for i in range(50)]


@pytest.mark.parametrize(
    "items", [[3, 1, 2], (3, 1), "abc", {"a": 1, "b": 2}, range(5, 0, -2), iter([1, 2]), {5}, b"ab"]
)
def test_any_iterable(workers, items):
    expected = list(items)
    if isinstance(items, type(iter([]))):
        items = iter(expected)
    assert d.pmap(lambda x: (x, x), items) == [(x, x) for x in expected]


def test_results_of_any_kind(workers):
    assert d.pmap(lambda x: None if x % 2 else {x: [x]}, range(4)) == [{0: [0]}, None, {2: [2]}, None]


def test_large_elements(workers):
    assert d.pmap(len, (bytes(5_000_000 + i) for i in range(12))) == [5_000_000 + i for i in range(12)]


def test_input_is_not_exhausted_ahead_of_need(workers, tmp_path):
    gate = d.Future()
    source = Source(iter(range(50_000)))

    def wait_at_gate(x: int) -> int:
        (tmp_path / str(os.getpid())).touch(exist_ok=True)
        gate.fetch()
        return x

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(d.pmap, wait_at_gate, source)
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 20)
        assert 2 <= source.taken < 10_000
        gate.put(None)
        assert running.result(60) == list(range(50_000))
    assert source.taken == 50_000


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", BATCHES)
def test_the_first_error_is_raised(workers, batch_size):
    with pytest.raises(ValueError, match="no good: 17") as caught:
        d.pmap(fail_at, range(100), [17] * 100, batch_size=batch_size)
    assert isinstance(caught.value, d.RemoteException)
    assert caught.value.pid in workers


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_the_first_error_stops_an_endless_input(workers, batch_size):
    source = Source(itertools.count())
    with pytest.raises(ValueError, match="no good"):
        d.pmap(lambda x: fail_at(x, 500), source, batch_size=batch_size)
    assert source.taken < 1_000_000


def test_the_first_error_stops_the_rest(workers, tmp_path):
    def work(x: int) -> None:
        if x == 0:
            raise ValueError("no good")
        touch(tmp_path / str(x))
        time.sleep(0.01)

    source = Source(iter(range(2000)))
    with pytest.raises(ValueError, match="no good"):
        d.pmap(work, source, batch_size=1)
    taken = source.taken
    assert taken < 200
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)
    for pid in workers:
        wait_until(lambda pid=pid: d.stats(pid)["calls_running"] <= 1)
    assert source.taken == taken
    assert len(list(tmp_path.iterdir())) < 200


def test_an_error_of_the_input_is_raised(workers):
    def source() -> Iterator[int]:
        yield 1
        raise LookupError("the input is broken")

    with pytest.raises(LookupError, match="the input is broken"):
        d.pmap(square, source())
    assert d.pmap(square, [2]) == [4]


@pytest.mark.parametrize("batch_size", BATCHES)
def test_on_error_gives_a_value_in_place_of_the_error(workers, batch_size):
    seen: list[Exception] = []

    def on_error(error: Exception) -> str:
        seen.append(error)
        return f"instead of {error.captured}"

    result = d.pmap(lambda x: 10 // x, [2, 0, 5, 0], batch_size=batch_size, on_error=on_error)
    assert [result[0], result[2]] == [5, 2]
    assert all(r.startswith("instead of integer") for r in (result[1], result[3]))
    assert all(
        isinstance(error, ZeroDivisionError) and isinstance(error, d.RemoteException) for error in seen
    )


def test_on_error_may_raise(workers):
    def on_error(error: Exception) -> None:
        raise LookupError("raised by on_error")

    with pytest.raises(LookupError, match="raised by on_error"):
        d.pmap(fail_at, range(10), [3] * 10, on_error=on_error)


def test_what_cannot_be_pickled_raises(workers):
    with pytest.raises(TypeError, match="lock"):
        d.pmap(lambda x: x, [1, threading.Lock(), 3])
    assert d.pmap(square, range(5)) == [0, 1, 4, 9, 16]


def test_unknown_keyword_is_a_type_error(workers):
    with pytest.raises(TypeError, match="chunks"):
        d.pmap(square, [1], chunks=3)


# --- from everywhere ----------------------------------------------------------------------------------------


def test_from_several_threads(workers):
    with ThreadPoolExecutor(6) as threads:
        running = [threads.submit(d.pmap, lambda x, k=k: x * k, range(300)) for k in range(6)]
        assert [each.result(60) for each in running] == [[x * k for x in range(300)] for k in range(6)]


def test_from_a_worker(workers):
    assert d.remotecall_fetch(inner_sum, workers[0], 10) == 285


def test_nested(workers):
    assert d.pmap(inner_sum, range(12), batch_size=1) == [sum(x * x for x in range(n)) for n in range(12)]
    assert d.pmap(inner_sum, range(12)) == [sum(x * x for x in range(n)) for n in range(12)]


def test_workers_added_later_take_part(workers, fresh_workers):
    gate = threading.Event()
    more: list[int] = []

    def source() -> Iterator[int]:
        yield from range(4)
        gate.wait(30)
        yield from range(4, 60)

    def work(x: int) -> int:
        time.sleep(0.02)
        return d.myid()

    assert set(d.pmap(work, range(20), batch_size=1)) == set(workers)
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(d.pmap, work, source(), batch_size=1)
        more.extend(fresh_workers(1))
        gate.set()
        running.result(60)
    assert set(d.pmap(work, range(30), batch_size=1)) == {*workers, *more}


def test_without_workers_it_runs_here():
    done = run_script("""
        import os
        import pydist as d

        assert d.pmap(lambda x: (x, os.getpid()), range(3)) == [(x, os.getpid()) for x in range(3)]
        assert d.workers() == [1]
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_not_distributed_it_uses_threads_here(workers, batch_size):
    lock = threading.Lock()

    def work(x: int) -> tuple[int, int]:
        with lock:
            return x, os.getpid()

    assert d.pmap(work, range(50), distributed=False, batch_size=batch_size) == [
        (x, os.getpid()) for x in range(50)
    ]
    with pytest.raises(ValueError, match="no good: 17"):
        d.pmap(fail_at, range(50), [17] * 50, distributed=False)


def test_not_distributed_calls_run_at_once():
    barrier = threading.Barrier(2, timeout=20)
    assert d.pmap(lambda x: barrier.wait() >= 0, range(2), distributed=False, batch_size=1) == [True, True]


def test_elements_of_a_batch_of_an_asynchronous_function_run_at_once(workers, tmp_path):
    async def meet(x: int) -> int:
        batch = tmp_path / str(x // 20)
        batch.mkdir(exist_ok=True)
        (batch / str(x)).touch()
        while len(list(batch.iterdir())) < 20:
            await asyncio.sleep(0.005)
        return x

    assert d.pmap(meet, range(80), batch_size=20) == list(range(80))


def test_asynchronous_functions_raise_and_keep_order(workers):
    async def work(x: int) -> int:
        await asyncio.sleep(0.001 * (x % 7))
        return fail_at(x, -1)

    async def fail(x: int) -> int:
        await asyncio.sleep(0.001)
        return fail_at(x, 13)

    assert d.pmap(work, range(200)) == list(range(200))
    with pytest.raises(ValueError, match="no good: 13"):
        d.pmap(fail, range(30))


def test_functions_that_are_named_and_captured(workers, tmp_path):
    table = {i: str(i) for i in range(1000)}
    assert d.pmap(table.get, range(1000)) == [str(i) for i in range(1000)]
    assert d.pmap(Path, ["a", "b"]) == [Path("a"), Path("b")]
    assert d.pmap(lambda x: table[x], [5]) == ["5"]


def test_elements_that_are_futures(workers):
    futures = [d.remotecall(square, workers[i % 2], i) for i in range(20)]
    assert d.pmap(d.fetch, futures) == [i * i for i in range(20)]
