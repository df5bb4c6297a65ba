"""Futures: the value, waiting, identity, travelling, cancelling, and their end."""

import asyncio
import concurrent.futures
import copy
import gc
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator

import cloudpickle
import numpy as np
import pytest

import pydist as d
from support import hold_gil, kill_self, nap, touch, wait_until

MB = 1_000_000
kept: list[object] = []


def fail(text: str) -> None:
    raise ValueError(text)


def keep(item: object) -> None:
    kept.append(item)


def drop() -> None:
    kept.clear()
    gc.collect()


def put(future: d.Future, value: object) -> None:
    future.put(value)


def make(n: int) -> bytes:
    return bytes(n)


def owned(pid: int) -> int:
    return d.stats(pid)["refs_owned"]


@pytest.fixture(params=["here", "worker"])
def owner(request: pytest.FixtureRequest, workers: list[int]) -> int:
    return 1 if request.param == "here" else workers[0]


# --- the value ----------------------------------------------------------------------------------------------


def test_an_empty_future_gets_its_value_by_put(owner):
    future = d.Future(owner)
    assert not future.isready()
    future.put([1, "two"])
    assert future.isready()
    assert future.fetch() == [1, "two"]
    assert future.where == owner
    assert future.whence == 1


def test_a_future_without_pid_is_made_here(workers):
    future = d.Future()
    assert (future.where, future.whence) == (1, 1)
    there = d.remotecall_fetch(d.Future, workers[0])
    assert (there.where, there.whence) == (workers[0], workers[0])


def test_a_future_on_an_unknown_process_is_a_value_error(workers):
    with pytest.raises(ValueError, match="987654"):
        d.Future(987654)


@pytest.mark.parametrize("value", [None, False, 0, "", ValueError("a value"), TimeoutError("also a value")])
def test_any_value_can_be_put(owner, value):
    future = d.Future(owner)
    future.put(value)
    assert repr(future.fetch()) == repr(value)


def test_a_second_put_is_a_runtime_error(owner, workers):
    future = d.Future(owner)
    future.put(1)
    with pytest.raises(RuntimeError):
        future.put(2)
    for pid in workers:
        with pytest.raises(RuntimeError):
            d.remotecall_fetch(put, pid, future, 3)
    assert future.fetch() == 1


def test_a_put_after_another_process_has_put_is_a_runtime_error(owner, workers):
    future = d.Future(owner)
    d.remotecall_fetch(put, workers[1], future, 1)
    with pytest.raises(RuntimeError):
        future.put(2)
    assert future.fetch() == 1


def test_the_future_of_a_call_cannot_be_put(workers):
    future = d.remotecall_wait(pow, workers[0], 2, 3)
    with pytest.raises(RuntimeError):
        future.put(9)
    assert future.fetch() == 8


def test_of_many_puts_at_once_one_wins(owner, workers):
    future = d.Future(owner)

    def attempt(i: int) -> int | None:
        try:
            d.remotecall_fetch(put, workers[i % 2], future, i)
        except RuntimeError:
            return None
        return i

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        won = [i for i in threads.map(attempt, range(32)) if i is not None]
    assert won == [future.fetch()]


def test_fetch_gives_the_same_object_again(workers):
    future = d.remotecall(list, workers[0], "abc")
    value = future.fetch()
    assert value == ["a", "b", "c"]
    assert future.fetch() is value


def test_a_fetched_value_outlives_its_owner(fresh_workers):
    (pid,) = fresh_workers(1)
    fetched, not_fetched = d.remotecall(make, pid, MB), d.Future(pid)
    value = fetched.fetch()
    d.rmprocs(pid)
    assert fetched.fetch() is value
    with pytest.raises(d.ProcessExitedException):
        not_fetched.fetch(timeout=5)


def test_fetch_raises_each_time_anew(workers):
    future = d.remotecall(fail, workers[0], "no good")
    for _ in range(3):
        with pytest.raises(ValueError, match="no good") as caught:
            future.fetch()
        assert isinstance(caught.value, d.RemoteException)


