"""Rows F6, F7, F35, F47, F50 and F52 of the fault table, and what users get wrong with references."""

import asyncio
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import pydist as d
from support import run_script, stop, wait_until


def make(size: float = 1, pid: int = 1) -> d.RemoteChannel:
    return d.RemoteChannel(lambda: d.Channel(size), pid)


def error_and_time(function: Callable[..., Any], *args: Any) -> tuple[str, float]:
    """Return the error that a function raises, and when."""
    try:
        function(*args)
    except BaseException as error:
        name = next(c.__name__ for c in type(error).__mro__ if c.__module__ != "pydist._remote_error")
        return name, time.monotonic()
    return "nothing", time.monotonic()


def await_of(future: d.Future) -> Any:
    async def main() -> Any:
        return await future

    return asyncio.run(main())


def take_async_of(channel: d.RemoteChannel) -> Any:
    return asyncio.run(channel.take_async())


def put_async_of(channel: d.RemoteChannel) -> Any:
    return asyncio.run(channel.put_async("one too many"))


def async_for_of(channel: d.RemoteChannel) -> Any:
    async def main() -> list[Any]:
        return [item async for item in channel]

    return asyncio.run(main())


def all_completed(future: d.Future) -> Any:
    (done,) = d.as_completed([future])
    return done.fetch()


def kill(pid: int) -> None:
    os.kill(d.remotecall_fetch(os.getpid, pid), signal.SIGKILL)


# --- deaths -------------------------------------------------------------------------------------------------


def test_f6_the_owner_dies(workers, fresh_workers):
    """F6: every fetch, take, put and wait on any process ends within 1 s; later use raises at once."""
    (owner,) = fresh_workers(1)
    future, item = d.Future(owner), d.remotecall(abs, owner, -1)
    empty, full = make(1, owner), make(1, owner).put("it is full")
    assert item.fetch() == 1
    waits: list[tuple[Callable[..., Any], Any]] = [
        (d.Future.fetch, future),
        (d.Future.wait, future),
        (await_of, future),
        (all_completed, future),
        (d.RemoteChannel.take, empty),
        (d.RemoteChannel.fetch, empty),
        (d.RemoteChannel.wait, empty),
        (list, empty),
        (take_async_of, empty),
        (async_for_of, empty),
        (put_async_of, full),
        (lambda channel: channel.put(1), full),
        (lambda ref: ref[0], empty),
        (lambda ref: ref[0], future),
    ]
    with ThreadPoolExecutor(len(waits)) as threads:
        here = [threads.submit(error_and_time, *each) for each in waits]
        there = [d.remotecall(error_and_time, pid, *each) for pid in workers for each in waits]
        wait_until(lambda: all(d.stats(pid)["calls_running"] >= len(waits) for pid in workers))
        # What was asked before is with the owner once it has answered this.
        for pid in (1, *workers):
            d.remotecall_fetch(d.RemoteChannel.isopen, pid, full)
        start = time.monotonic()
        kill(owner)
        ended = [each.result(timeout=10) for each in here] + [each.fetch(timeout=10) for each in there]
    assert {name for name, _ in ended} == {"ProcessExitedException"}
    assert max(at for _, at in ended) - start < 1
    start = time.monotonic()
    for pid in (1, *workers):
        for each in waits:
            assert d.remotecall_fetch(error_and_time, pid, *each)[0] == "ProcessExitedException"
    for use in (empty.isready, empty.isopen, empty.close, future.isready, future.cancel):
        assert error_and_time(use)[0] == "ProcessExitedException"
    assert error_and_time(future.put, 1)[0] in ("ProcessExitedException", "FutureAlreadySetError")
    assert time.monotonic() - start < 5
    assert item.fetch() == 1


