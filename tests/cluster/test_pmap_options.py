"""pmap: retries, pools, progress, and every combination of its keywords beside the built-in map."""

import itertools
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import pydist as d
from support import wait_until

N = 100
BAD = {3, 17, 50, 51, 99}
"""Elements that always fail."""
SHAKY = {0, 18, 40, 98}
"""Elements that fail at the first attempt."""


class Bar:
    """A bar like those of tqdm."""

    def __init__(self, total=None):
        self.total, self.n, self.closed = total, 0, False

    def update(self, n=1):
        self.n += n

    def close(self):
        self.closed = True


def work(x, folder):
    """Square a number; some fail always, some once, whichever process runs them."""
    if x in SHAKY:
        try:
            (folder / str(x)).touch(exist_ok=False)
        except FileExistsError:
            pass
        else:
            raise OSError(f"shaky {x}")
    if x in BAD:
        raise ValueError(f"bad {x}")
    return x * x


async def work_async(x, folder):
    return work(x, folder)


def check_all(state, error):
    return True


def check_none(state, error):
    return False


def check_kind(state, error):
    assert isinstance(error, d.RemoteException)
    return (state or 0) + 1, isinstance(error, OSError)


CHECKS = {"no check": None, "all": check_all, "none": check_none, "kind": check_kind}
DELAYS = {
    "none": lambda: (),
    "list": lambda: [0, 0.001],
    "iterator": lambda: iter([0, 0]),
    "back-off": lambda: d.ExponentialBackOff(2, first_delay=0.001, factor=1),
}


def expected(on_error: bool, retries: bool, check: str) -> list[object]:
    """What the built-in map gives, with the rules of the failures written out."""

    def one(x: int) -> object:
        shaky = x in SHAKY and not (retries and check != "none")
        if shaky or x in BAD:
            if not on_error:
                raise OSError if shaky else ValueError
            return ("OSError" if shaky else "ValueError", x)
        return x * x

    return list(map(one, range(N)))


def describe(error: Exception) -> tuple[str, int]:
    assert isinstance(error, d.RemoteException)
    return type(error.captured).__name__, int(str(error).split()[1])


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("delays", DELAYS)
@pytest.mark.parametrize("on_error", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, "auto", 1000])
@pytest.mark.parametrize("where", ["default", "pool", "threads"])
def test_every_combination_beside_map(workers, tmp_path, where, batch_size, on_error, delays, check):
    """All keywords in all combinations: a plain function of a range, an asynchronous one of an iterator."""
    options = {
        "batch_size": batch_size,
        "retry_check": CHECKS[check],
        "on_error": describe if on_error else None,
    }
    if where == "pool":
        options["pool"] = d.CachingPool(workers)
    options["distributed"] = where != "threads"
    for f, items in ((work, range(N)), (work_async, iter(range(N)))):
        folder = tmp_path / f.__name__
        folder.mkdir()
        bars = [Bar()]
        options |= {"retry_delays": DELAYS[delays](), "progress": bars[0]}
        try:
            wanted = expected(on_error, delays != "none", check)
        except (OSError, ValueError):
            with pytest.raises((OSError, ValueError), match=r"^(bad|shaky) \d+"):
                d.pmap(f, items, [folder] * N, **options)
        else:
            assert d.pmap(f, items, [folder] * N, **options) == wanted
            assert bars[0].n == N


def test_generated_combinations_beside_map(workers, tmp_path):
    """pgenerate gives what map gives, up to the first error in the order."""
    for i, (batch_size, retries) in enumerate(itertools.product([1, 7, "auto"], [(), [0]])):
        (tmp_path / str(i)).mkdir()
        first = min(BAD if retries else BAD | SHAKY)
        values = d.pgenerate(
            work, range(N), [tmp_path / str(i)] * N, batch_size=batch_size, retry_delays=retries
        )
        assert list(itertools.islice(values, first)) == [x * x for x in range(first)]
        with pytest.raises((OSError, ValueError), match=rf"^(bad|shaky) {first}\b"):
            next(values)
        with pytest.raises(StopIteration):
            next(values)


# --- retries ------------------------------------------------------------------------------------------------