def test_put_reaches_those_who_wait(owner, workers):
    future = d.Future(owner)
    waiting = [d.remotecall(d.fetch, pid, future) for pid in workers * 2]
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        here = [threads.submit(future.fetch, timeout=20) for _ in range(4)]
        future.put("value")
        assert [each.result() for each in here] == ["value"] * 4
    assert [each.fetch(timeout=20) for each in waiting] == ["value"] * 4


# --- waiting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fetch", "wait"])
def test_timeouts_raise_and_change_nothing(owner, method):
    future = d.Future(owner)
    for timeout in (0, 0.05, 0.2):
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            getattr(future, method)(timeout=timeout)
        assert timeout * 0.9 <= time.monotonic() - begin < timeout + 1
    assert not future.isready()
    future.put(1)
    assert getattr(future, method)(timeout=0.5) in (1, future)
    assert future.fetch(timeout=0) == 1


def test_wait_returns_the_future(owner):
    future = d.Future(owner)
    future.put(1)
    assert future.wait() is future
    assert future.wait(timeout=1) is future


def test_wait_of_a_failed_call_leaves_the_error_to_fetch(workers):
    future = d.remotecall(fail, workers[0], "no good")
    try:
        future.wait(timeout=10)
    except ValueError:  # where wait raises it, fetch still must
        pass
    assert future.isready()
    with pytest.raises(ValueError, match="no good"):
        future.fetch()


def test_wait_does_not_move_the_value(workers):
    future = d.remotecall(make, workers[0], 20 * MB)
    future.wait(timeout=20)
    before = d.stats()["bytes_received"]
    future.wait()
    assert future.isready()
    assert d.stats()["bytes_received"] - before < MB
    assert len(future.fetch()) == 20 * MB
    assert d.stats()["bytes_received"] - before < 21 * MB


def test_isready_asks_the_owner(workers):
    future = d.Future(workers[0])
    assert not future.isready()
    d.remotecall_fetch(put, workers[1], future, 1)
    assert future.isready()
    assert d.remotecall_fetch(d.Future.isready, workers[1], future)


# --- one item -----------------------------------------------------------------------------------------------


def test_an_item_moves_alone(workers):
    future = d.remotecall(lambda: {"small": "item", "large": bytes(50 * MB)}, workers[0])
    future.wait(timeout=20)
    before = d.stats()["bytes_received"]
    assert future["small"] == "item"
    assert d.stats()["bytes_received"] - before < MB


def test_items_of_all_kinds(workers):
    array = np.arange(12.0).reshape(3, 4)
    future = d.remotecall(lambda: array, workers[0])
    assert np.array_equal(future[1], array[1])
    assert future[2, 3] == 11
    assert np.array_equal(future[:, 1:3], array[:, 1:3])
    assert d.remotecall(list, workers[0], "abc")[-1] == "c"
    future.fetch()
    assert future[2, 3] == 11


def test_an_item_that_is_not_there(workers):
    with pytest.raises(KeyError, match="b"):
        d.remotecall(dict, workers[0], a=1)["b"]
    with pytest.raises(IndexError):
        d.remotecall(list, workers[0], "abc")[3]
    with pytest.raises(ValueError, match="no good"):
        d.remotecall(fail, workers[0], "no good")[0]


def test_an_item_of_a_future_that_has_no_value_yet(owner):
    future = d.Future(owner)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        item = thread.submit(lambda: future[1])
        future.put("abc")
        assert item.result(timeout=10) == "b"


# --- asyncio ------------------------------------------------------------------------------------------------


def test_await_gives_the_value_without_blocking_the_loop(workers):
    future = d.Future(workers[0])

    async def putter() -> None:
        await asyncio.sleep(0.01)
        future.put("value")

    async def main() -> object:
        task = asyncio.create_task(putter())
        value = await future
        await task
        return value, await future

    assert asyncio.run(main()) == ("value", "value")


def test_many_futures_are_awaited_at_once(workers):
    async def get(future: d.Future) -> object:
        return await future

    async def main() -> list[object]:
        return await asyncio.gather(*(get(d.remotecall(pow, workers[i % 2], i, 2)) for i in range(200)))

    assert asyncio.run(main()) == [i * i for i in range(200)]


