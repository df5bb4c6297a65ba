"""Channels: methods, blocking, closing, custom ones, deaths, timeouts, and their end (F6, F7, F50, F51)."""

import asyncio
import gc
import math
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import pydist as d
from stores import Store
from support import hold_gil, kill_self, stop, wait_until


def make(size: float = 1, pid: int = 1) -> d.RemoteChannel:
    return d.RemoteChannel(lambda: d.Channel(size), pid)


def take_into(channel: d.RemoteChannel, out: d.RemoteChannel) -> None:
    out.put(channel.take())


def caught(function: Callable[..., Any], *args: Any) -> str:
    try:
        function(*args)
    except BaseException as error:
        return next(c.__name__ for c in type(error).__mro__ if c.__module__ != "pydist._remote_error")
    return "nothing"


def thread_of(function: Callable[..., Any], *args: Any) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function(*args))
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def blocked_thread_of(function: Callable[..., Any], *args: Any) -> tuple[threading.Thread, list[Any]]:
    """Run a request to a channel in a thread; return once it is under way."""
    before = d.stats()["calls_outstanding"]
    thread, result = thread_of(function, *args)
    wait_until(lambda: d.stats()["calls_outstanding"] > before)
    return thread, result


@pytest.fixture(params=["here", "worker"])
def owner(request: pytest.FixtureRequest, workers: list[int]) -> int:
    return 1 if request.param == "here" else workers[0]


# --- the methods --------------------------------------------------------------------------------------------


def test_a_channel_is_first_in_first_out(owner):
    channel = make(10, owner)
    assert (channel.where, channel.whence) == (owner, owner)
    assert channel.isempty()
    assert channel.isopen()
    assert channel.put(1) is channel
    channel.put([2]).put("three")
    assert channel.isready()
    assert channel.fetch() == 1
    assert d.fetch(channel) == 1
    assert d.wait(channel) is channel
    assert [channel.take(), channel.take(), channel.take(timeout=1)] == [1, [2], "three"]
    assert not channel.isready()


def test_without_a_factory_there_is_room_for_one(owner):
    channel = d.RemoteChannel(owner)
    channel.put(1)
    with pytest.raises(TimeoutError):
        channel.put(2, 0.05)
    assert channel.take() == 1
    with pytest.raises(TimeoutError):
        channel.take(timeout=0.05)
    with pytest.raises(TimeoutError):
        channel.wait(0)
    with pytest.raises(TimeoutError):
        channel.fetch(0)


def test_an_index_moves_one_item_of_the_first_value(owner):
    channel = make(1, owner).put({"a": 1, "b": 2})
    assert channel["b"] == 2
    assert channel.isready()


def test_an_unbuffered_channel_hands_over(owner):
    channel = make(0, owner)
    thread, result = thread_of(channel.put, 5)
    wait_until(channel.isready)
    assert not result
    assert channel.take() == 5
    thread.join(10)
    assert result == [channel]


def test_each_item_goes_to_one_taker(workers):
    channel, out = make(math.inf), make(math.inf)
    calls = [d.remotecall(take_into, workers[n % 2], channel, out) for n in range(40)]
    for n in range(40):
        channel.put(n)
    for call in calls:
        call.fetch(timeout=20)
    assert sorted(out.take() for _ in range(40)) == list(range(40))


def test_what_is_left_can_be_taken_after_the_close(owner):
    channel = make(1, owner).put(1)
    thread, result = blocked_thread_of(channel.put, 2)
    channel.close()
    thread.join(1)
    assert isinstance(result[0], d.ChannelClosedError)
    assert not channel.isopen()
    assert list(channel) == [1]
    for use in (channel.take, channel.fetch, channel.wait, lambda: channel.put(3)):
        with pytest.raises(d.ChannelClosedError):
            use()


