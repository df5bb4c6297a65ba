"""Interrupts, cancelling and Ctrl-C reach just the calls that they are for, wherever they wait (F36, F39)."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

import pydist as d
from support import nap, run_script, wait_until


def make(size: float = 1, pid: int = 1) -> d.RemoteChannel:
    return d.RemoteChannel(lambda: d.Channel(size), pid)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def take_item(channel: d.RemoteChannel) -> Any:
    return channel.take()


def put_item(channel: d.RemoteChannel) -> None:
    channel.put("of an interrupted call")


def noting(started: d.RemoteChannel, f: Callable[..., Any], *args: Any) -> Any:
    """Run a function, and say first on which thread: True for the main one."""
    started.put(threading.current_thread() is threading.main_thread())
    return f(*args)


WAYS = ["take", "fetch", "put", "wait", "future", "future wait", "call", "sleep", "spin"]


@pytest.fixture
def waits(workers: list[int]) -> dict[str, tuple[Any, ...]]:
    """Give calls that block for long, by what they block in."""
    empty, full, future = make(1, workers[1]), make(1, workers[1]).put("full"), d.Future(workers[1])
    return {
        "take": (take_item, empty),
        "fetch": (d.RemoteChannel.fetch, empty),
        "put": (put_item, full),
        "wait": (d.RemoteChannel.wait, empty),
        "future": (d.Future.fetch, future),
        "future wait": (d.Future.wait, future),
        "call": (d.remotecall_fetch, nap, workers[1], 3),
        "sleep": (time.sleep, 60),
        "spin": (spin, 60),
    }


@pytest.mark.parametrize("how", ["interrupt", "cancel"])
@pytest.mark.parametrize("way", WAYS)
def test_f39_a_call_is_interrupted_wherever_it_waits(workers, waits, way, how):
    """F39: on the main thread and on others; a cancelled call alone, others go on."""
    busy = workers[0]
    started = make(100)
    calls = [d.remotecall(noting, busy, started, *waits[way]) for _ in range(4)]
    threads = [started.take(timeout=20) for _ in calls]
    assert len(threads) == 4
    if how == "interrupt":
        d.interrupt(busy)
    else:
        bystander = d.remotecall(noting, busy, started, nap, 0.3)
        started.take(timeout=20)
        assert all(call.cancel() for call in calls)
        assert bystander.fetch(timeout=10) == 0.3
    for call in calls:
        with pytest.raises(CancelledError if how == "cancel" else d.RemoteException):
            call.fetch(timeout=10)
    wait_until(lambda: d.stats(busy)["calls_running"] == 0)
    assert [d.remotecall_fetch(abs, busy, -n) for n in range(20)] == list(range(20))
    if way == "put":
        assert waits[way][1].take(timeout=5) == "full"
        assert waits[way][1].isempty()
    if way == "take":
        waits[way][1].put("kept")
        assert waits[way][1].take(timeout=5) == "kept"


kept: list[Any] = []


def take_and_keep(channel: d.RemoteChannel) -> None:
    kept.append(channel.take())


def give_up_kept() -> list[Any]:
    items = kept[:]
    kept.clear()
    return items


def test_f39_interrupts_while_items_come_double_none(workers):
    """An interrupted take has its item, or the item is still in the channel, in its place."""
    channel = make(1000, workers[1])
    number = 0
    for n in range(40):
        calls = [d.remotecall(take_and_keep, workers[0], channel) for _ in range(4)]
        for item in range(4):
            channel.put((n, item))
        if n % 2:
            d.interrupt(workers[0])
        else:
            for call in calls:
                call.cancel()
        for call in calls:
            try:
                call.fetch(timeout=10)
            except (CancelledError, d.RemoteException):
                continue
        wait_until(lambda: d.stats(workers[0])["calls_running"] == 0)
        number += 4
    left = []
    while channel.isready():
        left.append(channel.take(5))
    taken = d.remotecall_fetch(give_up_kept, workers[0])
    assert left == sorted(left)
    assert len({*taken, *left}) == len(taken) + len(left)
    # An interrupt that comes once `take` has returned ends the call with the item in its hands.
    assert len(taken) + len(left) >= number * 0.8


def test_f39_a_thousand_interrupts_under_load(workers):
    """F39: the worker survives, its channels and futures are served, and later calls are not interrupted."""
    busy, other = workers
    ospid = d.remotecall_fetch(os.getpid, busy)
    channel = make(10, busy)
    stop = threading.Event()
    errors: list[BaseException] = []
    outcomes = {"done": 0, "interrupted": 0}

    def load() -> None:
        while not stop.is_set():
            try:
                d.remotecall_fetch(nap, busy, 0.001)
                outcomes["done"] += 1
            except d.RemoteException as error:
                if not isinstance(error.captured, KeyboardInterrupt):
                    errors.append(error)
                outcomes["interrupted"] += 1
            except BaseException as error:
                errors.append(error)

    def serve() -> None:
        n = 0
        while not stop.is_set():
            try:
                assert channel.put(n).take(timeout=30) == n
                future = d.Future(busy)
                assert future.put(n).fetch(timeout=30) == n
                n += 1
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=f) for f in (load, load, load, serve)]
    for thread in threads:
        thread.start()
    for n in range(1000):
        d.interrupt(busy)
        if n % 50 == 0:
            d.remotecall_fetch(abs, other, -n)
    wait_until(lambda: outcomes["interrupted"] and outcomes["done"])
    stop.set()
    for thread in threads:
        thread.join(30)
    assert errors == []
    wait_until(lambda: d.stats(busy)["calls_running"] == 0)
    assert [d.remotecall(nap, busy, 0.01).fetch(timeout=10) for _ in range(20)] == [0.01] * 20
    assert d.remotecall_fetch(os.getpid, busy) == ospid


def test_f36_ctrl_c_on_channels():
    """F36: KeyboardInterrupt <= 200 ms in a blocked take, put, fetch and wait; the item is not lost."""
    done = run_script("""
        import os, signal, threading, time
        import pydist as d

        (pid,) = d.addprocs(1)

        def interrupted(f, *args):
            sent = []
            def send():
                sent.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGINT)
            threading.Timer(0.1, send).start()
            try:
                f(*args)
            except KeyboardInterrupt:
                assert time.monotonic() - sent.pop() < 0.5
            else:
                raise AssertionError("not interrupted")

        for owner in (1, pid):
            channel = d.RemoteChannel(owner)
            for use in (channel.take, channel.fetch, channel.wait, lambda: list(channel), lambda: channel[0]):
                interrupted(use)
            channel.put("item")
            interrupted(channel.put, "of an interrupted put")
            assert channel.take(5) == "item"
            assert channel.isempty()
            assert channel.put("next").take(5) == "next"

        # Ctrl-C just as the item comes: the take has it, or the channel still does.
        channel = d.RemoteChannel(lambda: d.Channel(100), pid)
        future = d.Future(pid)
        for n in range(100):
            timer = threading.Timer(n / 100_000, os.kill, (os.getpid(), signal.SIGINT))
            item = None
            future = d.remotecall(int, pid, n)
            try:
                timer.start()
                assert future.fetch() == n
                timer.join()
                time.sleep(0.001)
            except KeyboardInterrupt:
                pass
            while True:
                try:
                    assert future.fetch(5) == n
                    break
                except KeyboardInterrupt:
                    continue
            timer.join()
        print("end")
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("end\n", "", 0)
