"""Futures and channels in asyncio: thousands at once without threads, cancelling, ends of loops."""

import asyncio
import itertools
import math
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import pydist as d
from support import alive, nap, nothing_async, wait_until


def make(size: float = 1, pid: int = 1) -> d.RemoteChannel:
    return d.RemoteChannel(lambda: d.Channel(size), pid)


async def get(future: d.Future) -> Any:
    return await future


def put_all(futures: list[d.Future]) -> None:
    for n, future in enumerate(futures):
        future.put(n)


def put_numbers(channel: d.RemoteChannel, number: int) -> None:
    for n in range(number):
        channel.put(n)


@pytest.fixture(params=["here", "worker"])
def owner(request: pytest.FixtureRequest, workers: list[int]) -> int:
    return 1 if request.param == "here" else workers[0]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """What runs a coroutine, on the loop of asyncio or on that of uvloop."""
    loops: Any = asyncio if request.param == "asyncio" else pytest.importorskip("uvloop")
    return loops.run


def test_ten_thousand_futures_are_awaited_without_threads(owner, run):
    number = 10_000
    futures = [d.Future(owner) for _ in range(number)]
    threads = threading.active_count()

    async def main() -> list[int]:
        tasks = [asyncio.create_task(get(future)) for future in futures]
        await asyncio.sleep(0)
        assert threading.active_count() <= threads
        put = asyncio.create_task(get(d.remotecall(put_all, owner, futures)))
        values = await asyncio.gather(*tasks)
        assert threading.active_count() <= threads + 4
        await put
        return values

    assert run(main()) == list(range(number))
    assert d.stats()["calls_outstanding"] == 0


def test_thousands_of_takes_and_puts_at_once(owner, run):
    number = 2000
    channel = make(3, owner)
    threads = threading.active_count()

    async def main() -> list[int]:
        takes = [asyncio.create_task(channel.take_async()) for _ in range(number)]
        puts = [asyncio.create_task(channel.put_async(n)) for n in range(number)]
        values = await asyncio.gather(*takes)
        await asyncio.gather(*puts)
        assert threading.active_count() <= threads + 4
        return values

    assert run(main()) == list(range(number))
    assert channel.isempty()
    assert d.stats()["calls_outstanding"] == 0


def test_async_for_ends_with_the_close_and_raises_its_reason(owner, run):
    channel = make(10, owner)

    async def collect() -> list[int]:
        return [item async for item in channel]

    async def main() -> list[int]:
        task = asyncio.create_task(collect())
        for n in range(30):
            await channel.put_async(n)
        channel.close()
        return await task

    assert run(main()) == list(range(30))
    channel = make(1, owner)
    channel.close(LookupError("why"))
    with pytest.raises(LookupError, match="why"):
        run(collect())


def test_a_cancelled_await_loses_no_value(workers, run):
    """Whenever the task is cancelled, the future can still be fetched."""
    for n in range(200):
        future = d.Future(workers[0])

        async def main(future: d.Future = future, n: int = n) -> None:
            task = asyncio.create_task(get(future))
            await asyncio.sleep(0)
            d.remote_do(d.Future.put, workers[1], future, n)
            await asyncio.sleep(n % 20 / 20_000)
            task.cancel()
            if n % 2:
                await asyncio.gather(task, return_exceptions=True)

        run(main())
        assert future.fetch(timeout=10) == n


def test_a_loop_that_ends_loses_no_item(owner, run):
    """The tasks that asyncio.run cancels at its end give back the items that are on their way."""
    channel = make(math.inf, owner)
    number, taken = 0, 0
    for n in range(60):

        async def main(n: int = n) -> list[asyncio.Task[Any]]:
            tasks = [asyncio.create_task(channel.take_async()) for _ in range(5)]
            await asyncio.sleep(0)
            for item in range(5):
                channel.put((n, item))
            await asyncio.sleep(n % 10 / 10_000)
            return tasks

        tasks = run(main())
        number += 5
        taken += sum(not task.cancelled() for task in tasks)
    left = [channel.take(10) for _ in range(number - taken)]
    assert len(set(left)) == len(left)
    assert channel.isempty()