def test_f7_a_blocked_taker_dies(workers, fresh_workers):
    """F7: the waiter is removed; the next item goes to a live taker."""
    (victim,) = fresh_workers(1)
    channel = make(1, workers[0])
    for _ in range(5):
        d.remotecall(d.RemoteChannel.take, victim, channel)
    other = d.remotecall(d.RemoteChannel.take, workers[1], channel)
    wait_until(lambda: d.stats(victim)["calls_running"] == 5)
    kill(victim)
    wait_until(lambda: victim not in d.procs())
    channel.put("item")
    assert other.fetch(timeout=5) == "item"
    assert channel.isempty()


def test_f7_an_item_on_its_way_to_a_taker_that_dies(workers, fresh_workers):
    """F7: it goes back to the front, within 1 s, in its order."""
    (victim,) = fresh_workers(1)
    channel = make(math.inf, workers[0])
    ospid = d.remotecall_fetch(os.getpid, victim)
    for _ in range(3):
        d.remotecall(d.RemoteChannel.take, victim, channel)
    wait_until(lambda: d.stats(victim)["calls_running"] == 3)
    d.remotecall_fetch(d.RemoteChannel.isopen, victim, channel)
    stop(ospid)
    for n in range(6):
        channel.put(n)
    assert channel.fetch(5) == 3, "three are on their way"
    start = time.monotonic()
    os.kill(ospid, signal.SIGKILL)
    wait_until(lambda: channel.fetch(5) == 0, 5)
    assert time.monotonic() - start < 1.5
    assert [channel.take(5) for _ in range(6)] == list(range(6))


# --- cyclic calls -------------------------------------------------------------------------------------------


def back_and_forth(here: int, there: int, depth: int) -> int:
    if depth == 0:
        return 0
    return 1 + d.remotecall_fetch(back_and_forth, there, there, here, depth - 1)


def test_f35_cyclic_calls(workers):
    """F35: A->B->A at depth 200, process 1 included, and calls to oneself."""
    one, two = workers
    assert d.remotecall_fetch(back_and_forth, one, one, two, 200) == 200
    assert d.remotecall_fetch(back_and_forth, 1, 1, two, 200) == 200
    assert d.remotecall_fetch(back_and_forth, one, one, one, 100) == 100
    assert d.remotecall_fetch(back_and_forth, 1, 1, 1, 100) == 100


def test_f35_above_the_cap(fresh_workers):
    """F35: above the hard cap ThreadLimitError, never a silent hang; the workers go on."""
    one, two = fresh_workers(2, env={"PYDIST_MAX_THREADS": "12"})
    for here, there in ((one, two), (one, one)):
        with pytest.raises(d.ThreadLimitError, match="PYDIST_MAX_THREADS"):
            d.remotecall(back_and_forth, here, here, there, 200).fetch(timeout=20)
        assert d.remotecall_fetch(back_and_forth, here, here, there, 6) == 6
    channel = make(1, 1)
    calls = [d.remotecall(d.RemoteChannel.take, one, channel) for _ in range(30)]
    refused = [error_and_time(call.fetch, 20)[0] for call in calls[20:]]
    assert refused == ["ThreadLimitError"] * 10
    for n, call in enumerate(calls[:5]):
        channel.put(n)
        assert call.fetch(timeout=20) in range(5)
    channel.close()


def test_f35_sleeping_calls_above_the_cap_wait_for_a_thread(fresh_workers):
    """F35: where threads will be free by themselves, calls wait for them."""
    (pid,) = fresh_workers(1, env={"PYDIST_MAX_THREADS": "4"})
    calls = [d.remotecall(time.sleep, pid, 0.02) for _ in range(50)]
    busy = [d.remotecall(sum, pid, range(200_000)) for _ in range(20)]
    assert [call.fetch(timeout=20) for call in calls] == [None] * 50
    assert [call.fetch(timeout=20) for call in busy] == [sum(range(200_000))] * 20


# --- removal, closing, races --------------------------------------------------------------------------------


