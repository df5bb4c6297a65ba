"""Rows F11, F12, F25, F42 and F43 of the fault table: the end of process 1, forks, finalization."""

import os
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support import Script, alive, run_script, unix_listeners, wait_until

START = """
    import atexit, os, signal, sys, threading, time
    import pydist as d
    from support import hold_gil, nap

    pids = d.addprocs(2)
    ospids = [d.remotecall_fetch(os.getpid, pid) for pid in pids]
    print("workers", *ospids, flush=True)
"""


def workers_of(script: Script) -> list[int]:
    line = wait_until(lambda: re.search(r"workers ([\d ]+)\n", script.out), 30, "the line with the workers")
    return [int(pid) for pid in line[1].split()]


STATES = {
    "idle": "",
    "in a call": "d.remotecall(time.sleep, pids[0], 600); d.remotecall(nap, pids[1], 600)",
    "in C with the interpreter lock": """
    for pid in pids:
        d.remotecall(hold_gil, pid, 600, f"held{pid}")
    while not all(os.path.exists(f"held{pid}") for pid in pids):
        time.sleep(0.01)
    """,
    "with children": """
    import subprocess
    for pid in pids:
        d.remotecall_fetch(lambda: subprocess.Popen(["sleep", "600"]).pid, pid)
    """,
    "with what delays an exit": """
    def stay():
        from support import ignore_sigterm
        ignore_sigterm()
        atexit.register(time.sleep, 600)
        threading.Thread(target=time.sleep, args=(600,)).start()
    for pid in pids:
        d.remotecall_fetch(stay, pid)
    """,
    "talking": """
    def talk():
        while True:
            print("x" * 100)
    for pid in pids:
        d.remote_do(talk, pid)
    """,
    "calling each other": """
    def call(pid):
        while True:
            d.remotecall_fetch(nap, pid, 0.01)
    for i, pid in enumerate(pids):
        d.remote_do(call, pids[1 - i])
    """,
}


@pytest.mark.parametrize("state", STATES)
def test_f11_head_sigkill(state):
    """F11: head SIGKILL, with worker idle / in a GIL-holding C loop / in atexit / with stdout pipe gone.

    Every local worker and its process group gone <= 2 s; no listening port left.
    """
    with Script(
        f"{START}\n    {STATES[state]}\n    print('ready', flush=True)\n    time.sleep(600)\n"
    ) as script:
        ospids = workers_of(script)
        script.wait_for("ready")
        sockets = [path for pid in (script.pid, *ospids) for path in unix_listeners(pid)]
        assert script.survivors()
        script.process.kill()
        wait_until(lambda: not script.survivors() and not any(alive(pid) for pid in ospids), 2)
        wait_until(lambda: not any(path in Path("/proc/net/unix").read_text() for path in sockets), 2)


def test_f11_head_sigkill_while_a_worker_is_in_atexit():
    """F11: a worker that is on its way out, in a function of atexit, goes too."""
    text = f"""{START}
    def slow_exit(path):
        from support import touch
        atexit.register(time.sleep, 600)
        atexit.register(touch, path)

    d.remotecall_fetch(slow_exit, pids[0], os.path.abspath("leaving"))
    removal = d.rmprocs(pids[0], waitfor=0)
    end = time.monotonic() + 3
    while not os.path.exists("leaving") and time.monotonic() < end:
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(600)
    """
    with Script(text) as script:
        workers_of(script)
        script.wait_for("ready")
        script.process.kill()
        script.wait_gone(2)


def test_f11_head_sigkill_with_its_output_gone():
    """F11: the same with nobody to read what the head and the workers print."""
    read, write = os.pipe()
    text = f"""{START.replace("print(", "print(file=sys.stderr, *(").replace("flush=True)", "), flush=True)")}
    def talk():
        for i in range(100_000):
            print(i)

    d.remote_do(talk, pids[0])
    time.sleep(600)
    """
    with Script(text, stdout=write) as script:
        os.close(write)
        wait_until(lambda: "workers" in script.err, 30)
        os.close(read)
        script.process.kill()
        script.wait_gone(2)


