"""The template from which local workers are forked: they are as others are, and start sooner."""

import os
import resource
import signal
import threading
import time

import psutil
import pytest

from pydist.managers import _forks
from support import Script, run_script, wait_until


def state() -> dict[str, object]:
    """Return what a worker is like."""
    return {
        "parent": os.getppid(),
        "leads its session": os.getsid(0) == os.getpid() == os.getpgrp(),
        "main thread": threading.main_thread().native_id == os.getpid(),
        "descriptors": sorted(
            os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in range(200) if is_open(fd)
        ),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        "mask": umask(),
    }


def is_open(fd: int) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def template() -> psutil.Process | None:
    """Return the template that is there."""
    current = _forks._current
    if current is None or current.ended.is_set():
        return None
    return psutil.Process(current.process.pid)


def is_forked(d, pid: int) -> bool:
    return "serve" in " ".join(d.remotecall_fetch(lambda: psutil.Process().cmdline(), pid))


def test_a_forked_worker_is_like_one_that_was_started(d, fresh_workers, monkeypatch):
    monkeypatch.setenv("PYDIST_TEMPLATE", "1")
    (forked,) = fresh_workers(1)
    found = d.remotecall_fetch(state, forked)
    monkeypatch.setenv("PYDIST_TEMPLATE", "0")
    (started,) = fresh_workers(1)
    wanted = d.remotecall_fetch(state, started)
    assert (is_forked(d, forked), is_forked(d, started)) == (True, False)
    for one in (found, wanted):
        one["environment"].pop("PYDIST_TEMPLATE")
    assert found == wanted
    assert found["parent"] == os.getpid()
    assert found["leads its session"]
    assert found["main thread"]


def test_workers_take_after_process_1_as_it_is_at_their_start(d, fresh_workers, monkeypatch, tmp_path):
    fresh_workers(1)
    before = template()
    monkeypatch.setenv("PYDIST_TEST_LATE", "late")
    monkeypatch.chdir(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mask = os.umask(0o27)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        (pid,) = fresh_workers(1)
    finally:
        os.umask(mask)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    found = d.remotecall_fetch(state, pid)
    assert found["environment"]["PYDIST_TEST_LATE"] == "late"
    assert (found["folder"], found["limit"], found["mask"]) == (str(tmp_path), (soft - 1, hard), 0o27)
    assert "PYDIST_TEST_LATE" in d.remotecall_fetch(lambda: psutil.Process().environ(), pid)
    assert is_forked(d, pid)
    assert before is None or not before.is_running() or before != template()


def test_the_template_ends_when_nobody_wants_a_worker(d, fresh_workers):
    (pid,) = fresh_workers(1)
    wait_until(lambda: template() is None)
    ospid = d.remotecall_fetch(os.getpid, pid)
    assert [child.pid for child in psutil.Process().children()] == [ospid]
    (again,) = fresh_workers(1)
    assert is_forked(d, again)


def test_workers_outlive_a_template_that_is_killed_and_the_next_has_another(d, fresh_workers):
    (pid,) = fresh_workers(1)
    killed = wait_until(lambda: template() or (fresh_workers(1) and None))
    killed.kill()
    (again,) = fresh_workers(1)
    assert d.remotecall_fetch(abs, pid, -1) == d.remotecall_fetch(abs, again, -1) == 1
    assert is_forked(d, again)


def test_a_template_that_hangs_is_killed_and_the_next_worker_has_another(d, fresh_workers):
    fresh_workers(1)
    hung = wait_until(lambda: template() or (fresh_workers(1) and None))
    hung.suspend()
    begin = time.monotonic()
    (pid,) = fresh_workers(1)
    assert time.monotonic() - begin < _forks.WAIT_SECONDS + 3  # an interpreter may have to start then
    assert d.remotecall_fetch(abs, pid, -1) == 1
    wait_until(lambda: not hung.is_running())
    (again,) = fresh_workers(1)
    assert is_forked(d, again)


def test_templates_that_all_hang_leave_time_for_interpreters():
    done = run_script(
        """
        import os, signal, time
        import pydist as d
        from pydist.managers import _forks

        class Hangs(_forks._Template):
            def __init__(self, *args):
                super().__init__(*args)
                os.kill(self.process.pid, signal.SIGSTOP)

        _forks._Template = Hangs
        begin = time.monotonic()
        pids = d.addprocs(2)
        assert time.monotonic() - begin < _forks.WAIT_SECONDS + 5
        print([d.remotecall_fetch(abs, pid, -pid) for pid in pids], _forks._current, _forks._refused is None)
        """
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[2, 3] None False\n", "", 0)


@pytest.mark.parametrize(
    "wrong", [{"dir": "/there/is/no/folder"}, {"topology": "master_worker"}], ids=["launch", "settings"]
)
def test_workers_that_were_made_ahead_and_are_not_wanted_are_ended(d, fresh_workers, wrong):
    (pid,) = fresh_workers(1)
    current = template()
    assert current is not None
    here = psutil.Process().children()
    with pytest.raises(ValueError, match=r"there is no folder|must have the same"):
        d.addprocs(3, **wrong)
    assert set(psutil.Process().children()) <= {*here, *([new] if (new := template()) else [])}
    assert d.workers() == [pid]
    assert is_forked(d, fresh_workers(1)[0])


def test_more_workers_than_are_made_ahead_are_different_ones(d, fresh_workers):
    pids = fresh_workers(7)
    ospids = [d.remotecall_fetch(os.getpid, pid) for pid in pids]
    assert len(set(ospids)) == 7
    assert all(is_forked(d, pid) for pid in pids)


def test_how_a_forked_worker_ended_is_known(d, fresh_workers):
    first, second = fresh_workers(2)
    assert is_forked(d, first)
    with pytest.raises(d.ProcessExitedException, match="exit code 7"):
        d.remotecall_fetch(os._exit, first, 7)
    with pytest.raises(d.ProcessExitedException, match="signal 11"):
        d.remotecall_fetch(signal.raise_signal, second, signal.SIGSEGV)


def test_workers_draw_different_random_numbers(d, fresh_workers):
    def draw():
        import random
        import uuid

        return random.random(), uuid.uuid4(), os.urandom(8)

    one, other = (d.remotecall_fetch(draw, pid) for pid in fresh_workers(2))
    assert not set(one) & set(other)


def test_without_a_template_that_has_one_thread_each_worker_is_an_interpreter(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    done = run_script(
        """
        import pydist as d
        from pydist.managers import _forks

        pids = d.addprocs(2)
        print([d.remotecall_fetch(abs, pid, -pid) for pid in pids], _forks._current, _forks._refused is None)
        """,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[2, 3] None False\n", "", 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_f11_the_template_ends_with_process_1(workers):
    """F11: head SIGKILL, with the template waiting for its next request: every process gone within 2 s."""
    text = f"""
    import time
    import pydist as d
    from pydist.managers import _forks

    pids = d.addprocs(2)
    d.rmprocs(pids[{workers}:])
    assert not _forks._current.ended.is_set()
    print("ready", flush=True)
    time.sleep(600)
    """
    with Script(text) as script:
        script.wait_for("ready")
        script.process.kill()
        script.wait_gone(2)


def test_f12_the_template_ends_with_the_script():
    """F12: a script that ends while its template waits leaves no process, and says nothing."""
    with Script("import pydist as d\nd.rmprocs(d.addprocs(1))\n") as script:
        done = script.finish()
        script.wait_gone(0.5)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
