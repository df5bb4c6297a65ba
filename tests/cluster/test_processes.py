"""Starting and removing processes, who is there, and what a worker gets from process 1."""

import os
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest

import pydist as d
from pydist import _session
from support import executable, exists, nap, run_script, wait_until


def environment(name: str) -> str | None:
    return os.environ.get(name)


def add_here() -> None:
    d.addprocs(1)


def remove_here(pid: int) -> None:
    d.rmprocs(pid)


def ask(pid: int) -> int:
    return d.remotecall_fetch(d.myid, pid)


# --- who is there -------------------------------------------------------------------------------------------


def test_alone_process_1_is_the_only_worker():
    assert d.myid() == 1
    assert d.procs() == [1]
    assert d.workers() == [1]
    assert d.nprocs() == 1
    assert d.nworkers() == 1


def test_addprocs_returns_sorted_ids_that_answer(fresh_workers):
    pids = fresh_workers(2)
    assert len(pids) == 2
    assert pids == sorted(pids)
    assert all(type(pid) is int and pid > 1 for pid in pids)
    assert [d.remotecall_fetch(d.myid, pid) for pid in pids] == pids
    assert d.workers() == pids
    assert d.procs() == [1, *pids]
    assert d.nprocs() == 3
    assert d.nworkers() == 2
    assert len({os.getpid(), *(d.remotecall_fetch(os.getpid, pid) for pid in pids)}) == 3


def test_every_process_sees_the_same_cluster(fresh_workers):
    first, second = fresh_workers(2)
    (third,) = fresh_workers(1)
    everyone = [1, first, second, third]
    for pid in everyone:
        assert d.remotecall_fetch(d.procs, pid) == everyone
        assert d.remotecall_fetch(d.workers, pid) == everyone[1:]
        assert d.remotecall_fetch(d.nprocs, pid) == 4
        assert d.remotecall_fetch(d.nworkers, pid) == 3
    d.rmprocs(second)
    everyone.remove(second)
    for pid in everyone:
        wait_until(lambda pid=pid: d.remotecall_fetch(d.procs, pid) == everyone)


def test_procs_of_a_process_are_those_on_its_host(fresh_workers):
    pids = fresh_workers(2)
    assert d.procs(pids[0]) == [1, *pids]


def test_ids_are_never_used_again(fresh_workers):
    first = fresh_workers(2)
    d.rmprocs(first)
    second = fresh_workers(2)
    assert min(second) > max(first)


def test_addprocs_without_a_number_starts_one_for_each_cpu(fresh_workers):
    assert len(fresh_workers(None)) == len(os.sched_getaffinity(0))


def test_addprocs_of_none_at_all():
    assert d.addprocs(0) == []