def test_cancelled_waits_leave_nothing_at_the_owner(owner, run):
    channel, future = make(1, owner), d.Future(owner)

    async def main() -> None:
        tasks = [asyncio.create_task(channel.take_async()) for _ in range(100)]
        tasks += [asyncio.create_task(get(future)) for _ in range(100)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main())
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)
    channel.put("kept")
    assert channel.take(5) == "kept"
    future.put(1)
    assert future.fetch(5) == 1


def test_two_tasks_and_a_thread_await_one_future(workers, run):
    for n in range(50):
        future = d.Future(workers[0])
        fetched: list[Any] = []
        thread = threading.Thread(target=lambda future=future, out=fetched: out.append(future.fetch(10)))
        thread.start()

        async def main(future: d.Future = future, n: int = n) -> list[Any]:
            tasks = [asyncio.create_task(get(future)) for _ in range(2)]
            await asyncio.sleep(0)
            d.remote_do(d.Future.put, workers[1], future, n)
            return await asyncio.gather(*tasks)

        assert run(main()) == [n, n]
        thread.join(10)
        assert fetched == [n]


async def turns_until(done: asyncio.Event) -> int:
    turns = 0
    while not done.is_set():
        await asyncio.sleep(0.005)
        turns += 1
    return turns


def test_workers_for_a_block_leave_the_loop_free(workers, run):
    """`async with cluster(n)` starts and ends workers while other tasks run."""

    async def main() -> tuple[list[int], list[int], int]:
        done = asyncio.Event()
        ticking = asyncio.create_task(turns_until(done))
        async with d.cluster(2) as pids:
            values = await asyncio.gather(*(get(d.remotecall(d.myid, pid)) for pid in pids))
        done.set()
        return pids, values, await ticking

    pids, values, turns = run(main())
    assert pids == values
    assert not set(pids) & set(d.procs())
    assert turns > 5


def test_a_block_of_asyncio_ends_its_workers_after_an_error(workers, run):
    async def main() -> None:
        async with d.cluster(1) as pids:
            seen.extend(pids)
            await d.remotecall(divmod, pids[0], 1, 0)

    seen: list[int] = []
    with pytest.raises(ZeroDivisionError):
        run(main())
    assert not set(seen) & set(d.procs())
    with pytest.raises(ValueError, match="negative"):
        run(enter(d.cluster(-1)))
    with pytest.raises(TypeError, match="no_such_keyword"):
        run(enter(d.cluster(1, no_such_keyword=1)))


async def enter(cluster: Any) -> list[int]:
    async with cluster as pids:
        return list(pids)