def test_f47_peers_of_a_removed_worker(workers, fresh_workers):
    """F47: results and requests of a worker that was removed are dropped; its peers' puts and takes raise."""
    (owner,) = fresh_workers(1)
    channel, mine = make(1, owner), make(math.inf)
    takes = [d.remotecall(error_and_time, pid, d.RemoteChannel.take, channel) for pid in workers]
    flood = d.remotecall(lambda c: [c.put(n) for n in range(10**6)], owner, mine)
    wait_until(lambda: mine.isready())
    d.rmprocs(owner)
    assert [take.fetch(timeout=5)[0] for take in takes] == ["ProcessExitedException"] * 2
    for pid in (1, *workers):
        assert d.remotecall_fetch(error_and_time, pid, channel.put, 1)[0] == "ProcessExitedException"
    with pytest.raises(d.ProcessExitedException):
        flood.fetch(timeout=5)
    assert [d.remotecall_fetch(d.myid, pid) for pid in workers] == workers
    got = [mine.take()]
    while mine.isready():
        got.append(mine.take())
    assert got == list(range(len(got)))


@pytest.mark.parametrize("size", [0, 2])
def test_f50_close_with_blocked_takers_and_putters(workers, size):
    """F50: items drain, then ChannelClosedError in 1 s; a failed put's value is not in the channel."""
    channel = make(size, workers[0])
    everywhere = (1, *workers)
    for n in range(size):
        channel.put(n)
    puts = [d.remotecall(error_and_time, pid, channel.put, "too late") for pid in everywhere * 3]
    waiting = make(size, workers[0])
    takes = [d.remotecall(error_and_time, pid, waiting.take) for pid in everywhere * 3]
    for pid in everywhere:
        wait_until(lambda p=pid: d.stats(p)["calls_running"] >= 6 - (p == 1) * 6)
        d.remotecall_fetch(d.RemoteChannel.isopen, pid, channel)
    start = time.monotonic()
    channel.close()
    waiting.close()
    ended = [call.fetch(timeout=10) for call in puts + takes]
    assert {name for name, _ in ended} == {"ChannelClosedError"}
    assert max(at for _, at in ended) - start < 1
    assert list(channel) == list(range(size))
    assert channel.isempty()


def test_f52_two_puts_and_a_racing_fetch(workers):
    """F52: the first put wins, the second is refused; a fetch never sees a future without its value."""
    for n in range(100):
        future = d.Future((1, *workers)[n % 3])
        fetches = [d.remotecall(d.Future.fetch, pid, future) for pid in workers]
        puts = [d.remotecall(error_and_time, pid, future.put, pid) for pid in workers]
        here = future.fetch(timeout=10)
        ended = [put.fetch(timeout=10)[0] for put in puts]
        assert sorted(ended) == ["FutureAlreadySetError", "nothing"]
        assert here == workers[ended.index("nothing")]
        assert [fetch.fetch(timeout=10) for fetch in fetches] == [here, here]


def test_a_timeout_that_races_the_value_loses_nothing(workers):
    for n in range(300):
        future = d.Future(workers[0])
        d.remote_do(d.Future.put, workers[1], future, n)
        tries = 0
        while True:
            try:
                assert future.fetch(timeout=0.0002) == n
                break
            except TimeoutError:
                tries += 1
                assert tries < 100_000


# --- wrong use ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [math.nan, "1", [], 1j])
def test_a_timeout_that_is_no_number_is_refused(workers, timeout):
    wrong = ValueError if timeout is math.nan else TypeError
    future, channel = d.Future(workers[0]), make(1, workers[0])
    uses: list[Callable[[], Any]] = [
        lambda: future.fetch(timeout),
        lambda: future.wait(timeout),
        lambda: d.wait(channel, timeout),
        lambda: list(d.as_completed([future], timeout)),
        lambda: channel.put(1, timeout),
        lambda: channel.take(timeout),
        lambda: channel.fetch(timeout=timeout),
        lambda: asyncio.run(channel.take_async(timeout)),
        lambda: asyncio.run(channel.put_async(1, timeout)),
    ]
    for use in uses:
        with pytest.raises(wrong, match="timeout"):
            use()
    assert channel.isempty()
    assert not future.isready()