def test_f11_head_sigkill_during_a_large_transfer():
    """F11 and F5: the head is killed while it sends and receives."""
    text = f"""{START}
    data = b"x" * 300_000_000
    threading.Thread(target=d.remotecall_fetch, args=(len, pids[0], data)).start()
    threading.Thread(target=d.remotecall_fetch, args=(bytes, pids[1], 300_000_000)).start()
    while d.stats()["bytes_sent"] < 1_000_000:
        pass
    print("ready", flush=True)
    """
    with Script(text) as script:
        workers_of(script)
        script.wait_for("ready")
        script.process.kill()
        script.wait_gone(2)


@pytest.mark.parametrize("how", ["thread", "main"])
def test_f11_workers_outlive_the_thread_that_started_them(how):
    """F11: PDEATHSIG fires on the death of the *spawning thread*: spawn from a long-lived one."""
    start = "pids[:] = d.addprocs(2)"
    if how == "thread":
        start = "t = threading.Thread(target=lambda: pids.extend(d.addprocs(2))); t.start(); t.join()"
    done = run_script(f"""
        import threading, time
        import pydist as d

        pids = []
        {start}
        time.sleep(0.5)
        print([d.remotecall_fetch(d.myid, pid) for pid in pids] == pids == d.workers())
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


ENDS = {
    "the end of the script": ("", 0, ""),
    "an exception": ("raise ValueError('no good')", 1, "ValueError: no good"),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "sys.exit with a text": ("sys.exit('bye')", 1, "bye"),
    "a function of atexit": ("atexit.register(lambda: print('bye', flush=True))", 0, ""),
    "os._exit": ("os._exit(5)", 5, ""),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -signal.SIGTERM, ""),
    "SIGHUP": ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(60)", -signal.SIGHUP, ""),
    "abort": ("os.abort()", -signal.SIGABRT, ""),
    "SIGINT": ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
    "exec": ("os.execvp('true', ['true'])", 0, ""),
}


@pytest.mark.parametrize("end", ENDS)
def test_f12_head_exits_without_rmprocs(end):
    """F12: head exits normally, by exception, SIGTERM without rmprocs: workers gone <= 5 s; same status."""
    line, status, message = ENDS[end]
    with Script(f"{START}\n    d.remotecall(nap, pids[0], 600)\n    {line}\n") as script:
        done = script.finish(15)
        begin = time.monotonic()
        script.wait_gone(5)
        assert time.monotonic() - begin < 5
    assert done.returncode == status
    if message:
        assert message in done.stderr
        assert len(done.stderr.splitlines()) < 12
    else:
        assert done.stderr == ""


# --- F25 ----------------------------------------------------------------------------------------------------

CHILD = """
    calls = {
        "myid": d.myid,
        "procs": d.procs,
        "workers": d.workers,
        "nprocs": d.nprocs,
        "stats": d.stats,
        "addprocs": lambda: d.addprocs(1),
        "rmprocs": lambda: d.rmprocs(pids[0]),
        "interrupt": lambda: d.interrupt(pids[0]),
        "remotecall": lambda: d.remotecall(abs, pids[0], 1),
        "remotecall here": lambda: d.remotecall(abs, 1, 1),
        "remotecall_fetch": lambda: d.remotecall_fetch(abs, pids[0], 1),
        "remotecall_wait": lambda: d.remotecall_wait(abs, pids[0], 1),
        "remote_do": lambda: d.remote_do(abs, pids[0], 1),
        "remotecall_eval": lambda: d.remotecall_eval("1", pids[0]),
        "spawn": lambda: d.spawn(abs, 1),
        "pmap": lambda: d.pmap(abs, [1]),
        "Future": lambda: d.Future(pids[0]),
        "Future here": lambda: d.Future(),
        "fetch": lambda: future.fetch(timeout=1),
        "wait": lambda: future.wait(timeout=1),
        "put": lambda: empty.put(1),
        "isready": lambda: empty.isready(),
        "cancel": lambda: future.cancel(),
        "item": lambda: future[0],
    }

    def wrong():
        found = []
        for name, call in calls.items():
            try:
                call()
            except RuntimeError:
                continue
            except BaseException as error:
                found.append(f"{name}: {error!r}")
            else:
                found.append(name)
        return found
"""


@pytest.mark.parametrize(
    "leave", ["os._exit(0)", "sys.exit(0)", "", "raise SystemExit", "del future, empty; gc.collect()"]
)
def test_f25_fork_of_the_head(leave):
    """F25: child: any API call RuntimeError, finalizers and atexit are no-ops, its exit shuts nothing down.

    The parent is unaffected.
    """
    done = run_script(f"""{START}
    import gc

    future = d.remotecall(nap, pids[0], 0.5)
    empty = d.Future(pids[1])
    {CHILD}
    child = os.fork()
    if child == 0:
        print("child", wrong(), flush=True)
        {leave}
    else:
        _, status = os.waitpid(child, 0)
        print("status", status)
        assert future.fetch(timeout=20) == 0.5
        assert not empty.isready()
        empty.put("value")
        assert d.remotecall_fetch(d.fetch, pids[0], empty) == "value"
        assert d.workers() == pids
        assert [d.remotecall_fetch(os.getpid, pid) for pid in pids] == ospids
        assert d.pmap(abs, range(-50, 0)) == list(range(50, 0, -1))
        d.rmprocs(d.addprocs(1))
    """)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["child []", "status 0"]
    assert done.returncode == 0


def test_f25_fork_of_a_worker():
    """F25: the same for a fork in a call on a worker."""
    done = run_script(f"""{START}
    empty = d.Future(pids[1])

    def fork():
        future = empty
        {CHILD.replace(chr(10), chr(10) + "    ")}
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(write, repr(wrong()).encode())
            os._exit(7)
        os.close(write)
        text = os.read(read, 100_000)
        return text.decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    print(*d.remotecall_fetch(fork, pids[0]))
    assert [d.remotecall_fetch(os.getpid, pid) for pid in pids] == ospids
    assert not empty.isready()
    """)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["[] 7"]


def test_f25_descriptors_are_closed_on_exec():
    """F25: all fds close-on-exec; workers are exec'd."""
    done = run_script(f"""{START}
    import subprocess

    listing = [sys.executable, "-c", "import os; print(len(os.listdir('/proc/self/fd')))"]
    def count():
        return int(subprocess.run(listing, close_fds=False, capture_output=True, check=True).stdout)
    print(count(), *(d.remotecall_fetch(count, pid) for pid in pids))
    """)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["4 4 4"]


# --- F42, F43 -----------------------------------------------------------------------------------------------


def repeat(text: str, times: int) -> list[subprocess.CompletedProcess[str]]:
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(lambda _: run_script(text, timeout=30), range(times)))


