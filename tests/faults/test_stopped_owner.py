"""F51: timeouts where the owner of a channel or future is stopped: none waits for it, nothing is lost."""

import asyncio
import gc
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import pydist as d
from support import stop, wait_until

# A timeout is 0.3 s; a put hears for a further second whether its item is in the channel.
LATEST = 1.3
LATEST_PUT = 2.3


def make(size: float, pid: int) -> d.RemoteChannel:
    return d.RemoteChannel(lambda: d.Channel(size), pid)


@pytest.fixture
def owner(fresh_workers: Callable[[int], list[int]]) -> Iterator[int]:
    (pid,) = fresh_workers(1)
    before = d.stats()["calls_outstanding"]
    yield pid
    gc.collect()  # An exception that was caught holds the frame that caught it.
    wait_until(lambda: d.stats()["calls_outstanding"] == before)
    wait_until(lambda: d.stats(pid)["refs_owned"] == 0)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    ospid = d.remotecall_fetch(os.getpid, pid)
    stop(ospid)
    try:
        yield
    finally:
        os.kill(ospid, signal.SIGCONT)


def times_out(attempt: Callable[[], Any], latest: float = LATEST) -> str:
    start = time.monotonic()
    with pytest.raises(TimeoutError) as raised:
        attempt()
    assert 0.25 < time.monotonic() - start < latest
    return str(raised.value)


@pytest.mark.parametrize("method", ["take", "fetch", "wait"])
def test_f51_a_request_times_out_and_takes_nothing(owner, method):
    """F51: take, fetch and wait on a channel of a stopped owner raise in time; the items stay, in order."""
    channel = make(math.inf, owner)
    channel.put("first").put("second")
    with stopped(owner):
        for _ in range(3):
            times_out(lambda: getattr(channel, method)(timeout=0.3))
        assert d.stats()["calls_outstanding"] == 0
    assert [channel.take(5), channel.take(5)] == ["first", "second"]
    assert channel.isempty()


def test_f51_a_put_times_out_and_leaves_no_item(owner):
    """F51: a put to a stopped owner says that it is not known yet; the owner takes the item out."""
    channel = make(2, owner)
    channel.put("before")
    with stopped(owner):
        text = times_out(lambda: channel.put("never", timeout=0.3), LATEST_PUT)
        assert f"process {owner} has not answered" in text
        assert d.stats()["calls_outstanding"] == 0
    channel.put("after", 5)
    assert [channel.take(5), channel.take(5)] == ["before", "after"]
    assert channel.isempty()


def test_f51_a_put_that_the_socket_has_no_room_for_times_out(owner):
    """F51: a put of 64 MB of text, of which a stopped owner reads little, raises in time."""
    channel = make(1, owner)
    text = "x" * (1 << 26)
    start = time.monotonic()
    assert d.remotecall_fetch(len, owner, text) == 1 << 26
    took = time.monotonic() - start  # the put has to pickle the text too, before its time runs
    with stopped(owner):
        error = times_out(lambda: channel.put(text, timeout=0.3), LATEST + 5 * took)
        assert "no effect" in error
    assert d.remotecall_fetch(pow, owner, 2, 5) == 32
    assert channel.isempty()
    channel.put("fits", 5)
    assert channel.take(5) == "fits"


def test_f51_awaited_requests_time_out(owner):
    """F51: put_async and take_async raise in time, and the loop goes on meanwhile."""
    channel = make(math.inf, owner)
    channel.put("first")

    async def both() -> list[str]:
        texts = []
        for attempt in (channel.take_async(timeout=0.3), channel.put_async("never", timeout=0.3)):
            with pytest.raises(TimeoutError) as raised:
                await attempt
            texts.append(str(raised.value))
        return texts

    with stopped(owner):
        start = time.monotonic()
        take, put = asyncio.run(both())
        assert time.monotonic() - start < LATEST + LATEST_PUT
        assert "within 0.3 s" in take
        assert f"process {owner} has not answered" in put
    assert channel.take(5) == "first"
    assert channel.isempty()


def test_f51_a_future_of_a_stopped_owner_times_out(owner):
    """F51: fetch and wait on a future of a stopped owner raise in time; the value is there afterwards."""
    future = d.Future(owner)
    future_of_call = d.remotecall(bytes, owner, 1 << 20)
    with stopped(owner):
        times_out(lambda: future.fetch(timeout=0.3))
        times_out(lambda: future.wait(timeout=0.3))
    future.put("value")
    assert future.fetch(5) == "value"
    assert len(future_of_call.fetch(5)) == 1 << 20
