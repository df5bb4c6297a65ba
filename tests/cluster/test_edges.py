"""Edges of the contract: broken streams, odd errors, odd paths, references to what is gone."""

import dataclasses
import io
import os
import pickle
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

import pydist as d
from support import run_script, wait_until


class BrokenStream(io.TextIOBase):
    def __init__(self) -> None:
        self.asked = 0

    def write(self, text: str) -> int:
        self.asked += 1
        raise RuntimeError("no output today")


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


def raise_frozen() -> None:
    raise FrozenError(3)


@pytest.fixture
def gone(fresh_workers) -> tuple[int, d.Future]:
    (pid,) = fresh_workers(1)
    future = d.Future(pid)
    d.remote_do(os._exit, pid, 1)
    wait_until(lambda: pid not in d.procs(), 10)
    return pid, future


def test_workers_survive_a_stdout_that_raises(workers):
    with redirect_stdout(BrokenStream()) as broken:
        d.remotecall_wait(print, workers[0], "hello")
        wait_until(lambda: broken.asked, 10)
    assert d.remotecall_fetch(abs, workers[0], -1) == 1
    assert set(workers) <= set(d.workers())


@pytest.mark.parametrize("where", ["here", "there"])
def test_an_exception_that_forbids_attributes_ends_its_call(workers, where):
    pid = d.myid() if where == "here" else workers[0]
    with pytest.raises(d.RemoteException):
        d.remotecall(raise_frozen, pid).fetch(timeout=10)


def test_whether_a_future_of_a_dead_process_is_ready_raises(gone):
    pid, future = gone
    with pytest.raises(d.ProcessExitedException) as caught:
        future.isready()
    assert caught.value.pid == pid


@pytest.mark.parametrize("use", [d.wait, lambda future: list(d.as_completed([future])), d.fetch])
def test_a_future_from_outside_the_cluster_is_a_value_error(use):
    with pytest.raises(ValueError, match="outside of its cluster"):
        use(pickle.loads(pickle.dumps(d.Future())))


def test_modules_of_pythonpath_in_env_are_found(fresh_workers, tmp_path):
    (tmp_path / "only_in_env.py").write_text("answer = 42\n")
    (pid,) = fresh_workers(1, env={"PYTHONPATH": str(tmp_path)})
    assert d.remotecall_eval("import only_in_env; only_in_env.answer", pid) == 42


def test_paths_that_are_no_strings_do_not_matter(fresh_workers, monkeypatch, tmp_path):
    (tmp_path / "beside_a_path.py").write_text("answer = 43\n")
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    (pid,) = fresh_workers(1)
    assert d.remotecall_eval("import beside_a_path; beside_a_path.answer", pid) == 43


SCRIPT = "import pydist as d; d.addprocs(1); print(d.remotecall_fetch(abs, 2, -7))"


def test_files_of_the_working_directory_do_not_shadow_modules(tmp_path):
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "sub/script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_a_working_directory_that_is_gone_does_not_matter(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", f"import shutil; shutil.rmtree({str(folder)!r}); {SCRIPT}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "7\n", done.stderr


FORKED = """
import os, pydist as d
d.addprocs(1)
done = d.remotecall(abs, 2, -1)
done.fetch()
child = os.fork()
if child == 0:
    bad = []
    nothing = (lambda: d.rmprocs([]), lambda: d.addprocs(0))
    for call in (d.cluster_cookie, done.fetch, d.procs, d.stats, *nothing):
        try:
            call()
        except RuntimeError:
            continue
        bad.append(call)
    os._exit(len(bad))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), d.remotecall_fetch(abs, 2, -5))
"""


def test_f25_every_call_in_a_forked_child_raises():
    """F25: any API call in the child is a RuntimeError; the parent is unaffected."""
    assert run_script(FORKED, timeout=60).stdout == "0 5\n"