@pytest.mark.parametrize("timeout", [0, -1, -1e300, -math.inf])
def test_a_timeout_that_is_over_does_not_wait(workers, timeout):
    future, channel = d.Future(workers[0]), make(1, workers[0])
    for use in (future.fetch, future.wait, channel.take, channel.fetch, channel.wait):
        with pytest.raises(TimeoutError):
            use(timeout)
    with pytest.raises(TimeoutError):
        asyncio.run(channel.take_async(timeout))
    assert channel.put(1, 5).take(5) == 1


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 10**400])
def test_a_timeout_without_end_waits(workers, timeout):
    future, channel = d.Future(workers[0]), make(1, workers[0])
    late = [
        d.remotecall(d.Future.fetch, workers[1], future, timeout),
        d.remotecall(d.RemoteChannel.take, workers[1], channel, timeout),
    ]
    future.put("value")
    channel.put("value", timeout)
    assert [call.fetch(timeout=10) for call in late] == ["value"] * 2
    channel.put("more")
    assert asyncio.run(channel.take_async(timeout)) == "more"


def test_ids_that_are_none(workers):
    for rrid in ((1, -1), (-1, 1), (1, 1 << 70), (1 << 40, 1), (987654, 1)):
        with pytest.raises(KeyError):
            d.channel_from_id(rrid)
    for wrong in (0, -1, 1 << 40, 987654):
        with pytest.raises(ValueError, match=str(wrong)):
            d.RemoteChannel(wrong)
        with pytest.raises(ValueError, match=str(wrong)):
            d.RemoteChannel(lambda: d.Channel(1), wrong)
    for wrong_type in (2.0, "2", True):
        with pytest.raises(TypeError):
            d.RemoteChannel(wrong_type)
    with pytest.raises(ValueError, match="-1"):
        d.RemoteChannel(lambda: d.Channel(-1), workers[0])


def test_references_of_another_cluster():
    """What another cluster pickled, or what was pickled outside of any call, raises ValueError when used."""
    text = """
        import pickle
        import pydist as d
        print(pickle.dumps([d.Future(), d.RemoteChannel()]).hex())
        """
    done = run_script(text)
    assert done.returncode == 0, done.stderr
    future, channel = pickle.loads(bytes.fromhex(done.stdout))
    uses: list[Callable[[], Any]] = [
        lambda: future.fetch(),
        lambda: future.put(1),
        lambda: d.fetch(future),
        lambda: d.wait(channel),
        lambda: channel.put(1),
        lambda: channel.take(),
        lambda: list(channel),
        lambda: channel[0],
        lambda: list(d.as_completed([future])),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="outside of its cluster"):
            use()


def test_use_after_the_end():
    """A reference to a worker that was removed raises, and never waits."""
    done = run_script("""
        import atexit
        import pydist as d

        def use_all():
            for use in (future.fetch, channel.take, channel.isready, lambda: channel.put(1)):
                try:
                    use()
                except (d.ProcessExitedException, RuntimeError) as error:
                    print("refused")
            print(cached.fetch())

        atexit.register(lambda: print("end"))
        (pid,) = d.addprocs(1)
        future, channel, cached = d.Future(pid), d.RemoteChannel(pid), d.remotecall(abs, pid, -7)
        cached.fetch()
        d.rmprocs(pid)
        use_all()
        """)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.split() == ["refused"] * 4 + ["7", "end"]


def test_a_thread_that_blocks_forever_does_not_stop_the_others(workers):
    """Waits of one thread end by close, while others of the same process use the same channel."""
    channel = make(0, workers[0])
    ended: list[str] = []
    threads = [
        threading.Thread(target=lambda: ended.append(error_and_time(channel.take)[0])) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    channel.put("for one")
    wait_until(lambda: ended == ["nothing"])
    channel.close()
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == ["ChannelClosedError"] * 4 + ["nothing"]