def test_a_retry_waits_for_its_delay_and_others_go_on_meanwhile(workers, tmp_path):
    def fail_once(x, path):
        if x == 0 and not path.exists():
            path.touch()
            raise ValueError("once")
        return x, time.monotonic()

    begin = time.monotonic()
    result = d.pmap(fail_once, range(20), [tmp_path / "failed"] * 20, retry_delays=[0.3], batch_size=1)
    assert [x for x, _ in result] == list(range(20))
    assert result[0][1] - begin >= 0.3
    assert max(at for _, at in result[1:]) < result[0][1]


def test_a_retry_goes_to_another_worker_first(workers):
    def fail_on_first(x, bad):
        if d.myid() == bad:
            raise ValueError("not here")
        return d.myid()

    for bad in workers:
        (other,) = set(workers) - {bad}
        assert d.pmap(fail_on_first, [0] * 4, [bad] * 4, retry_delays=[0.5], batch_size=1) == [other] * 4


def test_the_check_sees_each_failure_with_the_state_of_its_element(workers):
    seen = []

    def check(state, error):
        seen.append((str(error), state))
        return (state or 0) + 1, True

    def fail(x):
        raise ValueError(f"no {x}")

    assert d.pmap(fail, range(3), retry_delays=[0, 0], retry_check=check, on_error=str) == [
        "no 0",
        "no 1",
        "no 2",
    ]
    assert sorted(seen, key=str) == sorted(((f"no {x}", s) for x in range(3) for s in (None, 1)), key=str)


@pytest.mark.parametrize("name", ["retry_check", "on_error"])
def test_an_error_of_the_users_functions_is_raised(workers, name):
    def broken(*args):
        raise LookupError("broken")

    with pytest.raises(LookupError, match="broken"):
        d.pmap(lambda x: 1 / x, [1, 0], retry_delays=[0], **{name: broken})
    assert d.pmap(abs, [-1]) == [1]


def test_only_the_element_whose_result_cannot_be_pickled_fails(workers):
    def make(x):
        return threading.Lock() if x == 5 else x

    for batch_size in (1, 20):
        result = d.pmap(make, range(20), batch_size=batch_size, on_error=lambda error: str(error))
        assert "lock" in result[5]
        assert [r for x, r in enumerate(result) if x != 5] == [x for x in range(20) if x != 5]


class Unloadable:
    """It can be pickled, but not unpickled on a worker."""

    def __reduce__(self):
        return _only_on_head, ()


def _only_on_head():
    if d.myid() != 1:
        raise RuntimeError("it cannot be unpickled here")
    return Unloadable()


def test_only_the_element_that_cannot_be_unpickled_fails(workers):
    items = [1, 2, Unloadable(), 4]
    result = d.pmap(lambda x: x, items, batch_size=4, on_error=lambda error: str(error))
    assert result[:2] + result[3:] == [1, 2, 4]
    assert "unpickled here" in result[2]


def test_what_cannot_be_pickled_is_named_with_its_place(workers):
    with pytest.raises(TypeError, match=r"iterables\[1\]\[7\]"):
        d.pmap(lambda a, b: a, range(10), [0] * 7 + [threading.Lock()] + [0] * 2, batch_size=5)


def test_stop_iteration_is_an_error_like_others(workers):
    def stop(x):
        if x == 4:
            raise StopIteration
        return x

    result = d.pmap(stop, range(8), batch_size=8, on_error=lambda error: error.type_name)
    assert result == [0, 1, 2, 3, "StopIteration", 5, 6, 7]


# --- pools --------------------------------------------------------------------------------------------------


def test_a_pool_may_come_first_or_by_keyword(workers):
    def who(x):
        return d.myid()

    for pool in (d.WorkerPool(workers[:1]), d.CachingPool(workers[:1])):
        assert set(d.pmap(who, pool, range(20))) == {workers[0]}
        assert set(d.pmap(who, range(20), pool=pool)) == {workers[0]}
        assert set(d.pgenerate(who, pool, range(20))) == {workers[0]}
        assert pool.isready()
        with pytest.raises(TypeError, match="two pools"):
            d.pmap(who, pool, range(3), pool=pool)
    assert set(d.pmap(who, range(20), pool=iter(workers[1:]))) == {workers[1]}