def test_await_raises_and_can_time_out(workers):
    empty = d.Future(workers[0])

    async def get(future: d.Future) -> object:
        return await future

    async def main() -> None:
        with pytest.raises(ValueError, match="no good") as caught:
            await d.remotecall(fail, workers[0], "no good")
        assert isinstance(caught.value, d.RemoteException)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(get(empty), 0.05)

    asyncio.run(main())
    empty.put(1)
    assert asyncio.run(get(empty)) == 1


# --- cancelling ---------------------------------------------------------------------------------------------


def test_cancelled_error_is_that_of_concurrent_futures():
    assert d.CancelledError is concurrent.futures.CancelledError


def test_a_call_that_has_not_started_never_does(workers, tmp_path):
    held = d.remotecall(hold_gil, workers[0], 1.0, str(tmp_path / "held"))
    wait_until((tmp_path / "held").exists)
    queued = [d.remotecall(touch, workers[0], str(tmp_path / f"queued{i}")) for i in range(20)]
    assert all(future.cancel() for future in queued)
    for future in queued:
        with pytest.raises(concurrent.futures.CancelledError):
            future.fetch(timeout=10)
    assert held.fetch(timeout=10) == "released"
    assert d.remotecall_fetch(d.myid, workers[0]) == workers[0]
    assert not list(tmp_path.glob("queued*"))


def nap_and_note(started: str, ended: str) -> None:
    try:
        nap(60, started)
    finally:
        touch(ended)


async def sleep_and_note(started: str, ended: str) -> None:
    touch(started)
    try:
        await asyncio.sleep(60)
    finally:
        touch(ended)


@pytest.mark.parametrize("f", [nap_and_note, sleep_and_note])
def test_a_call_that_runs_is_interrupted(workers, tmp_path, f):
    started, ended = tmp_path / "started", tmp_path / "ended"
    ospid = d.remotecall_fetch(os.getpid, workers[0])
    bystander = d.remotecall(nap, workers[0], 0.5)
    future = d.remotecall(f, workers[0], str(started), str(ended))
    wait_until(started.exists)
    assert future.cancel() is True
    with pytest.raises(concurrent.futures.CancelledError):
        future.fetch(timeout=10)
    wait_until(ended.exists)
    assert bystander.fetch(timeout=10) == 0.5
    assert d.remotecall_fetch(os.getpid, workers[0]) == ospid
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)


def test_a_call_that_has_finished_is_not_cancelled(workers):
    future = d.remotecall_wait(pow, workers[0], 2, 3)
    assert future.cancel() is False
    assert future.fetch() == 8
    assert future.cancel() is False


def test_cancelling_wakes_all_who_wait(workers, tmp_path):
    future = d.remotecall(nap, workers[0], 60, str(tmp_path / "started"))
    waiting = d.remotecall(d.fetch, workers[1], future)
    wait_until((tmp_path / "started").exists)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        here = thread.submit(future.fetch, timeout=20)
        assert future.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            here.result()
    with pytest.raises((concurrent.futures.CancelledError, d.RemoteException)):
        waiting.fetch(timeout=20)


# --- identity -----------------------------------------------------------------------------------------------


def test_identity_is_whence_and_id(workers):
    future = d.remotecall(pow, workers[0], 2, 3)
    back = d.remotecall_fetch(lambda f: f, workers[1], future)
    assert back == future
    assert hash(back) == hash(future)
    assert (back.whence, back.id, back.where) == (future.whence, future.id, future.where)
    assert (future.whence, future.where, type(future.id)) == (1, workers[0], int)
    assert len({future, back}) == 1


def test_different_futures_differ(workers):
    futures = [d.remotecall(pow, workers[i % 2], 2, 3) for i in range(10)] + [d.Future() for _ in range(10)]
    futures += [d.remotecall_fetch(d.Future, pid) for pid in workers]
    assert len(set(futures)) == len({(future.whence, future.id) for future in futures}) == 22
    assert futures[0] != futures[1]
    assert futures[0] != (futures[0].whence, futures[0].id)


def test_repr_names_the_processes(workers):
    future = d.Future(workers[1])
    assert "Future" in repr(future)
    assert str(workers[1]) in repr(future)


# --- travelling ---------------------------------------------------------------------------------------------