def test_blocked_takers_hear_of_the_close(owner, workers):
    channel = make(1, owner)
    call = d.remotecall(caught, workers[1], d.RemoteChannel.take, channel)
    thread, result = blocked_thread_of(channel.take)
    wait_until(lambda: d.stats(workers[1])["calls_outstanding"] > 0)
    channel.close()
    thread.join(1)
    assert isinstance(result[0], d.ChannelClosedError)
    assert call.fetch(timeout=1) == "ChannelClosedError"


def test_the_exception_of_the_close_is_raised(owner):
    channel = make(1, owner)
    channel.close(KeyError("why"))
    with pytest.raises(KeyError, match="why"):
        channel.take()
    with pytest.raises(KeyError):
        list(channel)
    with pytest.raises(TypeError):
        channel.close("no exception")


@pytest.mark.parametrize(
    ("size", "error"), [(-1, ValueError), (math.nan, ValueError), (0.5, ValueError), ("1", TypeError)]
)
def test_a_size_that_is_none_is_refused(size, error):
    with pytest.raises(error):
        d.Channel(size)


def test_a_factory_has_to_return_a_channel(owner):
    with pytest.raises(TypeError):
        d.RemoteChannel(dict, owner)
    with pytest.raises(ValueError, match="987654"):
        d.RemoteChannel(987654)


def test_a_factory_fails_there_and_the_error_comes_here(owner):
    with pytest.raises(ZeroDivisionError):
        d.RemoteChannel(lambda: 1 / 0, owner)


# --- asyncio ------------------------------------------------------------------------------------------------


def test_asyncio_uses_channels_without_blocking(owner):
    channel = make(1, owner)

    async def main() -> list[int]:
        async def produce() -> None:
            for n in range(20):
                await channel.put_async(n)
            channel.close()

        task = asyncio.create_task(produce())
        got = [x async for x in channel]
        await task
        return got

    assert asyncio.run(main()) == list(range(20))


def test_a_cancelled_take_loses_no_item(owner):
    channel = make(math.inf, owner)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await channel.take_async(0.02)
        tasks = [asyncio.create_task(channel.take_async()) for _ in range(50)]
        await asyncio.sleep(0.02)
        for n in range(50):
            channel.put(n)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.1)

    asyncio.run(main())
    wait_until(channel.isready)
    assert sorted(channel.take(5) for _ in range(50)) == list(range(50))


# --- custom channels ----------------------------------------------------------------------------------------


def test_a_custom_channel_gets_its_arguments(owner):
    store = d.RemoteChannel(Store, owner)
    assert store.put("a", 1) is store
    store.put("b", value=2)
    assert store.isready("a")
    assert not store.isready("c")
    assert store.wait(5) is store
    assert (store.fetch("a"), store.take("a"), store.take(key="b")) == (1, 1, 2)
    thread, result = thread_of(store.take, "late")
    assert store.isempty()
    store.put("late", 3)
    thread.join(10)
    assert result == [3]
    store.close()
    assert not store.isopen()


def test_a_custom_channel_is_dropped_with_its_last_holder(workers):
    store = d.RemoteChannel(Store, workers[0])
    before = d.stats(workers[0])["refs_owned"]
    del store
    gc.collect()
    wait_until(lambda: d.stats(workers[0])["refs_owned"] < before)


# --- references ---------------------------------------------------------------------------------------------


def test_a_channel_travels_and_stays_the_same(workers):
    channel = make(5, workers[0])
    back = d.remotecall_fetch(lambda c: c.put("from b"), workers[1], channel)
    assert back is channel
    assert hash(back) == hash(channel)
    assert channel.take() == "from b"
    channel.put(channel.id)
    via = d.remotecall_fetch(
        lambda c, p: d.remotecall_fetch(lambda c: c.take(), p, c), workers[1], channel, workers[0]
    )
    assert via == channel.id


def test_references_inside_items_live(workers):
    outer, inner = make(5, workers[0]), make(5, workers[1])
    inner.put("kept")
    outer.put({"channel": inner})
    held = d.stats()["refs_held"]
    del inner
    wait_until(lambda: gc.collect() >= 0 and d.stats()["refs_held"] < held)
    d.remotecall_fetch(d.myid, workers[1])
    assert outer.take()["channel"].take() == "kept"