def test_a_pool_without_workers_is_an_error_at_once(workers):
    for pool in ([], d.WorkerPool([]), d.CachingPool([])):
        with pytest.raises(d.NoWorkersError):
            d.pmap(abs, [1], pool=pool)
    with pytest.raises(ValueError, match="1000"):
        d.pmap(abs, [1], pool=[1000])


def test_process_1_may_be_one_of_the_workers(workers):
    result = d.pmap(lambda x: time.sleep(0.01) or d.myid(), range(40), pool=[1, *workers], batch_size=1)
    assert set(result) == {1, *workers}


def test_a_caching_pool_sends_a_function_once_for_several_maps(workers):
    table = np.zeros(300_000)
    pool = d.CachingPool(workers)

    def look_up(i):
        return table[i]

    d.pmap(look_up, pool, range(10))
    wait_until(lambda: d.stats()["queued_bytes"] == 0)
    before = d.stats()["bytes_sent"]
    for _ in range(5):
        d.pmap(look_up, pool, range(10))
    assert d.stats()["bytes_sent"] - before < table.nbytes / 10


def test_a_closure_over_a_large_array_is_sent_once_to_each_worker(fresh_workers):
    """200 MB, 1,000 elements on 4 workers: the array goes at most once to each, and lies once in memory."""
    pids = fresh_workers(4)
    table = np.arange(25_000_000, dtype=np.float64)
    before = d.stats()["bytes_sent"]
    result = d.pmap(lambda i: table[i], range(1000), pool=pids, batch_size=1)
    assert result == list(range(1000))
    assert d.stats()["bytes_sent"] - before < 4 * table.nbytes + 2_000_000
    assert d.stats()["shared_bytes"] < 1.01 * table.nbytes


def test_workers_that_come_while_a_map_runs_are_taken_up(workers, fresh_workers, tmp_path):
    """They get elements though nothing that ran before has ended."""
    gate = d.Future()

    def work(x, folder):
        (folder / str(d.myid())).touch()
        if d.myid() in workers:
            gate.fetch()
        return d.myid()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(d.pmap, work, range(4), [tmp_path] * 4, batch_size=1)
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
        (new,) = fresh_workers(1)
        wait_until((tmp_path / str(new)).exists)
        gate.put(None)
        assert new in running.result(30)


def test_from_inside_a_worker_all_workers_take_part(workers):
    def outer(n):
        return set(d.pmap(lambda x: time.sleep(0.005) or d.myid(), range(n), batch_size=1))

    assert d.remotecall_fetch(outer, workers[0], 40) == set(workers)


def test_nested_three_deep_from_several_threads(workers):
    def inner(n):
        return sum(d.pmap(lambda x: x + 1, range(n)))

    def middle(n):
        return sum(d.pmap(inner, range(n)))

    wanted = [sum(sum(range(1, k + 1)) for k in range(n)) for n in range(6)]
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(d.pmap, middle, range(6), batch_size=1) for _ in range(4)]
        assert [each.result(60) for each in running] == [wanted] * 4


# --- asynchronous -------------------------------------------------------------------------------------------


def test_a_hundred_sleeping_coroutines_run_at_once(workers):
    async def nap(x):
        import asyncio

        await asyncio.sleep(1)
        return x

    begin = time.monotonic()
    assert d.pmap(nap, range(100)) == list(range(100))
    assert time.monotonic() - begin < 4
    begin = time.monotonic()
    assert d.pmap(nap, iter(range(20)), distributed=False) == list(range(20))
    assert time.monotonic() - begin < 4


def test_a_plain_function_that_returns_coroutines(workers):
    async def double(x):
        if x == 3:
            raise ValueError("no good: 3")
        return 2 * x

    result = d.pmap(lambda x: double(x), range(6), batch_size=6, on_error=str)
    assert result == [0, 2, 4, "no good: 3", 8, 10]


def test_the_first_error_ends_the_other_coroutines_of_its_batch(workers, tmp_path):
    async def work(x, folder):
        import asyncio

        try:
            if x == 0:
                await asyncio.sleep(0.05)
                raise ValueError("no good")
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            (folder / str(x)).touch()
            raise

    with pytest.raises(ValueError, match="no good"):
        d.pmap(work, range(5), [tmp_path] * 5, batch_size=5)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 4)


# --- scheduling ---------------------------------------------------------------------------------------------