class Slow(d.LocalManager):
    """Starts a worker, and then takes for ever."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.launched: list[int] = []
        self.begun = threading.Event()
        self.goes_on = threading.Event()

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        def keep(config: Any) -> int:
            pid: int = launched(config)
            self.launched.append(config.ospid)
            return pid

        keep.failed = launched.failed  # type: ignore[attr-defined]
        super().launch(params, keep)
        self.begun.set()
        self.goes_on.wait(30)


def test_cancelling_while_workers_start_ends_them(workers, run):
    """Cancelled while they start: the task goes on once they have ended, long before the start has."""
    before = d.procs()
    manager = Slow(1)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(enter(d.cluster(manager)))
        while not manager.begun.is_set():
            await asyncio.sleep(0.005)
        since = loop.time()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return loop.time() - since

    assert run(main()) < 20
    manager.goes_on.set()
    assert d.procs() == before
    assert len(manager.launched) == 1
    wait_until(lambda: not alive(manager.launched[0]))


def test_cancelling_the_task_cancels_the_call(owner, tmp_path, run):
    """The call is interrupted where it runs, and never begins where it has not; others go on."""
    begun = tmp_path / "begun"

    async def main() -> None:
        future = d.remotecall(nap, owner, 60, str(begun))
        task = asyncio.create_task(get(future))
        await asyncio.sleep(0)
        while not begun.exists():
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(d.CancelledError):
            future.fetch(10)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(get(d.remotecall(nap, owner, 60)), 0.05)
        assert await d.remotecall(abs, owner, -1) == 1

    run(main())
    wait_until(lambda: d.stats(owner)["calls_running"] == 0)
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)


def test_a_shielded_call_goes_on(owner, run):
    async def main() -> int:
        future = d.remotecall(slowly, owner, 5)
        shielded = asyncio.ensure_future(get(future))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(shielded), 0.01)
        value: int = await shielded
        return value

    assert run(main()) == 5


def squared(x: int) -> int:
    if x < 0:
        raise ValueError(f"negative: {x}")
    return x * x


def test_values_of_a_map_come_while_the_loop_goes_on(workers, run):
    async def main() -> tuple[list[int], int]:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        turning = asyncio.create_task(turn())
        values = [value async for value in d.pgenerate(squared, range(2000))]
        turning.cancel()
        return values, turns

    values, turns = run(main())
    assert values == [x * x for x in range(2000)]
    assert turns > 1


def test_an_error_of_a_map_comes_after_the_values_before_it(workers, run):
    values: list[int] = []

    async def main() -> None:
        async for value in d.pgenerate(squared, [1, 2, -3, 4], batch_size=1):
            values.append(value)

    with pytest.raises(ValueError, match="negative: -3"):
        run(main())
    assert values == [1, 4]


@pytest.mark.parametrize("end", ["break", "cancel"])
def test_a_map_that_is_left_ends(workers, run, end):
    async def use() -> None:
        async for _ in d.pgenerate(nap, itertools.chain([0, 0], itertools.repeat(60)), batch_size=1):
            if end == "break":
                break

    async def main() -> None:
        if end == "break":
            await use()
            return
        task = asyncio.create_task(use())
        busy = [pid for pid in workers if pid > 1]
        while sum(d.stats(pid)["calls_running"] for pid in busy) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())
    wait_until(lambda: all(d.stats(pid)["calls_running"] == 0 for pid in workers))
    assert d.stats()["calls_outstanding"] == 0


def test_values_are_taken_in_one_way(workers, run):
    async def take(values: Any) -> list[int]:
        return [value async for value in values]

    begun = d.pgenerate(squared, range(4))
    assert next(begun) == 0
    with pytest.raises(RuntimeError, match="taken by `for`"):
        run(take(begun))
    assert list(begun) == [1, 4, 9]
    values = d.pgenerate(squared, range(4))
    assert run(take(values)) == [0, 1, 4, 9]
    assert list(values) == []


def slowly(x: int) -> int:
    nap(0.2)
    return x


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio(workers, backend):
    """On the asyncio backend of anyio all is awaitable; under trio waits go to threads."""
    anyio = pytest.importorskip("anyio")
    if backend == "trio":
        pytest.importorskip("trio")

    async def main() -> Any:
        future = d.remotecall(pow, workers[0], 2, 10)
        if backend == "trio":
            with pytest.raises(RuntimeError, match="anyio"):
                await future
            return await anyio.to_thread.run_sync(future.fetch)
        with anyio.move_on_after(0.05) as scope:
            await d.remotecall(nap, workers[0], 60)
        assert scope.cancelled_caught
        async with d.cluster(1) as pids:
            assert await d.remotecall(d.myid, pids[0]) == pids[0]
        return await future

    assert anyio.run(main, backend=backend) == 1024
    wait_until(lambda: d.stats(workers[0])["calls_running"] == 0)


def test_loops_on_two_threads_await_one_future(workers, run):
    future = d.remotecall(slowly, workers[0], 7)
    values: list[int] = []
    threads = [threading.Thread(target=lambda: values.append(run(get(future)))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert values == [7, 7]


def test_an_interrupt_while_the_event_loop_starts(fresh_workers):
    """The call that is interrupted ends with that; coroutines that come later run."""
    (pid,) = fresh_workers(1)

    def strike() -> None:
        start = threading.Thread.start

        def interrupted(thread: threading.Thread) -> None:
            if thread.name != "pydist-loop":
                return start(thread)
            threading.Thread.start = start
            raise KeyboardInterrupt

        threading.Thread.start = interrupted

    d.remotecall_fetch(strike, pid)
    with pytest.raises(d.RemoteException, match="KeyboardInterrupt"):
        d.remotecall_fetch(nothing_async, pid)
    assert d.remotecall(nothing_async, pid).fetch(timeout=10) is None