def test_addprocs_from_two_threads(fresh_workers):
    added: list[list[int]] = []
    threads = [threading.Thread(target=lambda: added.append(fresh_workers(1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert d.workers() == sorted(pid for pids in added for pid in pids)
    assert d.nworkers() == 2


# --- bad input ----------------------------------------------------------------------------------------------


def test_unknown_keyword_is_a_type_error_that_names_it():
    with pytest.raises(TypeError, match="frobnicate"):
        d.addprocs(1, frobnicate=True)
    assert d.procs() == [1]


@pytest.mark.parametrize("count", [-1, -100])
def test_negative_count_is_a_value_error(count):
    with pytest.raises(ValueError, match=str(count)):
        d.addprocs(count)


def test_unknown_topology_is_a_value_error():
    with pytest.raises(ValueError, match="ring"):
        d.addprocs(1, topology="ring")


def test_topology_and_lazy_must_be_those_of_the_running_workers(fresh_workers):
    fresh_workers(1)
    with pytest.raises(ValueError, match="topology"):
        d.addprocs(1, topology="master_worker")
    with pytest.raises(ValueError, match="lazy"):
        d.addprocs(1, lazy=False)
    assert d.nworkers() == 1


def test_only_process_1_adds_and_removes_workers(fresh_workers):
    one, two = fresh_workers(2)
    for call in (
        lambda: d.remotecall_fetch(add_here, one),
        lambda: d.remotecall_fetch(remove_here, one, two),
    ):
        with pytest.raises(RuntimeError, match="Only process 1 can add and remove workers"):
            call()
    assert d.workers() == [one, two]


# --- topology -----------------------------------------------------------------------------------------------


def test_master_worker_connects_no_workers_with_each_other(fresh_workers):
    one, two = fresh_workers(2, topology="master_worker")
    with pytest.raises(d.NotConnectedError, match=rf"\b{one}\b.*\b{two}\b|\b{two}\b.*\b{one}\b") as caught:
        d.remotecall_fetch(ask, one, two)
    assert isinstance(caught.value, ConnectionError)
    assert d.remotecall_fetch(ask, one, 1) == 1
    assert d.remotecall_fetch(ask, two, two) == two


@pytest.mark.parametrize("lazy", [True, False])
def test_workers_reach_each_other(fresh_workers, lazy):
    one, two = fresh_workers(2, lazy=lazy)
    assert d.remotecall_fetch(ask, one, two) == two
    assert d.remotecall_fetch(ask, two, one) == one


# --- parameters ---------------------------------------------------------------------------------------------


def test_dir_is_the_working_directory(fresh_workers, tmp_path):
    (pid,) = fresh_workers(1, dir=str(tmp_path))
    assert d.remotecall_fetch(os.getcwd, pid) == str(tmp_path)


def test_env_is_added_to_the_environment(fresh_workers, monkeypatch):
    monkeypatch.setenv("PYDIST_TEST_HERE", "from here")
    monkeypatch.setenv("PYDIST_TEST_BOTH", "from here")
    (pid,) = fresh_workers(1, env={"PYDIST_TEST_BOTH": "given", "PYDIST_TEST_NEW": "also given"})
    assert d.remotecall_fetch(environment, pid, "PYDIST_TEST_HERE") == "from here"
    assert d.remotecall_fetch(environment, pid, "PYDIST_TEST_BOTH") == "given"
    assert d.remotecall_fetch(environment, pid, "PYDIST_TEST_NEW") == "also given"
    assert environment("PYDIST_TEST_NEW") is None


def test_exename_and_exeflags_start_the_worker(fresh_workers, tmp_path):
    python = executable(tmp_path, 'PYDIST_TEST_WRAPPED=yes exec "$PYTHON" "$@"')
    (pid,) = fresh_workers(1, exename=python, exeflags=["-X", "pydist_test"])
    assert d.remotecall_fetch(environment, pid, "PYDIST_TEST_WRAPPED") == "yes"
    assert d.remotecall_fetch(lambda: sys._xoptions, pid) == {"pydist_test": True}


POOLS = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"]


def test_thread_pools_of_a_worker_have_one_thread_unless_enabled(fresh_workers, monkeypatch):
    for name in POOLS:
        monkeypatch.delenv(name, raising=False)
    (limited,) = fresh_workers(1)
    (unlimited,) = fresh_workers(1, enable_threaded_blas=True)
    assert {d.remotecall_fetch(environment, limited, name) for name in POOLS} == {"1"}
    assert {d.remotecall_fetch(environment, unlimited, name) for name in POOLS} == {None}
    assert {environment(name) for name in POOLS} == {None}


def test_cluster_starts_and_removes_its_own_workers(fresh_workers):
    (other,) = fresh_workers(1)
    with d.cluster(2, env={"PYDIST_TEST_NEW": "given"}) as pids:
        assert d.workers() == [other, *pids]
        assert d.remotecall_fetch(environment, pids[1], "PYDIST_TEST_NEW") == "given"
        (later,) = fresh_workers(1)
    assert d.workers() == [other, later]

    with pytest.raises(KeyError, match="out of it"), d.cluster(1):
        raise KeyError("out of it")
    assert d.workers() == [other, later]


# --- what goes along ----------------------------------------------------------------------------------------


def test_worker_gets_path_directory_and_environment_as_they_are_at_its_start(
    fresh_workers, tmp_path, monkeypatch
):
    (tmp_path / "pydist_test_beside.py").write_text("def where():\n    return __file__\n")
    monkeypatch.setenv("PYDIST_TEST_HERE", "now")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import pydist_test_beside

    (pid,) = fresh_workers(1)
    assert d.remotecall_fetch(os.getcwd, pid) == str(tmp_path)
    assert d.remotecall_fetch(environment, pid, "PYDIST_TEST_HERE") == "now"
    here = [path or str(tmp_path) for path in sys.path]
    assert d.remotecall_fetch(lambda: sys.path, pid)[: len(here)] == here
    assert d.remotecall_fetch(pydist_test_beside.where, pid) == str(tmp_path / "pydist_test_beside.py")


def test_module_beside_the_script_is_found(tmp_path):
    (tmp_path / "beside.py").write_text("def double(x):\n    return 2 * x\n")
    text = """
        import pydist as d
        from beside import double

        (pid,) = d.addprocs(1)
        print(d.remotecall_fetch(double, pid, 21), double.__module__)
        """
    done = run_script(text, cwd=tmp_path)
    assert (done.stdout, done.stderr, done.returncode) == ("42 beside\n", "", 0)


UNGUARDED = """
from pydist import *

print("once")


class Point:
    def __init__(self, x):
        self.x = x


def shift(point, by=1):
    return Point(point.x + by)


pids = addprocs(2)
print(remotecall_fetch(shift, pids[0], Point(1)).x)
print([point.x for point in pmap(shift, [Point(10), Point(20)])])
print(remotecall_fetch(lambda: shift(Point(5), by=len(pids)), pids[1]).x)
"""


@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_script_needs_no_main_guard(how):
    done = run_script(UNGUARDED, how=how)
    assert (done.stdout, done.stderr, done.returncode) == ("once\n2\n[11, 21]\n7\n", "", 0)


def test_interactive_session_works():
    text = """
import pydist as d
pids = d.addprocs(1)
def f(x):
    return x + 1

d.remotecall_fetch(f, pids[0], 41)
"""
    done = run_script(text, how="-", flags=["-i", "-q"])
    assert done.returncode == 0
    assert done.stdout.split() == ["42"]


# --- output -------------------------------------------------------------------------------------------------


def test_output_of_workers_comes_with_their_number():
    done = run_script("""
        import os, subprocess, sys
        import pydist as d

        (pid,) = d.addprocs(1)
        d.remotecall_wait(print, pid, "one line")
        d.remotecall_wait(print, pid, "two\\nlines, ünïcödé")
        d.remotecall_wait(lambda: os.write(1, b"written below Python\\n"), pid)
        d.remotecall_wait(lambda: subprocess.run(["echo", "from a child"]), pid)
        d.remotecall_wait(lambda: print("no end of line", end=""), pid)
        d.rmprocs(pid)
        """)
    assert done.stderr == ""
    texts = ["one line", "two", "lines, ünïcödé", "written below Python", "from a child", "no end of line"]
    assert sorted(done.stdout.splitlines()) == sorted(f"      From worker 2:\t{text}" for text in texts)


def test_lines_of_workers_are_never_interleaved():
    done = run_script("""
        import sys
        import pydist as d

        def chatter():
            for i in range(500):
                for _ in range(4):
                    sys.stdout.write(f"{d.myid()}" * 100)
                    sys.stdout.flush()
                print(f" {i}")

        pids = d.addprocs(2)
        for future in [d.remotecall(chatter, pid) for pid in pids]:
            future.wait()
        d.rmprocs(pids)
        """)
    lines = done.stdout.splitlines()
    assert len(lines) == 1000
    for pid in (2, 3):
        own = [line for line in lines if line.startswith(f"      From worker {pid}:\t")]
        assert own == [f"      From worker {pid}:\t{str(pid) * 400} {i}" for i in range(500)]


# --- removal ------------------------------------------------------------------------------------------------


def test_rmprocs_waits_until_they_are_gone(fresh_workers):
    pids = fresh_workers(3)
    ospids = [d.remotecall_fetch(os.getpid, pid) for pid in pids]
    d.rmprocs(pids[0], pids[1])
    assert d.workers() == [pids[2]]
    assert [exists(ospid) for ospid in ospids] == [False, False, True]
    d.rmprocs([pids[2]])
    assert d.workers() == [1]
    assert not exists(ospids[2])


def test_rmprocs_of_process_1_is_a_value_error(fresh_workers):
    (pid,) = fresh_workers(1)
    for pids in ([1], [pid, 1]):
        with pytest.raises(ValueError, match="1"):
            d.rmprocs(pids)
    assert d.procs() == [1, pid]


def test_rmprocs_of_those_that_have_gone_does_nothing(fresh_workers):
    (pid,) = fresh_workers(1)
    d.rmprocs(pid)
    d.rmprocs(pid)
    d.rmprocs([pid, pid])
    d.rmprocs([])


def test_rmprocs_without_waiting(fresh_workers):
    (pid,) = fresh_workers(1)
    ospid = d.remotecall_fetch(os.getpid, pid)
    removal = d.rmprocs(pid, waitfor=0)
    removal.wait()
    assert d.procs() == [1]
    assert not exists(ospid)


@pytest.mark.timeout(40)
def test_rmprocs_names_those_that_are_still_there(fresh_workers):
    stopped, other = fresh_workers(2)
    ospid = d.remotecall_fetch(os.getpid, stopped)
    os.kill(ospid, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(TimeoutError, match=rf"\b{stopped}\b") as caught:
        d.rmprocs(stopped, other, waitfor=1)
    assert 0.9 <= time.monotonic() - begin < 3
    assert not re.search(rf"\b{other}\b", str(caught.value))
    d.rmprocs(stopped)  # a stopped process heeds only SIGKILL, which comes after 10 s
    assert time.monotonic() - begin < 13
    assert not exists(ospid)


def test_rmprocs_does_not_wait_for_running_calls(fresh_workers):
    (pid,) = fresh_workers(1)
    future = d.remotecall(nap, pid, 60)
    d.rmprocs(pid)
    with pytest.raises(d.ProcessExitedException) as caught:
        future.fetch(timeout=1)
    assert caught.value.pid == pid


# --- workers that do not start ------------------------------------------------------------------------------


def test_launch_error_says_host_status_and_output(tmp_path):
    python = executable(tmp_path, "echo on stdout 0815; echo the reason is 4711 >&2; exit 7")
    begin = time.monotonic()
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(1, exename=python)
    assert time.monotonic() - begin < 5
    text = str(caught.value)
    assert "the reason is 4711" in text
    assert re.search(r"(status|code|exit)\D*7\b", text)
    assert re.search(rf"localhost|127\.0\.0\.1|{re.escape(os.uname().nodename)}", text)
    assert d.procs() == [1]


def test_launch_error_keeps_the_end_of_long_output(tmp_path):
    python = executable(tmp_path, "seq 100000 >&2; echo the last words >&2; exit 1")
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(1, exename=python)
    assert "the last words" in str(caught.value)
    assert len(str(caught.value)) < 10_000


def test_launch_error_for_a_python_that_is_not_there(tmp_path):
    with pytest.raises(d.LaunchWorkerError, match="no-such-python"):
        d.addprocs(1, exename=str(tmp_path / "no-such-python"))


@pytest.mark.parametrize("how", ["parameter", "environment"])
def test_launch_times_out(tmp_path, monkeypatch, how):
    python = executable(tmp_path, "exec sleep 100")
    params = {"timeout": 1.0} if how == "parameter" else {}
    if how == "environment":
        monkeypatch.setenv("PYDIST_WORKER_TIMEOUT", "1")
    begin = time.monotonic()
    with pytest.raises(d.LaunchWorkerError):
        d.addprocs(1, exename=python, **params)
    assert 0.9 <= time.monotonic() - begin < 4
    wait_until(lambda: not psutil.Process().children())


def test_one_error_for_all_lists_failures_and_those_that_are_up(fresh_workers, tmp_path):
    (before,) = fresh_workers(1)
    first = tmp_path / "first"
    script = f'if mkdir {first} 2>/dev/null; then echo no luck >&2; exit 3; fi; exec "$PYTHON" "$@"'
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(3, exename=executable(tmp_path, script))
    error = caught.value
    assert len(error.failures) == 1
    assert all(isinstance(failure, d.LaunchWorkerError) for failure in error.failures)
    assert "no luck" in str(error.failures[0])
    assert "no luck" in str(error)
    assert len(error.started) == 2
    assert d.workers() == [before, *error.started]
    assert [d.remotecall_fetch(d.myid, pid) for pid in error.started] == list(error.started)
    (after,) = fresh_workers(1)
    assert after > max(error.started)
    d.rmprocs(error.started)


def test_no_leftovers_of_a_worker_that_failed(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    d.procs()
    folder = Path(_session.session.folder)
    files = set(folder.iterdir())
    with pytest.raises(d.LaunchWorkerError):
        d.addprocs(2, exename=executable(tmp_path, "exit 1"))
    wait_until(lambda: not psutil.Process().children())
    assert d.procs() == [1]
    assert set(folder.iterdir()) <= files
    assert not list(temporary.iterdir())