@pytest.mark.timeout(115)
def test_f42_exit_with_outstanding_calls_and_waiting_daemon_threads():
    """F42: exit <= 10 s, status unchanged, no crash text (here 20 runs)."""
    text = f"""{START}
    import asyncio

    futures = [d.remotecall(nap, pid, 600) for pid in pids for _ in range(20)]
    quick = [d.remotecall(abs, pid, -1) for pid in pids for _ in range(200)]
    empty = d.Future()

    def forever():
        while True:
            d.remotecall_fetch(abs, pids[0], 1)

    waits = [futures[0].fetch, futures[1].wait, empty.fetch, forever, forever, lambda: d.pmap(nap, [600] * 4),
             lambda: d.remotecall_fetch(nap, pids[1], 600), lambda: list(d.as_completed(futures)),
             lambda: asyncio.run(asyncio.wait_for(futures[2], 600))]
    for wait in waits:
        threading.Thread(target=wait, daemon=True).start()
    begin = time.monotonic()
    atexit.register(lambda: print("leaving", flush=True))
    sys.exit(17)
    """
    begin = time.monotonic()
    for done in repeat(text, 20):
        assert done.stderr == ""
        assert done.returncode == 17
        assert done.stdout.endswith("leaving\n")
    assert time.monotonic() - begin < 100


@pytest.mark.timeout(115)
def test_f43_completions_during_finalization():
    """F43: Rust IO thread has a completion during finalization: dropped; no abort or hang (10 runs)."""
    text = f"""{START}
    def later(i):
        time.sleep(i % 50 / 100)
        return [i] * 100

    class Slow:
        def __del__(self):
            time.sleep(0.3)

    slow = Slow()
    sys.slow = Slow()
    futures = [d.remotecall(later, pid, i) for i in range(100) for pid in pids]
    threads = [threading.Thread(target=future.fetch, daemon=True) for future in futures[:20]]
    for thread in threads:
        thread.start()
    """
    for done in repeat(text, 10):
        assert done.stderr == ""
        assert done.returncode == 0