def test_ids_name_channels(workers):
    channel = make()
    rrid = d.remoteref_id(channel)
    assert rrid == d.RRID(channel.whence, channel.id)
    assert d.channel_from_id(rrid) is channel
    with pytest.raises(KeyError):
        d.channel_from_id(d.remoteref_id(d.Future()))
    with pytest.raises(KeyError):
        d.channel_from_id(d.RRID(1, 1 << 60))


def test_outside_of_the_cluster_it_is_invalid():
    copy = pickle.loads(pickle.dumps(make()))
    for use in (lambda: copy.take(), lambda: copy.put(1), lambda: list(copy), lambda: copy[0]):
        with pytest.raises(ValueError, match="outside of its cluster"):
            use()


def test_references_go_back_to_where_they_were(workers):
    gc.collect()
    held = [d.stats(pid)["refs_owned"] for pid in workers]
    channels = [make(5, pid).put(make(1, workers[0])) for pid in workers for _ in range(20)]
    del channels
    gc.collect()
    wait_until(lambda: [d.stats(pid)["refs_owned"] for pid in workers] <= held)


# --- faults -------------------------------------------------------------------------------------------------


def test_a_busy_owner_serves_its_channel(workers, tmp_path):
    channel = make(10, workers[0])
    busy = d.remotecall(hold_gil, workers[0], 3.0, str(tmp_path / "busy"))
    wait_until((tmp_path / "busy").exists)
    start = time.monotonic()
    for n in range(1000):
        assert channel.put(n).take() == n
    assert time.monotonic() - start < 2.5
    assert not busy.isready()
    busy.fetch()


def test_the_death_of_the_owner_ends_every_wait(fresh_workers):
    first, second = fresh_workers(2)
    channel = make(1, first)
    remote = d.remotecall(caught, second, d.RemoteChannel.take, channel)
    thread, result = blocked_thread_of(channel.take)
    wait_until(lambda: d.stats(second)["calls_outstanding"] > 0)
    d.remote_do(kill_self, first)
    start = time.monotonic()
    thread.join(5)
    assert isinstance(result[0], d.ProcessExitedException)
    assert remote.fetch(timeout=5) == "ProcessExitedException"
    assert time.monotonic() - start < 1
    with pytest.raises(d.ProcessExitedException):
        channel.put(1)
    assert d.remotecall_fetch(caught, second, d.RemoteChannel.take, channel) == "ProcessExitedException"


def test_a_taker_that_dies_takes_no_item_with_it(workers, fresh_workers):
    (victim,) = fresh_workers(1)
    channel = make(math.inf, workers[0])
    ospid = d.remotecall_fetch(os.getpid, victim)
    calls = [d.remotecall(d.RemoteChannel.take, victim, channel) for _ in range(3)]
    wait_until(lambda: d.stats(victim)["calls_outstanding"] >= 3)
    # Messages of one process to another keep their order: the owner has the takes.
    assert d.remotecall_fetch(d.RemoteChannel.isopen, victim, channel)
    stop(ospid)
    for n in range(5):
        channel.put(n)
    os.kill(ospid, signal.SIGKILL)
    assert sorted(channel.take(5) for _ in range(5)) == list(range(5))
    assert channel.isempty()
    del calls


def test_timeouts_that_race_items_lose_and_double_nothing(owner):
    channel = make(1, owner)
    put: list[int] = []
    taken: list[int] = []

    def produce() -> None:
        for n in range(1000):
            try:
                channel.put(n, 0.0002)
                put.append(n)
            except TimeoutError:
                continue
        channel.close()

    thread, _ = thread_of(produce)
    while True:
        try:
            taken.append(channel.take(0.0002))
        except TimeoutError:
            continue
        except d.ChannelClosedError:
            break
    thread.join(30)
    assert taken == put
