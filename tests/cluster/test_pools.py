"""Pools of workers: taking and putting back, from every process, and calls to whichever worker is free."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future as ThreadFuture
from typing import Any

import pytest

import pydist as d
from support import alive, kill_self, nap, run_script, wait_until

Workers = list[int]


class Gate:
    """A call that waits on a worker until it is let go, and says when it has begun."""

    def __init__(self) -> None:
        self.begun, self.go = d.RemoteChannel(lambda: d.Channel(100)), d.Future()

    def __call__(self, value: Any = None) -> Any:
        self.begun.put(d.myid())
        return self.go.fetch() or value


class Threads:
    """Runs functions on threads that hold up nobody where a test fails."""

    def submit(self, f: Callable[..., Any], *args: Any) -> ThreadFuture[Any]:
        future: ThreadFuture[Any] = ThreadFuture()

        def run() -> None:
            try:
                future.set_result(f(*args))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future


@pytest.fixture
def thread() -> Threads:
    return Threads()


@pytest.fixture
def default() -> Iterator[Any]:
    """Give the default pool, and set it again after the test."""
    before = d.default_worker_pool()
    yield before
    d.set_default_worker_pool(before)


def waiting(pool: Any) -> int:
    """Say how many wait for a worker of the pool."""
    return len(pool._free._waiters)


def is_full(pool: Any) -> bool:
    """Say whether every worker of the pool is free."""
    return sorted(pool._free._free) == pool.workers()


KINDS = [d.WorkerPool, d.CachingPool]


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_is_taken_and_put_back(workers, kind):
    pool = kind(workers)
    assert isinstance(pool, d.AbstractWorkerPool)
    assert (len(pool), d.nworkers(pool), d.workers(pool)) == (2, 2, workers)
    assert [pool.take(), pool.take()] == workers
    assert not pool.isready()
    assert d.workers(pool) == workers
    with pytest.raises(TimeoutError):
        pool.take(timeout=0)
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        pool.wait(timeout=0.01)
    assert pool.put(workers[1]) is pool
    assert pool.isready()
    assert pool.wait() is pool
    assert pool.take(timeout=5) == workers[1]
    pool.put(workers[0]).put(workers[1])
    assert [pool.take(), pool.take()] == workers


@pytest.mark.parametrize("kind", KINDS)
def test_push_adds_a_worker_once(workers, kind):
    pool = kind(workers[:1])
    assert pool.push(workers[1]).push(workers[1]) is pool
    assert [pool.take(), pool.take()] == workers
    assert not pool.isready()
    assert pool.push(workers[0]).isready() is False


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_ids(workers, kind):
    with pytest.raises(ValueError, match="99999"):
        kind([99_999])
    with pytest.raises(TypeError, match="str"):
        kind(["a"])
    pool = kind(workers[:1])
    with pytest.raises(ValueError, match="99999"):
        pool.push(99_999)
    with pytest.raises(ValueError, match=f"process {workers[1]} is not in this pool"):
        pool.put(workers[1])
    with pytest.raises(TypeError, match="list"):
        d.workers(workers)
    with pytest.raises(TypeError, match="list"):
        d.set_default_worker_pool(workers)


def test_a_worker_that_is_put_back_twice_is_free_once(workers):
    pool = d.WorkerPool(workers)
    pid = pool.take()
    pool.put(pid).put(pid)
    assert sorted([pool.take(), pool.take()]) == workers
    assert not pool.isready()


@pytest.mark.parametrize("kind", KINDS)
def test_first_come_first_served(workers, thread, kind):
    pool = kind(workers)
    taken = [pool.take(), pool.take()]
    order: list[tuple[int, int]] = []

    def take(i: int) -> None:
        order.append((i, pool.take()))

    running = []
    for i in range(6):
        running.append(thread.submit(take, i))
        wait_until(lambda i=i: waiting(pool) == i + 1)
    pool.put(taken[0])
    for i in range(6):
        wait_until(lambda i=i: len(order) == i + 1)
        assert order[i] == (i, taken[0])
        pool.put(taken[0])
    for future in running:
        future.result(10)


def test_wait_lets_the_worker_be(workers, thread):
    pool = d.WorkerPool(workers[:1])
    pool.take()
    waits = [thread.submit(pool.wait) for _ in range(3)]
    wait_until(lambda: waiting(pool) == 3)
    pool.put(workers[0])
    assert [future.result(10) for future in waits] == [pool] * 3
    assert pool.take() == workers[0]


def test_it_works_from_every_process_that_it_is_sent_to(workers):
    pool = d.WorkerPool(workers)

    def take_both(pool: d.WorkerPool) -> Any:
        taken = [pool.take(), pool.take()]
        return taken, pool.isready(), len(pool), d.workers(pool), pool

    taken, ready, n, pids, back = d.remotecall_fetch(take_both, workers[0], pool)
    assert (taken, ready, n, pids) == (workers, False, 2, workers)
    assert back == pool
    assert hash(back) == hash(pool)
    assert not pool.isready()
    d.remotecall_fetch(lambda pool, pid: pool.put(pid), workers[1], pool, workers[0])
    assert back.take(timeout=5) == workers[0]
    with pytest.raises(TimeoutError):
        d.remotecall_fetch(pool.take, workers[1], 0)
    with pytest.raises(ValueError, match="is not in this pool"):
        d.remotecall_fetch(pool.put, workers[1], 1)


def test_it_can_be_owned_by_a_worker(workers, thread):
    pool = d.remotecall_fetch(d.WorkerPool, workers[0], workers)
    assert "of process" in repr(pool)
    assert len(pool) == 2
    assert [pool.take(), pool.take()] == workers
    blocked = thread.submit(pool.take)
    d.remotecall_fetch(pool.put, workers[1], workers[1])
    assert blocked.result(20) == workers[1]
    pool.put(workers[0]).put(workers[1])
    assert d.remotecall_fetch(d.myid, pool) in workers
    assert sorted({d.remotecall(d.myid, pool).fetch() for _ in range(10)}) == workers


def test_it_outlives_its_maker_and_leaves_nothing(workers):
    def keep(pool: d.WorkerPool) -> int:
        import __main__

        __main__.kept_pool = pool
        return len(pool)

    def use() -> Any:
        import __main__

        pool = __main__.kept_pool
        return pool.put(pool.take()).workers()

    before = d.stats()["refs_owned"]
    assert d.remotecall_fetch(keep, workers[0], d.WorkerPool(workers)) == 2
    gc.collect()
    assert d.remotecall_fetch(use, workers[0]) == workers
    d.remotecall_eval("del kept_pool", workers[0])
    wait_until(lambda: gc.collect() >= 0 and d.stats()["refs_owned"] <= before)


def test_it_is_not_pickled_for_elsewhere(workers):
    with pytest.raises(TypeError, match="within its cluster"):
        pickle.dumps(d.WorkerPool(workers))


# --- calls --------------------------------------------------------------------------------------------------


def called(how: str, pool: Any, f: Callable[..., Any], *args: Any) -> Any:
    match how:
        case "remotecall":
            return d.remotecall(f, pool, *args).fetch()
        case "remotecall_fetch":
            return d.remotecall_fetch(f, pool, *args)
        case "remotecall_wait":
            return d.remotecall_wait(f, pool, *args).fetch()
        case "spawnat":
            return d.spawnat(pool, f, *args).fetch()
        case "fetchfrom":
            return d.fetchfrom(pool, f, *args)
        case "remote":
            return d.remote(f, pool)(*args)
    raise AssertionError(how)


CALLS = ["remotecall", "remotecall_fetch", "remotecall_wait", "spawnat", "fetchfrom", "remote"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", CALLS)
def test_a_pool_stands_for_where(workers, how, kind):
    pool = kind(workers)
    offset = 10
    assert called(how, pool, divmod, 7, 2) == (3, 1)
    assert {called(how, pool, d.myid) for _ in range(4)} == set(workers)
    assert [called(how, pool, lambda x: x + offset, i) for i in range(4)] == [10, 11, 12, 13]
    with pytest.raises(ValueError, match="eighty"):
        called(how, pool, int, "eighty")
    with pytest.raises(pickle.PicklingError):
        called(how, pool, len, threading.Lock())
    with pytest.raises(TypeError, match="callable"):
        called(how, pool, 3)
    wait_until(lambda: is_full(pool))


@pytest.mark.parametrize("kind", KINDS)
def test_a_coroutine_function_on_a_pool(workers, kind):
    async def double(x: int) -> int:
        return 2 * x

    pool = kind(workers)
    assert d.remotecall_fetch(double, pool, 4) == 8
    assert d.remotecall(double, pool, 4).fetch() == 8
    wait_until(lambda: is_full(pool))


def test_the_worker_is_free_once_the_call_has_ended(workers, thread):
    pool = d.WorkerPool(workers)
    gate = Gate()
    futures = [d.remotecall(gate, pool, i) for i in (1, 2)]
    assert sorted(gate.begun.take() for _ in workers) == workers
    assert not pool.isready()
    third = thread.submit(d.remotecall_fetch, d.myid, pool)
    wait_until(lambda: waiting(pool) == 1)
    assert not third.done()
    gate.go.put(None)
    assert third.result(20) in workers
    assert [future.fetch() for future in futures] == [1, 2]
    wait_until(lambda: is_full(pool))


def test_remote_do_holds_the_worker_until_its_end(workers):
    pool = d.WorkerPool(workers[:1])
    gate = Gate()
    d.remote_do(gate, pool)
    assert gate.begun.take() == workers[0]
    assert not pool.isready()
    gate.go.put(None)
    pool.wait(20)
    d.remote_do(int, pool, "this error is printed on the worker")
    pool.wait(20)
    assert is_full(pool)


def test_a_remote_do_of_a_coroutine_function_here(workers):
    gone = d.Future()

    async def put() -> None:
        gone.put("there")

    d.remote_do(put, d.WorkerPool([1]))
    assert gone.fetch(timeout=10) == "there"


def test_no_worker_has_two_calls_at_once(workers, thread):
    pool = d.WorkerPool(workers)

    def overlap() -> bool:
        import __main__

        lock = __main__.__dict__.setdefault("lock", threading.Lock())
        if not lock.acquire(blocking=False):
            return True
        nap(0.001)
        lock.release()
        return False

    def call(_: int) -> list[bool]:
        return [d.remotecall_fetch(overlap, pool), d.remotecall(overlap, pool).fetch()]

    running = [thread.submit(call, i) for i in range(30)]
    assert not any(any(future.result(30)) for future in running)
    wait_until(lambda: is_full(pool))


def test_process_1_can_be_in_a_pool(workers):
    pool = d.WorkerPool([1, workers[0]])
    assert sorted({d.remotecall_fetch(d.myid, pool) for _ in range(4)}) == [1, workers[0]]
    assert sorted({d.remotecall(d.myid, pool).fetch() for _ in range(4)}) == [1, workers[0]]
    with pytest.raises(ValueError, match="eighty"):
        d.remotecall_fetch(int, d.WorkerPool([1]), "eighty")


def test_ctrl_c_in_a_call_on_a_pool_leaves_the_worker_taken_until_its_end():
    """F37: the pool is full again when what runs has finished."""
    done = run_script("""
    import _thread, threading
    import pydist as d
    from support import wait_until

    pool = d.WorkerPool(d.addprocs(1))
    begun, go = d.Future(), d.Future()

    def work():
        begun.put(1)
        go.fetch()

    def interrupt():
        begun.wait(30)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    try:
        d.remotecall_fetch(work, pool)
    except KeyboardInterrupt:
        print("interrupted", pool.isready())
    go.put(None)
    pool.wait(30)
    pid = pool.take()
    threading.Timer(0.2, _thread.interrupt_main).start()
    try:
        pool.take()
    except KeyboardInterrupt:
        print("again", pool.isready())
    pool.put(pid)
    print(pool.isready(), d.remotecall_fetch(len, pool, "abc"))
    """)
    assert (done.stdout, done.stderr) == ("interrupted False\nagain False\nTrue 3\n", "")


def test_remote_uses_a_free_worker(workers, default):
    own_id = d.remote(d.myid)
    assert {own_id() for _ in range(4)} == set(workers)
    assert {d.remote(d.myid, workers[:1])() for _ in range(3)} == {workers[0]}
    gate = Gate()
    busy = d.remotecall(gate, default)
    taken = gate.begun.take()
    assert {own_id() for _ in range(4)} == set(workers) - {taken}
    gate.go.put(None)
    busy.fetch()
    assert d.remote(int).__name__ == "int"


class Slots(d.AbstractWorkerPool):
    """A pool that somebody else has written."""

    def __init__(self, pids: Workers) -> None:
        self.pids, self.free, self.log = list(pids), list(pids), []

    def push(self, pid: int) -> Slots:
        self.pids.append(pid)
        return self.put(pid)

    def put(self, pid: int) -> Slots:
        self.log.append(("put", pid))
        self.free.append(pid)
        return self

    def take(self, timeout: float | None = None) -> int:
        self.log.append("take")
        return self.free.pop()

    def wait(self, timeout: float | None = None) -> Slots:
        return self

    def isready(self) -> bool:
        return bool(self.free)

    def __len__(self) -> int:
        return len(self.pids)


def test_a_pool_of_ones_own(workers, default):
    pool = Slots(workers)
    assert d.nworkers(pool) == 2
    with pytest.raises(NotImplementedError, match=r"Slots has no method workers\(\)"):
        d.workers(pool)
    assert d.remotecall_fetch(d.myid, pool) == workers[1]
    assert pool.log == ["take", ("put", workers[1])]
    assert d.remotecall(d.myid, pool).fetch() == workers[1]
    wait_until(lambda: len(pool.free) == 2)
    d.set_default_worker_pool(pool)
    assert d.remote(d.myid)() == workers[1]
    with pytest.raises(TypeError):
        d.AbstractWorkerPool()


# --- the function cache -------------------------------------------------------------------------------------


def sent_by(act: Callable[[], Any]) -> int:
    before = d.stats()["bytes_sent"]
    act()
    return d.stats()["bytes_sent"] - before


def test_a_caching_pool_sends_what_a_function_captures_once_to_each_worker(workers):
    captured = os.urandom(1_000_000)
    pool = d.CachingPool(workers)

    def byte(i: int) -> int:
        return captured[i]

    def use() -> None:
        assert [d.remotecall_fetch(byte, pool, i) for i in range(20)] == list(captured[:20])
        assert [d.remotecall(byte, pool, i).fetch() for i in range(20)] == list(captured[:20])

    assert 2_000_000 < sent_by(use) < 2_200_000
    assert sent_by(use) < 200_000
    pool.clear()
    assert sent_by(use) > 2_000_000


def test_a_caching_pool_tells_functions_by_identity(workers):
    pool = d.CachingPool(workers)
    functions = [lambda x, i=i: x + i for i in range(5)]
    for _ in range(2):
        assert [d.remotecall_fetch(f, pool, 10) for f in functions] == [10, 11, 12, 13, 14]


def test_clear_lets_calls_end_that_are_under_way(workers):
    pool = d.CachingPool(workers)
    gate = Gate()
    futures = [d.remotecall(gate, pool, i) for i in (1, 2)]
    pool.clear()
    gate.go.put(None)
    assert [future.fetch(timeout=20) for future in futures] == [1, 2]


def test_a_caching_pool_cannot_be_sent(workers):
    with pytest.raises(TypeError, match="CachingPool cannot be sent"):
        d.remotecall_fetch(len, workers[0], d.CachingPool(workers))


# --- the default pool ---------------------------------------------------------------------------------------


def test_the_default_pool_takes_up_workers_and_drops_them(workers, fresh_workers, default):
    assert d.default_worker_pool() is default
    assert d.workers(default) == workers
    new = fresh_workers(2)
    assert d.workers(default) == d.workers() == [*workers, *new]
    assert len(default) == 4
    d.rmprocs(new[0])
    assert d.workers(default) == [*workers, new[1]]
    with pytest.raises(d.ProcessExitedException):
        d.remotecall_fetch(kill_self, new[1])
    assert d.workers(default) == workers
    assert {d.remotecall_fetch(d.myid, default) for _ in range(6)} == set(workers)


def test_a_take_that_waits_gets_a_worker_that_comes(workers, fresh_workers, default, thread):
    taken = [default.take() for _ in workers]
    blocked = thread.submit(default.take)
    wait_until(lambda: waiting(default) == 1)
    (new,) = fresh_workers(1)
    assert blocked.result(20) == new
    for pid in [*taken, new]:
        default.put(pid)


def test_the_default_pool_of_a_worker_is_that_of_process_1(workers, default):
    def use() -> Any:
        pool = d.default_worker_pool()
        pid = pool.take()
        return d.workers(pool), pid, pool

    pids, pid, pool = d.remotecall_fetch(use, workers[0])
    assert (pids, pool) == (workers, default)
    assert pid not in default._free._free
    pool.put(pid)
    assert is_full(default)
    assert d.remotecall_fetch(lambda: d.remote(d.myid)(), workers[0]) in workers


@pytest.mark.parametrize("kind", [d.WorkerPool, d.CachingPool, Slots])
def test_another_default_pool(workers, fresh_workers, default, kind):
    pool = kind(workers[:1])
    d.set_default_worker_pool(pool)
    assert d.default_worker_pool() is pool
    assert {d.remote(d.myid)() for _ in range(3)} == {workers[0]}
    assert d.remotecall_fetch(lambda: d.remote(d.myid)(), workers[1]) == workers[0]
    assert len(pool) == 1
    (new,) = fresh_workers(1)
    assert len(pool) == 2
    assert {pool.take(), pool.take()} == {workers[0], new}


def test_a_worker_that_dies_while_the_default_pool_takes_it_up(workers, fresh_workers, default, caplog):
    class Late(d.WorkerPool):
        def push(self, pid: int) -> d.WorkerPool:
            kill(pid)
            wait_until(lambda: pid not in d.procs())
            return super().push(pid)

    pool = Late(workers)
    d.set_default_worker_pool(pool)
    fresh_workers(1)
    assert d.workers(pool) == workers
    assert not caplog.records


def test_with_no_workers_the_default_pool_works_on_process_1():
    done = run_script("""
    import pydist as d
    pool = d.default_worker_pool()
    print(len(pool), d.workers(pool), pool.isready(), pool.take(), pool.take(), pool.put(1) is pool)
    print(d.remote(d.myid)(), d.remotecall(d.myid, pool).fetch())
    with d.cluster(2) as pids:
        print(d.workers(pool), sorted([pool.take(), pool.take()]), pool.isready())
    print(d.workers(pool), d.remote(d.myid)())
    """)
    assert (done.stdout, done.stderr) == (
        "1 [1] True 1 1 True\n1 1\n[2, 3] [2, 3] False\n[1] 1\n",
        "",
    )


# --- deaths -------------------------------------------------------------------------------------------------


def kill(pid: int) -> int:
    ospid = d.remotecall_fetch(os.getpid, pid)
    os.kill(ospid, signal.SIGKILL)
    return ospid


@pytest.mark.parametrize("kind", KINDS)
def test_f08_a_worker_dies_that_is_taken_then_all_of_the_pool(fresh_workers, thread, kind):
    """F8: pool shrinks, blocked take wakes; empty pool: NoWorkersError <= 1 s, no fallback to process 1."""
    first, second = fresh_workers(2)
    pool = kind([first, second])
    assert [pool.take(), pool.take()] == [first, second]
    kill(first)
    wait_until(lambda: d.workers(pool) == [second])
    assert (len(pool), pool.isready()) == (1, False)
    pool.put(first)
    assert not pool.isready()
    blocked: list[ThreadFuture[Any]] = [thread.submit(pool.take) for _ in range(3)]
    blocked.append(thread.submit(pool.wait))
    blocked.append(thread.submit(d.remotecall_fetch, d.myid, pool))
    wait_until(lambda: waiting(pool) == 5)
    ospid = kill(second)
    wait_until(lambda: not alive(ospid))
    for future in blocked:
        with pytest.raises(d.NoWorkersError):
            future.result(1)
    for attempt in (
        pool.take,
        pool.wait,
        lambda: d.remotecall(d.myid, pool),
        lambda: d.remote(len, pool)("a"),
    ):
        with pytest.raises(d.NoWorkersError, match="no worker is left"):
            attempt()
    assert (len(pool), pool.isready(), d.workers(pool)) == (0, False, [])
    (new,) = fresh_workers(1)
    assert pool.push(new).take() == new


def test_f08_on_a_process_to_which_the_pool_was_sent(workers, fresh_workers):
    """F8: the same seen from another process than the owner."""
    (victim,) = fresh_workers(1)
    pool = d.WorkerPool([victim])
    pool.take()
    blocked = d.remotecall(pool.take, workers[0])
    wait_until(lambda: waiting(pool) == 1)
    kill(victim)
    with pytest.raises(d.NoWorkersError):
        blocked.fetch(timeout=2)
    with pytest.raises(d.NoWorkersError):
        d.remotecall_fetch(lambda: d.remotecall_fetch(d.myid, pool), workers[0])


def test_f08_a_call_fails_with_its_worker_and_the_pool_goes_on(fresh_workers):
    """F8: the worker that dies in a call is dropped, and the next call goes to another."""
    pids = fresh_workers(2)
    for kind in KINDS:
        pool = kind(pids)
        with pytest.raises(d.ProcessExitedException):
            d.remotecall_fetch(lambda: kill_self(), pool)
        assert len(pool) == 1
        assert d.remotecall_fetch(d.myid, pool) == pool.workers()[0]
        pids = [*pool.workers(), *fresh_workers(1)]


def test_f08_a_process_dies_that_has_taken_a_worker(workers, fresh_workers, thread):
    """F8: what a process has taken that dies is free again."""
    (holder,) = fresh_workers(1)
    pool = d.WorkerPool(workers[:1])
    assert d.remotecall_fetch(pool.take, holder) == workers[0]
    abandoned = d.remotecall(pool.take, holder)
    wait_until(lambda: waiting(pool) == 1)
    blocked = thread.submit(pool.take)
    wait_until(lambda: waiting(pool) == 2)
    kill(holder)
    assert blocked.result(5) == workers[0]
    with pytest.raises(d.ProcessExitedException):
        abandoned.fetch()


def test_f08_the_owner_of_a_pool_dies(workers, fresh_workers, thread):
    """F8 and F6: whoever waits for a worker of a pool hears that its owner is gone."""
    (owner,) = fresh_workers(1)
    pool = d.remotecall_fetch(d.WorkerPool, owner, workers)
    assert [pool.take(), pool.take()] == workers
    blocked = thread.submit(pool.take)
    wait_until(lambda: d.stats(owner)["calls_running"] == 1)
    kill(owner)
    for attempt in (lambda: blocked.result(2), pool.take, lambda: len(pool), lambda: pool.put(workers[0])):
        with pytest.raises(d.ProcessExitedException):
            attempt()


def test_f39_interrupt_a_take_on_a_worker(workers, fresh_workers):
    """F39: an interrupt ends a take that waits on another process, and nothing is lost with it."""
    (other,) = fresh_workers(1)
    pool = d.WorkerPool(workers[:1])
    pool.take()
    blocked = d.remotecall(pool.take, other)
    wait_until(lambda: waiting(pool) == 1)
    d.interrupt(other)
    with pytest.raises(d.RemoteException, match="KeyboardInterrupt"):
        blocked.fetch(timeout=10)
    wait_until(lambda: waiting(pool) == 0)
    pool.put(workers[0])
    assert pool.take(timeout=5) == workers[0]


def test_takes_that_time_out_lose_no_worker(workers, thread):
    pool = d.WorkerPool(workers)

    def use(i: int) -> None:
        for n in range(30):
            try:
                pid = pool.take(timeout=0.0005 * (n % 3))
            except TimeoutError:
                continue
            pool.put(pid)

    running = [thread.submit(use, i) for i in range(6)]
    running += [thread.submit(d.remotecall_fetch, use, pid, 0) for pid in workers]
    for future in running:
        future.result(60)
    wait_until(lambda: is_full(pool))
    assert waiting(pool) == 0