def unpack(container: object) -> object:
    """Fetch the one future in a container."""
    if isinstance(container, d.Future):
        return container.fetch(timeout=20)
    if isinstance(container, dict):
        container = container.values()
    (inner,) = container
    return unpack(inner)


class Box:
    def __init__(self, content: object) -> None:
        self.content = content

    def __iter__(self) -> Iterator[object]:
        yield self.content


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: f,
        lambda f: [f],
        lambda f: {"key": (f,)},
        lambda f: {f},
        lambda f: np.array([f], dtype=object),
        Box,
    ],
)
def test_futures_travel_in_arguments_and_results(owner, workers, wrap):
    future = d.Future(owner)
    there = [d.remotecall(unpack, pid, wrap(future)) for pid in workers]
    back = d.remotecall_fetch(lambda c: c, workers[1], wrap(future))
    future.put("value")
    assert [each.fetch(timeout=20) for each in there] == ["value"] * 2
    assert unpack(back) == "value"


def test_futures_travel_in_closures_and_keywords(workers):
    future = d.remotecall(pow, workers[0], 2, 3)
    assert d.remotecall_fetch(lambda: future.fetch(), workers[1]) == 8
    assert d.remotecall_fetch(lambda *, key: key.fetch(), workers[1], key=future) == 8


def test_futures_travel_in_futures(workers):
    inner, outer = d.Future(workers[0]), d.Future(workers[1])
    outer.put([inner])
    inner.put("value")
    assert outer.fetch()[0].fetch(timeout=10) == "value"
    assert d.remotecall_fetch(lambda: outer.fetch()[0].fetch(), workers[0]) == "value"


def start_call(pid: int) -> list[d.Future]:
    return [d.remotecall(pow, pid, 2, 3)]


def test_a_future_made_on_a_worker_is_good_everywhere(workers):
    one, two = workers
    (future,) = d.remotecall_fetch(start_call, one, two)
    assert (future.whence, future.where) == (one, two)
    assert d.remotecall_fetch(unpack, two, future) == 8
    assert future.fetch(timeout=10) == 8


def test_a_future_goes_from_hand_to_hand(fresh_workers):
    a, b, c = fresh_workers(3)

    def forward(future: d.Future, path: list[int]) -> object:
        if not path:
            return future.fetch(timeout=20)
        return d.remotecall(forward, path[0], future, path[1:])

    def begin() -> d.Future:
        return d.remotecall(forward, b, d.remotecall(lambda: "from a", a), [c])

    handed = d.remotecall_fetch(begin, a)
    for _ in range(3):
        if not isinstance(handed, d.Future):
            break
        handed = handed.fetch(timeout=20)
    assert handed == "from a"


def test_copies_here_are_good(workers):
    future = d.remotecall(pow, workers[0], 2, 3)
    twin = copy.copy(future)
    assert twin == future
    del future
    gc.collect()
    assert twin.fetch(timeout=10) == 8


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_a_future_pickled_outside_the_cluster_is_invalid(owner, pickler):
    future = d.Future(owner)
    before = owned(owner)
    invalid = pickle.loads(pickler.dumps({"future": future}))["future"]
    uses: list[Callable[[], object]] = [
        lambda: invalid.fetch(timeout=1),
        lambda: invalid.wait(timeout=1),
        lambda: invalid.put(1),
        lambda: invalid.isready(),
        lambda: invalid[0],
        lambda: invalid.cancel(),
        lambda: d.fetch(invalid),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r".+"):
            use()
    future.put(1)
    assert future.fetch() == 1
    assert owned(owner) <= before


# --- their end ----------------------------------------------------------------------------------------------


@pytest.fixture
def settled(workers: list[int]) -> Callable[[], bool]:
    """Give a function that says whether all processes own and hold no more references than now."""

    def now() -> list[int]:
        gc.collect()
        return [
            n
            for pid in (1, *workers)
            for stats in [d.stats(pid)]
            for n in (stats["refs_owned"], stats["refs_held"])
        ]

    base = now()  # a test that failed may have left some
    return lambda: all(n <= before for n, before in zip(now(), base, strict=True))


