"""Rows F1, F2, F5, F15 and F30 of the fault table: workers that die, and one that only seems dead."""

import ctypes
import gc
import os
import re
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pydist as d
import tally
from support import exists, hold_gil, kill_self, nap, rss, segfault, unix_listeners, wait_until

SIGNAL_9 = r"(?i)signal\D*9\b|SIGKILL"
MIB = 2**20


def square(x: int) -> int:
    return x * x


def make(n: int) -> bytes:
    return b"x" * n


def reason_of(error: d.ProcessExitedException) -> str:
    return f"{error.reason} {error}"


@pytest.mark.parametrize("call", ["fetch", "wait", "remotecall_fetch", "isready"])
def test_f01_sigkill_worker_mid_call(fresh_workers, tmp_path, call):
    """F1: fetch raises PEE "signal 9" within EOF; the worker is already absent from workers() when raised.

    (b) Calls on other workers are unaffected.
    """
    victim, other = fresh_workers(2)
    flag = tmp_path / "started"
    bystander = d.remotecall(nap, other, 0.5)
    ospid = d.remotecall_fetch(os.getpid, victim)
    absent = []

    def use() -> Any:
        try:
            if call == "remotecall_fetch":
                return d.remotecall_fetch(nap, victim, 60, str(flag))
            future = d.remotecall(nap, victim, 60, str(flag))
            if call == "isready":
                wait_until(future.isready, 30)
                return future.fetch()
            return getattr(future, call)(timeout=30)
        finally:
            absent.append(victim not in d.workers())

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(use)
        wait_until(flag.exists)
        os.kill(ospid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(d.ProcessExitedException) as caught:
            running.result(20)
        took = time.monotonic() - begin
        tally.recovery(took)
        assert took < 1
    assert absent == [True]
    assert caught.value.pid == victim
    assert re.search(SIGNAL_9, reason_of(caught.value))
    assert d.workers() == [other]
    assert bystander.fetch(timeout=10) == 0.5
    with pytest.raises(d.ProcessExitedException):
        d.remotecall_fetch(square, victim, 1)
    (new,) = fresh_workers(1)
    assert new > other


def test_f01_a_death_that_nobody_asks_about(fresh_workers):
    """I2: the process is reaped and its socket removed within 5 s, though no call hears of the death."""
    victim, other = fresh_workers(2)
    ospid = d.remotecall_fetch(os.getpid, victim)
    (socket,) = (Path(address) for address in unix_listeners(ospid))
    os.kill(ospid, signal.SIGKILL)
    wait_until(lambda: not exists(ospid) and not socket.exists(), 5)
    assert d.workers() == [other]
    with pytest.raises(d.ProcessExitedException, match=SIGNAL_9) as caught:
        d.remotecall_fetch(abs, victim, 1)
    assert caught.value.host is not None


def test_f01_last_output_and_host_are_named(fresh_workers):
    """F1 and section 5 of the contract: the error says the host and the last lines of output."""
    (pid,) = fresh_workers(1)

    def last_words() -> None:
        print("my last words 4711", flush=True)
        kill_self()

    with pytest.raises(d.ProcessExitedException, match="my last words 4711"):
        d.remotecall_fetch(last_words, pid)


@pytest.mark.timeout(100)
def test_f02_sigkill_with_many_calls_outstanding(fresh_workers, tmp_path):
    """F2: with 10k calls outstanding on it, 10k elsewhere: first 10k all PEE <= 2 s; others all correct."""
    victim, other = fresh_workers(2)
    flag = tmp_path / "started"
    ospid = d.remotecall_fetch(os.getpid, victim)
    held = d.remotecall(hold_gil, victim, 600, str(flag))
    wait_until(flag.exists)
    doomed = [d.remotecall(square, victim, i) for i in range(10_000)]
    fine = [d.remotecall(square, other, i) for i in range(10_000)]
    os.kill(ospid, signal.SIGKILL)
    begin = time.monotonic()
    for future in [held, *doomed]:
        with pytest.raises(d.ProcessExitedException):
            future.fetch(timeout=10)
    took = time.monotonic() - begin
    tally.recovery(took)
    assert took < 2
    assert [future.fetch(timeout=60) for future in fine] == [i * i for i in range(10_000)]


def assert_killed(error: d.ProcessExitedException, pid: int) -> None:
    assert error.pid == pid
    assert re.search(SIGNAL_9, reason_of(error))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ["argument", "result"])
def test_f05_kill_during_a_large_transfer(fresh_workers, way, milestone):
    """F5: 1 GiB: PEE within EOF; partial buffer freed: RSS within 50 MiB of baseline in 2 s.

    (Here 512 MiB.)
    """
    victim, other = fresh_workers(2)
    base = rss()
    kill_in_transfer(victim, way, 1024 * MIB if milestone else 512 * MIB)
    wait_until(lambda: gc.collect() >= 0 and rss() - base < 50 * MIB, 2, "the return of the memory")
    assert d.remotecall_fetch(square, other, 3) == 9


