"""Puts on credit: many items one after the other, for which no putter waits (F6, F7, F47, F50)."""

import os
import signal
import threading
from typing import Any

import pytest

import pydist as d
from support import wait_until


def make(size: float, pid: int = 1) -> d.RemoteChannel:
    return d.RemoteChannel(lambda: d.Channel(size), pid)


def put_all(channel: d.RemoteChannel, items: Any) -> int:
    """Put items; return how many messages have come meanwhile."""
    before = d.stats()["messages_received"]
    for item in items:
        channel.put(item)
    return int(d.stats()["messages_received"] - before)


def put_until_full(channel: d.RemoteChannel, timeout: float) -> int:
    """Put numbers until there is no room; return how many were put."""
    number = 0
    while True:
        try:
            channel.put(number, timeout)
        except TimeoutError:
            return number
        number += 1


def put_until_error(channel: d.RemoteChannel, started: d.RemoteChannel | None = None) -> tuple[int, str]:
    """Put numbers until that fails; return how many were put, and the error."""
    number = 0
    while True:
        try:
            channel.put(number)
        except Exception as error:
            return number, type(error).__name__
        number += 1
        if number == 100 and started is not None:
            started.put(None)


def take_rest(channel: d.RemoteChannel) -> list[Any]:
    return list(channel)


@pytest.mark.parametrize("item", [int, lambda n: {"n": n}, lambda n: [n, "x" * 1000]])
def test_many_puts_take_few_answers_and_keep_their_order(workers, item):
    channel = make(5000)
    messages = d.remotecall_fetch(put_all, workers[0], channel, [item(n) for n in range(3000)])
    assert messages < 1500
    assert [channel.take(0) for _ in range(3000)] == [item(n) for n in range(3000)]
    assert channel.isempty()


def test_references_in_items_on_credit_live(workers):
    channel, inner = make(1000), make(10, workers[1])
    inner.put("there")
    d.remotecall_fetch(put_all, workers[0], channel, [[inner]] * 200)
    del inner
    taken = [channel.take() for _ in range(200)]
    assert all(item[0].fetch() == "there" for item in taken[::20])


@pytest.mark.parametrize("size", [1, 17, 100, 600])
def test_the_size_is_kept_and_all_of_it_can_be_used(workers, size):
    """A process that may put has all the room that there is, whatever is set aside for another one."""
    for timeout in (0.0, 0.2):
        channel = make(size)
        assert d.remotecall_fetch(put_until_full, workers[0], channel, timeout) == size
        for _ in range(size // 2):
            channel.take(0)
        d.remotecall_fetch(put_all, workers[0], channel, range(size // 4))
        more = d.remotecall_fetch(put_until_full, workers[1], channel, timeout)
        assert more == size // 2 - size // 4
        assert [d.remotecall_fetch(put_until_full, w, channel, 0) for w in workers] == [0, 0]


def test_two_putters_fill_it_exactly(workers):
    channel = make(500)
    futures = [d.remotecall(put_until_full, worker, channel, 0.3) for worker in workers]
    assert sum(future.fetch() for future in futures) == 500


def test_f50_what_was_put_before_the_close_is_taken(workers):
    """F50: each put that returned is taken, by whoever takes, and each one that raised is not."""
    for taker in (1, workers[1]):
        channel, started = make(200), make(1)
        putting = d.remotecall(put_until_error, workers[0], channel, started)
        taking = d.remotecall(take_rest, taker, channel)
        started.take(10)
        channel.close()
        number, error = putting.fetch()
        assert error == "ChannelClosedError"
        assert taking.fetch() == list(range(number))


def test_f50_a_closed_channel_that_is_full(workers):
    channel = make(300)
    putting = d.remotecall(put_until_error, workers[0], channel)
    wait_until(lambda: not putting.isready() and channel.isready())
    for _ in range(1000):
        channel.take(10)
    channel.close()
    number, error = putting.fetch()
    assert error == "ChannelClosedError"
    assert take_rest(channel) == list(range(1000, number))


def test_a_put_that_returned_is_seen_by_all(workers):
    """Who hears of a put, by the end of the call that made it, finds the item, wherever the channel is."""
    first, second = workers
    channel = make(1000, second)
    for number in (20, 100, 300):
        d.remotecall_fetch(put_all, first, channel, range(number))
        assert [channel.take(0) for _ in range(number)] == list(range(number))
        d.remotecall(put_all, first, channel, range(number)).wait()
        assert channel.isready()
        assert [channel.take(0) for _ in range(number)] == list(range(number))


def pass_on(channel: d.RemoteChannel, token: d.RemoteChannel, rounds: int) -> None:
    for n in range(rounds):
        for _ in range(20):
            channel.put(n)
        token.put(n)


def test_a_put_into_another_channel_comes_after_those_on_credit(workers):
    channel, token = make(1000, workers[1]), make(1)
    putting = d.remotecall(pass_on, workers[0], channel, token, 20)
    for n in range(20):
        assert token.take(10) == n
        assert [channel.take(0) for _ in range(20)] == [n] * 20
    putting.fetch()


def take_own(channel: d.RemoteChannel, number: int) -> bool:
    for n in range(number):
        channel.put(n)
    return channel.isready() and [channel.take(0) for _ in range(number)] == list(range(number))


def test_the_putter_finds_what_it_has_put(workers):
    channel = make(1000, workers[1])
    assert all(d.remotecall_fetch(take_own, workers[0], channel, number) for number in (10, 40, 200))


def test_f6_the_owner_of_the_channel_dies(workers, fresh_workers):
    """F6: a putter with credit hears of it."""
    (owner,) = fresh_workers(1)
    channel, started = make(float("inf"), owner), make(1)
    putting = d.remotecall(put_until_error, workers[0], channel, started)
    started.take(10)
    os.kill(d.remotecall_fetch(os.getpid, owner), signal.SIGKILL)
    assert putting.fetch(10)[1] == "ProcessExitedException"


def test_f7_a_putter_that_dies_leaves_no_room_set_aside(workers, fresh_workers):
    """F7: what it has put is there in order, and others have all the room that it had."""
    (putter,) = fresh_workers(1)
    channel, started = make(400), make(1)
    d.remote_do(put_until_error, putter, channel, started)
    started.take(10)
    os.kill(d.remotecall_fetch(os.getpid, putter), signal.SIGKILL)
    wait_until(lambda: putter not in d.procs())
    number = 0
    while channel.isready():
        assert channel.take(0) == number
        number += 1
    assert number >= 100
    assert d.remotecall_fetch(put_until_full, workers[0], channel, 0) == 400


def put_and_die(channel: d.RemoteChannel, number: int) -> None:
    for n in range(number):
        channel.put(n)
    os.kill(os.getpid(), signal.SIGKILL)


def test_f7_what_a_putter_has_put_outlives_it(fresh_workers):
    """F7: a put that has returned is not lost with its process."""
    for putter in fresh_workers(2):
        channel = make(1000)
        d.remote_do(put_and_die, putter, channel, 500)
        assert [channel.take(10) for _ in range(500)] == list(range(500))


def test_threads_share_credit(workers):
    channel = make(800)

    def threads(channel: d.RemoteChannel) -> None:
        running = [
            threading.Thread(target=put_all, args=(channel, [(i, n) for n in range(500)])) for i in range(4)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    putting = d.remotecall(threads, workers[0], channel)
    taken = [channel.take(10) for _ in range(2000)]
    putting.fetch()
    for name in range(4):
        assert [n for i, n in taken if i == name] == list(range(500))
