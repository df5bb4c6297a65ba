"""`sync`, and calls as decorators: `@spawn`, `@spawnat`, `@fetch`, `@fetchfrom`."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import pydist as d
from support import run_script, wait_until


def fail(text: str) -> None:
    raise ValueError(text)


def late(gate: d.Future, value: Any = None) -> Any:
    gate.fetch()
    return value


def test_it_waits_for_every_kind_of_call(workers):
    pool = d.WorkerPool(workers)
    gate = d.Future()
    ends: list[bool] = []
    opener = threading.Timer(0, lambda: (wait_until(lambda: len(ends) == 1), gate.put(None)))
    with d.sync():
        futures = [
            d.spawn(late, gate, 1),
            d.spawnat(workers[0], late, gate, 2),
            d.spawnat(1, late, gate, 3),
            d.remotecall(late, workers[1], gate, 4),
            d.remotecall(late, pool, gate, 5),
            d.spawnat("any", late, gate, 6),
        ]

        @d.spawn
        def seventh():
            return late(gate, 7)

        @d.spawnat(workers[0])
        def eighth():
            return late(gate, 8)

        @d.distributed(range(4))
        def loop(i):
            late(gate)

        futures += [seventh, eighth]
        ends.append(any(future.isready() for future in [*futures, loop]))
        opener.start()
    assert ends == [False]
    assert all(future.isready() for future in [*futures, loop])
    assert [future.fetch() for future in futures] == list(range(1, 9))
    opener.join()


def test_values_stay_where_they_are(workers):
    with d.sync():
        future = d.spawnat(workers[0], bytes, 5_000_000)
        before = d.stats()["bytes_received"]
    assert d.stats()["bytes_received"] - before < 100_000
    assert len(future.fetch()) == 5_000_000


def test_an_empty_block(workers):
    with d.sync():
        pass


def test_errors_come_as_a_group_once_all_calls_have_ended(workers):
    gate, slow = d.Future(), None
    with pytest.raises(ExceptionGroup, match="2 of 4 calls in a sync block failed") as caught, d.sync():
        d.spawn(fail, "first")
        d.spawnat(workers[1], fail, "second")
        slow = d.spawn(late, gate, "slow")
        d.spawn(lambda: gate.put(None))
    assert slow.isready()
    assert type(caught.value) is ExceptionGroup
    assert [str(error) for error in caught.value.exceptions] == ["first", "second"]


@pytest.mark.parametrize("where", ["worker", "here", "loop"])
def test_a_single_error_is_a_group_too(workers, where):
    with pytest.raises(ExceptionGroup, match="1 of 1 calls") as caught, d.sync():
        if where == "loop":
            d.distributed(range(3))(lambda i: fail("no good") if i == 1 else None)
        else:
            d.spawnat(1 if where == "here" else workers[0], fail, "no good")
    error = caught.value.exceptions[0]
    if where == "loop":
        assert isinstance(error, ExceptionGroup)
        (error,) = error.exceptions
    assert isinstance(error, ValueError)
    assert isinstance(error, d.RemoteException)


def test_the_error_of_the_block_is_what_propagates(workers):
    gate = d.Future()
    with pytest.raises(KeyError, match="of the block"), d.sync():
        hanging = d.spawn(late, gate)
        here = d.spawnat(1, late, gate)
        d.spawn(fail, "not this")
        raise KeyError("of the block")
    for future in (hanging, here):
        with pytest.raises(d.CancelledError):
            future.fetch(timeout=10)
    gate.put(None)


def test_calls_that_were_cancelled_count_for_nothing(workers):
    with d.sync():
        future = d.spawn(late, d.Future())
        assert future.cancel()


def test_a_worker_that_dies_is_in_the_group(fresh_workers):
    (pid,) = fresh_workers(1)
    with pytest.raises(ExceptionGroup) as caught, d.sync():
        d.spawnat(pid, __import__("support").kill_self)
    assert [type(error) for error in caught.value.exceptions] == [d.ProcessExitedException]


def test_the_innermost_block_waits(workers):
    gate = d.Future()
    with d.sync():
        outer = d.spawn(late, gate)
        with d.sync():
            inner = d.spawn(pow, 2, 3)
        assert inner.isready()
        assert not outer.isready()
        with pytest.raises(ExceptionGroup), d.sync():
            d.spawn(fail, "inner")
        gate.put(None)
    assert outer.isready()


def test_calls_of_other_threads_and_of_functions_that_are_called_do_not_count(workers):
    gate = d.Future()
    others: list[d.Future] = []

    def elsewhere() -> None:
        others.append(d.spawn(late, gate))

    with d.sync():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join(10)
        d.fetch(lambda: d.remotecall(late, 1, gate) and None)
        with pytest.raises(ValueError, match="fetched"):
            d.fetch(lambda: fail("fetched"))
        with pytest.raises(ValueError, match="waited"):
            d.remotecall_wait(fail, workers[0], "waited")
        d.remote_do(len, workers[0], "abc")
    assert not others[0].isready()
    gate.put(None)


def test_tasks_that_are_started_inside_count(workers):
    async def child(x: int) -> d.Future:
        return d.spawn(pow, x, 2)

    async def main() -> list[d.Future]:
        futures = []
        with d.sync():
            futures = list(await asyncio.gather(child(2), child(3)))
        return futures

    assert [future.isready() for future in asyncio.run(main())] == [True, True]


def test_ctrl_c_ends_the_wait_and_cancels_the_calls():
    done = run_script("""
    import _thread, threading
    import pydist as d
    from support import wait_until

    pids = d.addprocs(2)
    begun = d.RemoteChannel(lambda: d.Channel(9))

    def hang():
        begun.put(1)
        d.Future().fetch()

    made = threading.Event()

    def interrupt():
        begun.take(), begun.take()
        made.wait(30)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    try:
        with d.sync():
            futures = [d.spawnat(pid, hang) for pid in pids]
            made.set()
    except KeyboardInterrupt:
        print("interrupted")
    for future in futures:
        try:
            future.fetch(timeout=10)
        except d.CancelledError:
            print("cancelled")
    wait_until(lambda: all(d.stats(pid)["calls_running"] == 0 for pid in pids))
    print(d.remotecall_fetch(len, pids[0], "abc"))
    """)
    assert (done.stdout, done.stderr) == ("interrupted\ncancelled\ncancelled\n3\n", "")


# --- calls as decorators ------------------------------------------------------------------------------------


def test_decorators_run_the_function_at_once(workers):
    base = 40

    @d.spawn
    def spawned():
        return base + d.myid()

    @d.spawnat(workers[1])
    def spawned_there():
        return base + d.myid()

    @d.fetch
    def fetched():
        return base + 2

    @d.fetchfrom(workers[0])
    def fetched_there():
        return base + d.myid()

    assert isinstance(spawned, d.Future)
    assert spawned.fetch() - base in workers
    assert spawned_there.fetch() == base + workers[1]
    assert (fetched, fetched_there) == (42, base + workers[0])


def test_fetch_of_anything(workers):
    channel = d.RemoteChannel()
    channel.put("item")
    future = d.spawn(abs, -3)
    assert (d.fetch(future), d.fetch(channel), d.fetch(lambda: 5)) == (3, "item", 5)
    for x in (7, "text", None, [1], ValueError):
        if not callable(x):
            assert d.fetch(x) is x
    assert d.fetch(d.myid) in workers


@pytest.mark.parametrize("call", [d.spawnat, d.fetchfrom])
def test_decorators_with_a_pool_or_any(workers, call):
    for where in (d.WorkerPool(workers), d.CachingPool(workers), "any"):
        value = call(where)(d.myid)
        assert d.fetch(value) in workers
        assert d.fetch(call(where, divmod, 7, 2)) == (3, 1)
    with pytest.raises(TypeError, match="as a decorator"):
        call(workers[0], None, 1)