def test_an_idle_worker_takes_over_what_waits_behind_a_long_call(workers, tmp_path):
    """The long call holds up only what it must, though both were sent in one batch."""
    gate = d.Future()

    def work(x, gate):
        if x == 0:
            gate.fetch()
        return d.myid()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(
            lambda: list(
                zip(range(40), d.pgenerate(work, range(40), [gate] * 40, batch_size=40), strict=True)
            )
        )
        wait_until(lambda: d.stats()["calls_outstanding"] == 1, 20)
        gate.put(None)
        assert len(running.result(30)) == 40
    gate = d.Future()
    done = tmp_path / "done"

    def work_and_tell(x, gate):
        if x == 0:
            gate.fetch()
        if x == 39:
            done.touch()
        return d.myid()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(d.pmap, work_and_tell, range(40), [gate] * 40, batch_size=40)
        wait_until(done.exists, 20, "the rest of the batch runs elsewhere")
        gate.put(None)
        result = running.result(30)
    assert len(set(result[1:])) == 1
    assert result[0] != result[1]


def test_elements_of_one_map_run_one_at_a_time_on_a_worker(workers):
    active = []

    def work(x, active=active):
        active.append(x)
        time.sleep(0.003)
        most = len(active)
        active.remove(x)
        return most

    assert set(d.pmap(work, range(100), batch_size=1)) == {1}


# --- progress -----------------------------------------------------------------------------------------------


def test_progress_counts_every_element_once(workers):
    for f, size in ((lambda x: x, "auto"), (lambda x: 1 // (x % 3), 7)):
        bars = []

        def make(total, bars=bars):
            bars.append(Bar(total))
            return bars[0]

        d.pmap(f, range(500), batch_size=size, on_error=str, progress=make)
        assert (bars[0].total, bars[0].n, bars[0].closed) == (500, 500, True)
        bar = Bar()
        assert len(list(d.pgenerate(f, iter(range(50)), on_error=str, progress=bar))) == 50
        assert (bar.n, bar.closed) == (50, False)


def test_progress_is_a_bar_of_tqdm_with_rate_and_time_left(workers, capsys):
    pytest.importorskip("tqdm")
    assert d.pmap(abs, range(100), progress=True) == list(range(100))
    shown = capsys.readouterr().err
    assert "100/100" in shown
    assert "it/s" in shown
    assert "<" in shown


def test_a_bar_is_closed_after_an_error(workers):
    bar = Bar()
    with pytest.raises(ZeroDivisionError):
        d.pmap(lambda x: 1 / x, [0], progress=lambda total: bar)
    assert bar.closed


# --- random numbers -----------------------------------------------------------------------------------------


def test_random_streams_do_not_depend_on_the_scheduling(workers):
    def draw(stream):
        return stream.random(3).tolist()

    wanted = [draw(stream) for stream in d.random_streams(9, 30)]
    for options in ({"batch_size": 1}, {"batch_size": 7}, {"pool": workers[:1]}, {"distributed": False}):
        assert d.pmap(draw, d.random_streams(9, 30), **options) == wanted


# --- wrong use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pmap", "pgenerate"])
def test_wrong_parameters_are_errors_at_once(workers, name):
    function = getattr(d, name)
    for arguments, options, match in (
        ((abs,), {}, "iterable"),
        ((abs, d.WorkerPool(workers)), {}, "iterable"),
        ((3, [1]), {}, "callable"),
        ((abs, 3), {}, "iterable"),
        ((abs, [1]), {"batch_size": "big"}, "batch_size"),
        ((abs, [1]), {"batch_size": 1.5}, "batch_size"),
        ((abs, [1]), {"on_error": 3}, "on_error"),
        ((abs, [1]), {"retry_delays": 3}, "retry_delays"),
        ((abs, [1]), {"retry_check": 3}, "retry_check"),
        ((abs, [1]), {"chunks": 3}, "chunks"),
    ):
        with pytest.raises(TypeError, match=match):
            function(*arguments, **options)
    with pytest.raises(ValueError, match="batch_size"):
        function(abs, [1], batch_size=0)


def test_respawn_is_for_process_1_alone(workers):
    def try_it():
        with pytest.raises(RuntimeError, match="process 1"):
            d.pmap(abs, [1], respawn=True)
        return os.getpid(), sys.version_info[0]

    assert d.remotecall_fetch(try_it, workers[0])[1] == 3