def kill_in_transfer(victim: int, way: str, size: int) -> None:
    """Kill a worker while it sends or receives; all that refers to the data ends with this function."""
    ospid = d.remotecall_fetch(os.getpid, victim)
    counter = "bytes_sent" if way == "argument" else "bytes_received"
    future = d.remotecall_wait(make, victim, size) if way == "result" else None
    before = d.stats()[counter]
    ended = []

    def transfer() -> int:
        try:
            if future is not None:
                return len(future.fetch())
            return d.remotecall_fetch(len, victim, make(size))
        finally:
            ended.append(time.monotonic())

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(transfer)
        wait_until(lambda: d.stats()[counter] - before > MIB or running.done(), 30)
        os.kill(ospid, signal.SIGKILL)
        begin = time.monotonic()
        try:
            assert running.result(20) == size  # it was faster than the signal
        except d.ProcessExitedException as error:
            assert_killed(error, victim)
            assert ended[0] - begin < 1


@pytest.mark.timeout(60)
def test_f15_worker_that_holds_the_interpreter_is_not_dead(fresh_workers, tmp_path):
    """F15: worker holds the GIL 10 x H in C code: **not** declared dead; result correct. (Here 8 s.)"""
    (pid,) = fresh_workers(1)
    flag = tmp_path / "started"
    future = d.remotecall(hold_gil, pid, 8, str(flag))
    wait_until(flag.exists)
    queued = d.remotecall(square, pid, 7)
    assert future.fetch(timeout=30) == "released"
    assert queued.fetch(timeout=10) == 49
    assert d.workers() == [pid]


# --- F30 ----------------------------------------------------------------------------------------------------


def exit_python() -> None:
    sys.exit(3)


def interrupt_self() -> None:
    raise KeyboardInterrupt


def exit_generator() -> None:
    raise GeneratorExit


def exit_hard() -> None:
    os._exit(5)


def abort() -> None:
    ctypes.CDLL(None).abort()


def thread_exit() -> None:
    thread = threading.Thread(target=os._exit, args=(6,))
    thread.start()
    thread.join()


SOFT = [exit_python, interrupt_self, exit_generator]
HARD = [
    (exit_hard, r"\b5\b"),
    (thread_exit, r"\b6\b"),
    (segfault, r"(?i)signal\D*11\b|SIGSEGV"),
    (abort, r"(?i)signal\D*6\b|SIGABRT"),
    (kill_self, SIGNAL_9),
]


class Trap:
    """Runs a function while it is pickled or unpickled, in other processes than this one."""

    def __init__(self, f: Any, *, pickling: bool = False) -> None:
        self.f = f
        self.pickling = pickling

    def __reduce__(self) -> Any:
        if self.pickling:
            spring(self.f)
        return spring, (self.f,)


def spring(f: Any) -> str:
    if d.myid() != 1:
        f()
    return "unharmed"


def swallow(x: object) -> None:
    return None


def trapped_result(f: Any) -> Trap:
    return Trap(f, pickling=True)


@pytest.mark.parametrize("f", SOFT)
@pytest.mark.parametrize("quadrant", ["call", "argument", "result"])
def test_f30_exits_in_a_call_end_the_call(workers, f, quadrant):
    """F30: SystemExit, KeyboardInterrupt, GeneratorExit in a call: RemoteException; the worker lives.

    The quadrants of loky: in the function, while an argument is unpickled, while a result is pickled.
    """
    ospid = d.remotecall_fetch(os.getpid, workers[0])
    with pytest.raises(d.RemoteException) as caught:
        quadrant_call(quadrant, f, workers[0])
    name = {exit_python: "SystemExit", interrupt_self: "KeyboardInterrupt", exit_generator: "GeneratorExit"}[
        f
    ]
    assert name in str(caught.value)
    assert d.remotecall_fetch(os.getpid, workers[0]) == ospid


@pytest.mark.parametrize(("f", "reason"), HARD, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("quadrant", ["call", "argument", "result"])
def test_f30_crashes_are_named(workers, f, reason, quadrant):
    """F30: os._exit; segfault; abort: as F1 with the status or signal."""
    begin = time.monotonic()
    with pytest.raises(d.ProcessExitedException) as caught:
        quadrant_call(quadrant, f, workers[0])
    assert time.monotonic() - begin < 5
    assert caught.value.pid == workers[0]
    assert re.search(reason, str(caught.value.reason))
    assert workers[0] not in d.workers()
    assert d.remotecall_fetch(square, workers[1], 3) == 9


def quadrant_call(quadrant: str, f: Any, pid: int) -> None:
    if quadrant == "call":
        d.remotecall(f, pid).fetch(timeout=20)
    elif quadrant == "argument":
        d.remotecall(swallow, pid, Trap(f)).fetch(timeout=20)
    else:
        d.remotecall(trapped_result, pid, f).fetch(timeout=20)