def test_the_owner_frees_what_nobody_refers_to(workers, settled):
    everyone = [1, *workers]
    futures = [d.remotecall(pow, workers[i % 2], i, 2) for i in range(100)]
    futures += [d.Future(pid) for pid in everyone]
    for future in futures[:100]:
        future.wait()
    assert owned(1) >= 1
    assert all(owned(pid) >= 1 for pid in workers)
    del futures, future
    wait_until(settled)


def test_the_owner_lets_go_of_a_fetched_value(workers):
    before = owned(workers[0])
    future = d.remotecall(make, workers[0], MB)
    assert len(future.fetch()) == MB
    wait_until(lambda: owned(workers[0]) <= before)
    assert len(future.fetch()) == MB


def kept_is_ready() -> bool:
    return kept[0].isready()


def put_kept(value: object) -> object:
    kept[0].put(value)
    return kept[0].fetch()


def test_a_future_that_another_process_keeps_is_not_freed(workers, settled):
    one, two = workers
    future = d.Future(one)
    d.remotecall_fetch(keep, two, future)
    del future
    gc.collect()
    assert d.remotecall_fetch(kept_is_ready, two) is False
    assert not settled()
    assert d.remotecall_fetch(put_kept, two, "still here") == "still here"
    d.remotecall_fetch(drop, two)
    wait_until(settled)


def test_dropping_right_after_sending_loses_nothing(workers, settled):
    one, two = workers
    pending = []
    for i in range(200):
        future = d.remotecall(pow, one, i, 2)
        pending.append(d.remotecall(d.fetch, two, future))
        del future
    assert [each.fetch(timeout=20) for each in pending] == [i * i for i in range(200)]
    del pending
    wait_until(settled)


def test_a_dropped_future_does_not_stop_its_call(workers, tmp_path):
    d.remotecall(touch, workers[0], str(tmp_path / "done"))
    gc.collect()
    wait_until((tmp_path / "done").exists)


def test_futures_in_reference_cycles_are_freed(workers, settled):
    class Node:
        pass

    node = Node()
    node.self, node.future = node, d.Future(workers[0])
    del node
    wait_until(settled)


def test_all_waiters_learn_of_the_owners_death(fresh_workers):
    owner, other = fresh_workers(2)
    future = d.Future(owner)
    remote = d.remotecall(d.fetch, other, future)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        here = [threads.submit(future.fetch, timeout=20), threads.submit(future.wait, timeout=20)]
        d.remote_do(kill_self, owner)
        for each in here:
            with pytest.raises(d.ProcessExitedException) as caught:
                each.result()
            assert caught.value.pid == owner
    with pytest.raises(d.ProcessExitedException):
        remote.fetch(timeout=10)
    with pytest.raises(d.ProcessExitedException):
        future.fetch()
    with pytest.raises((d.ProcessExitedException, RuntimeError)):
        future.put(1)


def test_futures_are_used_by_many_threads(workers):
    def use(i: int) -> bool:
        future = d.Future(workers[i % 2])
        thread = threading.Thread(target=future.put, args=(i,))
        thread.start()
        value = future.fetch(timeout=20)
        thread.join()
        return value == i

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(200)))


def test_a_future_whose_value_is_here_is_passed_on_again_and_again(workers):
    """Passing it on never lets go of a hold that it has not taken."""
    for n in range(100):
        future = d.remotecall(abs, workers[0], -n)
        d.remotecall_fetch(d.myid, workers[0])
        for _ in range(3):
            gc.collect(0)
            assert d.remotecall_fetch(d.fetch, workers[1], future) == n
        assert future.fetch(timeout=5) == n


def test_wait_for_several(workers):
    futures = [d.remotecall(pow, pid, 2, n) for n, pid in enumerate(workers)]
    assert d.wait(futures) == futures
    assert d.wait(iter(futures), timeout=5) == futures
    assert d.wait(()) == []
    late = d.Future(workers[0])
    with pytest.raises(TimeoutError):
        d.wait([*futures, late], timeout=0.05)
    late.put(1)
    assert d.wait({late}, 5) == [late]
    with pytest.raises(TypeError, match="Future or a RemoteChannel, or several, not int"):
        d.wait([late, 3])
    with pytest.raises(TypeError, match="not str"):
        d.wait("abc")
