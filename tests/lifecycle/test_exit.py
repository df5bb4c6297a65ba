"""The end of a user's program: no hang, no crash, no message, no worker left, its own exit status."""

import os
import re
import signal
import time

import pytest

from support import Script, run_script, wait_until

START = """
    import atexit, os, signal, sys, threading, time
    import pydist as d
    from support import hold_gil, nap

    pids = d.addprocs(2)
"""


@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_a_script_that_does_nothing_more(how):
    done = run_script("import pydist as d\nd.addprocs(2)\n", how=how)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_importing_starts_nothing():
    done = run_script("""
        import os, threading
        import pydist
        print(threading.active_count(), len(os.listdir("/proc/self/task")), pydist.procs())
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("1 1 [1]\n", "", 0)


@pytest.mark.parametrize("f", ["nap", "time.sleep"])
def test_outstanding_calls_do_not_delay_the_exit(f):
    text = f"""{START}
    futures = [d.remotecall({f}, pid, 600) for pid in pids for _ in range(50)]
    print("leaving", flush=True)
    """
    with Script(text) as script:
        script.wait_for("leaving")
        begin = time.monotonic()
        done = script.finish(20)
        assert time.monotonic() - begin < 5
        script.wait_gone(5)
    assert (done.stderr, done.returncode) == ("", 0)


def test_results_that_arrive_at_exit_are_dropped_quietly():
    done = run_script(f"""{START}
    futures = [d.remotecall(nap, pid, i / 100) for i in range(100) for pid in pids]
    futures += [d.remotecall(int, pids[0], "no number") for _ in range(20)]
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize(
    "wait",
    [
        "future.fetch",
        "future.wait",
        "d.Future().fetch",
        "d.Future(pids[1]).fetch",
        "lambda: d.remotecall_fetch(nap, pids[0], 600)",
        "lambda: d.pmap(nap, [600] * 4)",
        "lambda: list(d.as_completed([future]))",
        "lambda: [d.remotecall_fetch(abs, pids[0], i) for i in range(10**9)]",
        "lambda: d.addprocs(1)",
        "lambda: d.remotecall_fetch(nap, 1, 600)",
    ],
)
def test_daemon_threads_in_a_wait(wait):
    done = run_script(
        f"""{START}
    future = d.remotecall(nap, pids[0], 600)
    thread = threading.Thread(target={wait}, daemon=True)
    thread.start()
    time.sleep(0.2)
    sys.exit(3)
    """,
        timeout=20,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 3)


def test_a_thread_that_is_no_daemon_is_waited_for_as_always():
    done = run_script(f"""{START}
    def work():
        time.sleep(0.5)
        print(d.remotecall_fetch(pow, pids[0], 2, 10), d.pmap(abs, [-1, -2]))

    threading.Thread(target=work).start()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("1024 [1, 2]\n", "", 0)


def test_functions_of_atexit_may_still_use_the_cluster():
    done = run_script("""
        import atexit
        import pydist as d

        def last():
            print(d.remotecall_fetch(pow, pids[0], 2, 10))

        pids = d.addprocs(1)
        atexit.register(last)
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("1024\n", "", 0)


def test_futures_in_globals_and_cycles_at_exit():
    done = run_script(f"""{START}
    class Keeper:
        def __init__(self):
            self.me = self
            self.futures = [d.remotecall(abs, pid, -1) for pid in pids for _ in range(100)]

        def __del__(self):
            self.futures.clear()

    keeper = Keeper()
    sys.keeper = Keeper()
    d.keeper = Keeper()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_an_exception_that_nobody_catches():
    done = run_script(f"""{START}
    future = d.remotecall(nap, pids[0], 600)
    raise LookupError("not found")
    """)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("LookupError: not found\n")
    assert done.stderr.count("Traceback") == 1


def test_a_remote_error_that_nobody_catches():
    done = run_script(f"""{START}
    def parse(text):
        return int(text)

    d.remotecall_fetch(parse, pids[0], "eighty")
    """)
    assert done.returncode == 1
    assert "ValueError: invalid literal for int() with base 10: 'eighty'" in done.stderr
    assert "in parse" in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("status", [0, 3])
def test_sys_exit_keeps_its_status(status):
    done = run_script(f"{START}\n    d.remotecall(nap, pids[0], 600)\n    sys.exit({status})\n")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGQUIT])
@pytest.mark.parametrize("work", ["future.fetch()", "sum(range(10**12))", "time.sleep(600)"])
def test_signals_that_end_process_1(number, work):
    text = (
        f"{START}\n    future = d.remotecall(nap, pids[0], 600)\n    print('ready', flush=True)\n    {work}\n"
    )
    with Script(text) as script:
        script.wait_for("ready")
        os.kill(script.pid, number)
        done = script.finish(5)
        script.wait_gone(2 if number == signal.SIGKILL else 5)
    assert (done.stderr, done.returncode) == ("", -number)


def test_a_handler_of_sigterm_is_respected():
    text = f"""{START}
    def handler(number, frame):
        print("handled", flush=True)
        sys.exit(9)

    signal.signal(signal.SIGTERM, handler)
    print("ready", flush=True)
    d.remotecall_fetch(nap, pids[0], 600)
    """
    with Script(text) as script:
        script.wait_for("ready")
        script.process.terminate()
        done = script.finish(15)
        script.wait_gone(5)
    assert (done.stdout, done.stderr, done.returncode) == ("ready\nhandled\n", "", 9)


@pytest.mark.parametrize("n", range(3))
def test_sigkill_of_process_1_with_workers_in_a_long_c_call(n):
    text = f"""{START}
    for pid in pids:
        d.remotecall(hold_gil, pid, 600, f"held{{pid}}")
    while not all(os.path.exists(f"held{{pid}}") for pid in pids):
        time.sleep(0.001)
    print("ready", flush=True)
    d.Future().fetch()
    """
    with Script(text) as script:
        script.wait_for("ready")
        assert len(script.survivors()) >= 2
        script.process.kill()
        script.wait_gone(2)


def test_sigkill_of_process_1_while_it_starts_workers():
    text = """
        import os, threading
        import pydist as d

        print("ready", flush=True)
        while True:
            d.rmprocs(d.addprocs(2))
        """
    for _ in range(4):
        with Script(text) as script:
            script.wait_for("ready")
            wait_until(script.survivors, 20)
            script.process.kill()
            script.wait_gone(3)


def test_a_keyboard_interrupt_that_nobody_catches():
    text = f"{START}\n    print('ready', flush=True)\n    d.remotecall_fetch(nap, pids[0], 600)\n"
    with Script(text) as script:
        script.wait_for("ready")
        os.killpg(script.pid, signal.SIGINT)
        begin = time.monotonic()
        done = script.finish(15)
        assert time.monotonic() - begin < 5
        script.wait_gone(5)
    assert done.returncode == -signal.SIGINT
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_keyboard_interrupt_in_fetch_leaves_the_cluster_usable():
    text = f"""{START}
    future = d.remotecall(nap, pids[0], 1)
    for i in range(3):
        try:
            print("ready", i, flush=True)
            d.Future().fetch()
        except KeyboardInterrupt:
            print("interrupted", i, flush=True)
    print(future.fetch(), d.pmap(abs, range(-3, 0)), [d.remotecall_fetch(d.myid, pid) for pid in pids])
    """
    with Script(text) as script:
        for i in range(3):
            script.wait_for(f"ready {i}")
            begin = time.monotonic()
            os.kill(script.pid, signal.SIGINT)
            script.wait_for(f"interrupted {i}", 5)
            assert time.monotonic() - begin < 0.5
        done = script.finish(20)
        script.wait_gone(5)
    assert done.stdout.splitlines()[-1] == "1 [3, 2, 1] [2, 3]"
    assert (done.stderr, done.returncode) == ("", 0)


def test_workers_that_were_removed_before_the_end():
    done = run_script(f"{START}\n    d.rmprocs(pids)\n    print(d.procs())\n")
    assert (done.stdout, done.stderr, done.returncode) == ("[1]\n", "", 0)


def test_worker_that_died_before_the_end():
    done = run_script(f"""{START}
    from support import kill_self
    try:
        d.remotecall_fetch(kill_self, pids[0])
    except d.ProcessExitedException as error:
        print(error.pid)
    """)
    assert done.stdout == "2\n"
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) <= 1  # I4: at most one log line per dead worker


def test_output_of_workers_just_before_the_end_is_not_lost():
    done = run_script("""
        import pydist as d

        def talk():
            for i in range(1000):
                print("line", i)

        pids = d.addprocs(2)
        for future in [d.remotecall(talk, pid) for pid in pids]:
            future.wait()
        """)
    assert done.stderr == ""
    for pid in (2, 3):
        own = [line for line in done.stdout.splitlines() if re.match(rf"      From worker {pid}:\t", line)]
        assert len(own) == 1000


def test_worker_ends_by_itself_when_its_standard_streams_are_closed():
    done = run_script(f"""{START}
    import ctypes

    def close():
        for fd in (0, 1, 2):
            os.close(fd)

    for pid in pids:
        d.remotecall_fetch(close, pid)
    print([d.remotecall_fetch(d.myid, pid) for pid in pids])
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("[2, 3]\n", "", 0)


def test_many_clusters_one_after_the_other():
    done = run_script("""
        import os
        import pydist as d

        counts = []
        for _ in range(8):
            with d.cluster(2) as pids:
                assert d.pmap(abs, range(-20, 0)) == list(range(20, 0, -1))
            counts.append((len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))))
        (fds, threads), (fds_before, threads_before) = counts[-1], counts[1]
        assert fds <= fds_before, counts
        assert threads < threads_before + 6, counts  # some that run calls stay warm
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
