"""Forks of a process that has a cluster: the child gets errors, the parent notices nothing."""

import pytest

from support import run_script

START = """
    import gc, os, signal, sys, threading, time, warnings
    import pydist as d
    from support import nap

    # Python warns so since 3.12 of a fork of any process that has threads.
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
    pids = d.addprocs(2)
    ospids = [d.remotecall_fetch(os.getpid, pid) for pid in pids]

    def check():
        assert d.workers() == pids
        assert [d.remotecall_fetch(os.getpid, pid) for pid in pids] == ospids
        assert d.pmap(abs, range(-20, 0)) == list(range(20, 0, -1))
"""


def test_the_child_gets_a_runtime_error_that_says_why():
    done = run_script(f"""{START}
    child = os.fork()
    if child == 0:
        try:
            d.remotecall_fetch(abs, pids[0], 1)
        except RuntimeError as error:
            print(error, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    check()
    """)
    assert (done.stderr, done.returncode) == ("", 0)
    assert "fork" in done.stdout


@pytest.mark.parametrize(
    "leave", ["sys.exit(5)", "os._exit(5)", "os.kill(os.getpid(), 9)", "raise SystemExit(5)"]
)
def test_the_childs_end_shuts_nothing_down(leave):
    done = run_script(f"""{START}
    future = d.remotecall(nap, pids[0], 0.5)
    for _ in range(3):
        child = os.fork()
        if child == 0:
            {leave}
        os.waitpid(child, 0)
        check()
    assert future.fetch() == 0.5
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_the_child_that_outlives_the_parent_keeps_no_worker():
    done = run_script(f"""{START}
    child = os.fork()
    if child == 0:
        time.sleep(3)
        os._exit(0)
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_futures_dropped_in_the_child_live_on_in_the_parent():
    done = run_script(f"""{START}
    futures = [d.remotecall(pow, pids[i % 2], i, 2) for i in range(100)]
    empty = d.Future(pids[0])
    child = os.fork()
    if child == 0:
        del futures, empty
        gc.collect()
        sys.exit(0)
    os.waitpid(child, 0)
    assert [future.fetch() for future in futures] == [i * i for i in range(100)]
    empty.put(1)
    assert d.remotecall_fetch(d.fetch, pids[1], empty) == 1
    check()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_forks_while_other_threads_use_the_cluster():
    done = run_script(f"""{START}
    stop = threading.Event()
    counts = [0, 0, 0]

    def busy(i):
        while not stop.is_set():
            assert d.remotecall_fetch(pow, pids[i % 2], counts[i], 2) == counts[i] ** 2
            counts[i] += 1

    threads = [threading.Thread(target=busy, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        child = os.fork()
        if child == 0:
            try:
                d.remotecall(abs, pids[0], 1)
            except RuntimeError:
                sys.exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    stop.set()
    for thread in threads:
        thread.join()
    assert min(counts) > 10
    check()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_children_of_multiprocessing():
    done = run_script(f"""{START}
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    def work(x):
        return x * x

    def use(x):
        try:
            return d.remotecall_fetch(abs, pids[0], x)
        except RuntimeError:
            return "an error"

    fork = multiprocessing.get_context("fork")
    with fork.Pool(2) as pool:
        assert pool.map(work, range(20)) == [x * x for x in range(20)]
        assert pool.map(use, range(3)) == ["an error"] * 3
    check()
    with ProcessPoolExecutor(2, mp_context=fork) as executor:
        assert list(executor.map(work, range(20))) == [x * x for x in range(20)]
    check()
    process = fork.Process(target=use, args=(1,))
    process.start()
    process.join(10)
    assert process.exitcode == 0
    check()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_multiprocessing_in_a_worker():
    done = run_script(f"""{START}
    def pool(n):
        import multiprocessing
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, range(-n, 0))

    assert d.remotecall_fetch(pool, pids[0], 5) == [5, 4, 3, 2, 1]
    check()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_subprocesses_of_process_1_and_of_workers():
    done = run_script(f"""{START}
    import subprocess

    def run(text):
        return subprocess.run(["echo", text], capture_output=True, text=True, check=True).stdout

    assert run("here") == "here\\n"
    assert [d.remotecall_fetch(run, pid, "there") for pid in pids] == ["there\\n"] * 2
    assert os.system("exit 3") >> 8 == 3
    check()
    """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_fork_before_the_first_worker_is_free_to_have_its_own():
    done = run_script("""
        import os
        import pydist as d

        child = os.fork()
        (pid,) = d.addprocs(1)
        assert d.remotecall_fetch(pow, pid, 2, 3) == 8
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
