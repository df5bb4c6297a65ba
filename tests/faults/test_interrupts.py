"""Rows F36 and F38 to F41 of the fault table: Ctrl-C, interrupt, removal."""

import atexit
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pydist as d
from pydist import _interrupts
from support import Script, alive, exists, hold_gil, ignore_sigterm, nap, run_script, touch, wait_until

# A script that sends itself Ctrl-C while the main thread waits, and says how long it took to get through.
CTRL_C = """
    import os, signal, threading, time
    import pydist as d
    from support import nap

    pids = d.addprocs(2)
    sent = []

    def interrupt_soon(after=0.3):
        def send():
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(after, send).start()

    def interrupted(f):
        interrupt_soon()
        try:
            f()
        except KeyboardInterrupt:
            took = time.monotonic() - sent.pop()
            assert took < 0.5, took
        else:
            raise AssertionError("not interrupted")
"""


@pytest.mark.parametrize(
    "wait",
    [
        "future.fetch()",
        "future.fetch(timeout=50)",
        "future.wait()",
        "d.wait(future)",
        "d.fetch(future)",
        "future[0]",
        "list(d.as_completed([future]))",
        "empty.fetch()",
        "here.fetch()",
        "d.remotecall_fetch(nap, pids[0], 30)",
        "d.remotecall_wait(nap, pids[0], 30)",
        "d.remotecall_eval('import time; time.sleep(2)', pids[0])",
    ],
)
def test_f36_ctrl_c_while_waiting(wait):
    """F36: KeyboardInterrupt <= 200 ms; remote call not cancelled; same Future can be fetched again."""
    done = run_script(f"""{CTRL_C}
    def work(path):
        nap(1.5)
        return "result"

    future = d.remotecall(work, pids[0], "")
    empty, here = d.Future(pids[1]), d.Future()
    interrupted(lambda: {wait})
    assert future.fetch(timeout=20) == "result"
    empty.put(1)
    here.put(2)
    assert (empty.fetch(), here.fetch()) == (1, 2)
    assert d.workers() == pids
    assert [d.remotecall_fetch(d.myid, pid) for pid in pids] == pids
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_f36_ctrl_c_in_addprocs():
    """F36: half-launched workers are killed; the next addprocs works."""
    done = run_script(f"""{CTRL_C}
    import psutil

    def helpers():
        return len(psutil.Process().children(recursive=True))

    before = helpers()
    open("python", "w").write("#!/bin/sh\\nexec sleep 100\\n")
    os.chmod("python", 0o755)
    interrupted(lambda: d.addprocs(2, exename=os.path.abspath("python")))
    end = time.monotonic() + 5
    while helpers() > before:
        assert time.monotonic() < end
    assert d.workers() == pids
    (new,) = d.addprocs(1)
    assert d.remotecall_fetch(d.myid, new) == new
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_f36_ctrl_c_again_and_again():
    """F36: the cluster stays usable after any number of them."""
    done = run_script(f"""{CTRL_C}
    future = d.Future(pids[0])
    for _ in range(10):
        interrupted(future.fetch)
    future.put("value")
    assert future.fetch() == "value"
    assert d.pmap(abs, range(-100, 0)) == list(range(100, 0, -1))
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_f38_ctrl_c_in_a_terminal():
    """F38: workers, in their own session, do not get it."""
    text = """
        import os
        import pydist as d
        from support import nap

        (pid,) = d.addprocs(1)
        assert d.remotecall_fetch(os.getsid, pid, 0) != os.getsid(0)
        assert d.remotecall_fetch(os.getpgid, pid, 0) != os.getpgid(0)
        future = d.remotecall(nap, pid, 2)
        try:
            print("ready", flush=True)
            future.fetch()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        print(future.fetch(), d.remotecall_fetch(d.myid, pid))
        """
    with Script(text) as script:
        script.wait_for("ready")
        os.killpg(script.pid, signal.SIGINT)
        done = script.finish(30)
        script.wait_gone(5)
    assert (done.stdout, done.stderr, done.returncode) == ("ready\ninterrupted\n2 2\n", "", 0)


def test_f39_interrupt_of_a_busy_worker(workers, tmp_path):
    """F39: interrupt(w): RemoteException(KeyboardInterrupt) for running calls only; worker lives."""
    busy, other = workers
    ospid = d.remotecall_fetch(os.getpid, busy)
    running = [d.remotecall(nap, busy, 60, str(tmp_path / str(i))) for i in range(3)]
    bystander = d.remotecall(nap, other, 1)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3)
    d.interrupt(busy)
    for future in running:
        with pytest.raises(d.RemoteException, match="KeyboardInterrupt") as caught:
            future.fetch(timeout=10)
        assert not isinstance(caught.value, KeyboardInterrupt)
        assert isinstance(caught.value.captured, KeyboardInterrupt)
        assert caught.value.pid == busy
    assert bystander.fetch(timeout=10) == 1
    assert d.remotecall_fetch(os.getpid, busy) == ospid
    assert [d.remotecall_fetch(abs, busy, -i) for i in range(50)] == list(range(50))


def test_f39_interrupt_of_an_idle_worker(workers):
    """F39: idle: a no-op; nothing that runs later is interrupted."""
    for _ in range(5):
        d.interrupt(workers[0])
        assert d.remotecall(nap, workers[0], 0.1).fetch(timeout=10) == 0.1
    assert d.remotecall_fetch(d.myid, workers[0]) == workers[0]


def test_f39_interrupt_twice(workers, tmp_path):
    """F39: twice: as once."""
    future = d.remotecall(nap, workers[0], 60, str(tmp_path / "started"))
    wait_until((tmp_path / "started").exists)
    d.interrupt(workers[0])
    d.interrupt(workers[0])
    with pytest.raises(d.RemoteException, match="KeyboardInterrupt"):
        future.fetch(timeout=10)
    assert d.remotecall(nap, workers[0], 0.2).fetch(timeout=10) == 0.2


@pytest.mark.parametrize("way", ["all", "several"])
def test_f39_interrupt_of_several(workers, tmp_path, way):
    """F39 and the contract: the default is all workers."""
    futures = [d.remotecall(nap, pid, 60, str(tmp_path / str(pid))) for pid in workers]
    wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    d.interrupt(*(workers if way == "several" else ()))
    for future in futures:
        with pytest.raises(d.RemoteException, match="KeyboardInterrupt"):
            future.fetch(timeout=10)
    assert [d.remotecall_fetch(d.myid, pid) for pid in workers] == workers


def test_f39_interrupt_of_calls_that_wait_for_pydist(workers, tmp_path):
    """F39: a call that waits for a future is interrupted too."""
    empty = d.Future(workers[1])
    future = d.remotecall(wait_noted, workers[0], str(tmp_path / "started"), empty)
    wait_until((tmp_path / "started").exists)
    wait_until(lambda: d.stats(workers[0])["calls_running"] >= 1)
    d.interrupt(workers[0])
    with pytest.raises(d.RemoteException, match="KeyboardInterrupt"):
        future.fetch(timeout=10)


def wait_noted(flag: str, future: d.Future) -> object:
    with open(flag, "w"):
        pass
    return future.fetch()


@pytest.mark.timeout(60)
def test_f40_second_ctrl_c_during_removal():
    """F40: second Ctrl-C during rmprocs/atexit: goes straight to SIGKILL of local workers; exit <= 2 s."""
    text = """
        import os, signal
        import pydist as d

        (pid,) = d.addprocs(1)
        ospid = d.remotecall_fetch(os.getpid, pid)
        os.kill(ospid, signal.SIGSTOP)
        print("ready", ospid, flush=True)
        try:
            d.rmprocs(pid)
        finally:
            print("left", flush=True)
        """
    with Script(text) as script:
        script.wait_for("ready")
        ospid = int(re.search(r"ready (\d+)", script.out)[1])
        os.kill(script.pid, signal.SIGINT)
        script.wait_for("left", 5)
        begin = time.monotonic()
        os.kill(script.pid, signal.SIGINT)
        script.finish(20)
        assert time.monotonic() - begin < 2
        wait_until(lambda: not alive(ospid), 1)
        assert "Fatal" not in script.err
        assert "panicked" not in script.err


def test_f41_removal_with_calls_in_flight(fresh_workers, tmp_path):
    """F41: rmprocs with calls in flight: PEE for callers."""
    victim, other = fresh_workers(2)
    here = [d.remotecall(nap, victim, 60, str(tmp_path / str(i))) for i in range(20)]
    remote = d.remotecall(d.remotecall_fetch, other, nap, victim, 60, str(tmp_path / "remote"))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 21)
    begin = time.monotonic()
    d.rmprocs(victim)
    assert time.monotonic() - begin < 4
    for future in here:
        with pytest.raises(d.ProcessExitedException) as caught:
            future.fetch(timeout=1)
        assert caught.value.pid == victim
    with pytest.raises(d.ProcessExitedException) as caught:
        remote.fetch(timeout=5)
    assert caught.value.pid == victim
    assert victim not in d.workers()


def test_f41_removal_twice_and_from_two_threads(fresh_workers):
    """F41: twice; from two threads: the second call is a no-op. Of id 1: ValueError."""
    pids = fresh_workers(2)
    errors = []

    def remove() -> None:
        try:
            d.rmprocs(pids)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    d.rmprocs(pids)
    assert not set(pids) & set(d.procs())
    with pytest.raises(ValueError, match="1"):
        d.rmprocs(1)


@pytest.mark.timeout(60)
def test_f41_removal_of_a_worker_that_does_not_want_to_go(fresh_workers, tmp_path):
    """F41: a worker that ignores SIGTERM: exit, SIGTERM at 5 s, SIGKILL at 10 s."""
    (pid,) = fresh_workers(1)

    def stay() -> int:
        import atexit

        ignore_sigterm()
        atexit.register(time.sleep, 100)
        threading.Thread(target=time.sleep, args=(100,)).start()
        return os.getpid()

    ospid = d.remotecall_fetch(stay, pid)
    begin = time.monotonic()
    d.rmprocs(pid)
    assert time.monotonic() - begin < 12
    assert not exists(ospid)
    assert pid not in d.procs()


@pytest.mark.timeout(60)
def test_f41_removal_of_a_worker_that_holds_the_interpreter(fresh_workers, tmp_path):
    """F41: a worker in a long C call goes as well, at SIGTERM or SIGKILL at the latest."""
    (pid,) = fresh_workers(1)
    ospid = d.remotecall_fetch(os.getpid, pid)
    d.remotecall(hold_gil, pid, 600, str(tmp_path / "held"))
    wait_until((tmp_path / "held").exists)
    begin = time.monotonic()
    d.rmprocs(pid)
    assert time.monotonic() - begin < 12
    assert not exists(ospid)


class SlowToGo:
    """What its finalizer raises is printed, and goes no further."""

    def __init__(self, started):
        self.started = started

    def __del__(self):
        nap(20, self.started)


def test_a_worker_that_is_to_end_while_a_finalizer_runs_ends(fresh_workers, tmp_path):
    """The exception by which the main thread leaves may come where all that is raised is dropped."""
    (pid,) = fresh_workers(1)
    d.remote_do(SlowToGo, pid, str(tmp_path / "started"))
    wait_until((tmp_path / "started").exists)
    begin = time.monotonic()
    d.rmprocs(pid)
    assert time.monotonic() - begin < 4


class Spins:
    """Its finalizer computes for long."""

    def __init__(self, started):
        self.started = started

    def __del__(self):
        touch(self.started)
        spin(600)


def spin(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def compute_around_a_finalizer(busy: str, started: str, on_main: bool, ended: str | None = None) -> None:
    """Where this is another thread than is wanted, only keep it busy."""
    if (threading.current_thread() is threading.main_thread()) != on_main:
        nap(600, busy)
    if ended is not None:
        atexit.register(touch, ended)
    spinning = Spins(started)
    del spinning
    spin(600)


def start_until_computing(pid: int, folder: Path, *args: Any) -> list[d.Future]:
    """Start calls until one of them computes, on the thread that is wanted."""
    calls: list[d.Future] = []
    computes = folder / "computes"
    while not computes.exists():
        busy = folder / f"busy {len(calls)}"
        calls.append(d.remotecall(compute_around_a_finalizer, pid, str(busy), str(computes), *args))
        wait_until(lambda busy=busy: busy.exists() or computes.exists())
    return calls


@pytest.mark.parametrize("on_main", [True, False])
def test_f39_interrupt_that_strikes_a_finalizer_ends_the_call(workers, tmp_path, on_main, capfd):
    """F39: Python drops what is raised in a finalizer; the call is interrupted all the same, silently."""
    pid = workers[0]
    for call in start_until_computing(pid, tmp_path, on_main):
        assert call.cancel()
    wait_until(lambda: d.stats(pid)["calls_running"] == 0)
    assert d.remotecall_fetch(abs, pid, -3) == 3
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_worker_that_is_to_end_while_a_finalizer_runs_gives_up_its_call(fresh_workers, tmp_path, capfd):
    """It ends by itself, with what was registered with atexit, and prints nothing."""
    (pid,) = fresh_workers(1)
    start_until_computing(pid, tmp_path, True, str(tmp_path / "ended"))
    d.rmprocs(pid)
    assert (tmp_path / "ended").exists()
    assert "Exception ignored" not in capfd.readouterr().err


def interrupt_at_start_of_thread() -> tuple[bool, bool]:
    """Interrupt the running call while it starts a thread; say whether it was struck, and the thread ran."""
    me = threading.get_ident()
    key = next(key for key, thread in _interrupts._running.items() if thread == me)
    ran = threading.Event()

    class Started(threading.Thread):
        def start(self) -> None:
            striking = threading.Thread(target=_interrupts.interrupt, args=(key,))
            striking.start()
            striking.join()
            super().start()

    try:
        _interrupts.start_thread(Started(target=ran.set))
    except KeyboardInterrupt:
        return True, ran.wait(10)
    return False, ran.wait(10)


def test_f39_interrupt_while_a_call_starts_a_thread(workers):
    """F39: the new thread runs, and then the call is interrupted; never the new thread in its place."""
    for _ in range(3):
        assert d.remotecall(interrupt_at_start_of_thread, workers[0]).fetch(timeout=20) == (True, True)
