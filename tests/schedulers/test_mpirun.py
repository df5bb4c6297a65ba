"""Workers that `mpirun` starts: of a program that runs under it, and of a manager that they dial."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import pydist as d
from pydist import _mpi
from support import alive, wait_until
from support_managers import ask


@pytest.fixture
def run(mpirun, tmp_path):
    """Give a function that runs pydist in so many processes."""

    def run(n, *words, **environment):
        return subprocess.run(
            [*mpirun, "-n", str(n), sys.executable, "-m", "pydist", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, **environment},
            check=False,
        )

    return run


def meeting_files():
    folder = Path(os.environ["PYDIST_MEETING_FOLDER"])
    return list(folder.iterdir()) if folder.exists() else []


SCRIPT = """
import os, sys
import pydist as d
import beside
ranks = [d.remotecall_fetch(os.getenv, pid, "OMPI_COMM_WORLD_RANK") for pid in d.workers()]
print(sys.argv[1:], d.procs(), ranks, d.pmap(beside.square, range(4)))
other = d.remotecall_fetch(d.remotecall_fetch, 2, d.myid, 3)
print(other, d.remotecall_fetch(os.getenv, 2, "OMP_NUM_THREADS"))
d.remotecall_fetch(print, 2, "from a worker")
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("flags", [(), ("--mpi",)], ids=["found out", "asked for"])
def test_a_script_runs_unchanged(run, tmp_path, flags):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    (folder / "beside.py").write_text("def square(x):\n    return x * x\n")
    status = 3 if flags else 0
    done = run(3, *flags, "folder/script.py", str(status))
    assert done.returncode == status, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert lines == ["3 1", f"['{status}'] [1, 2, 3] ['1', '2'] [0, 1, 4, 9]", "from a worker"]
    assert meeting_files() == []


def test_one_process_has_no_workers(run):
    done = run(1, "-c", "import pydist as d; print(d.procs())")
    assert (done.stdout, done.returncode) == ("[1]\n", 0)


def test_other_workers_are_asked_for(run):
    done = run(2, "-p", "1", "-c", "import pydist as d; print(d.procs())")
    assert (done.stdout, done.returncode) == ("[1, 2]\n[1, 2]\n", 0)


def test_what_the_program_starts_is_no_process_of_mpirun(run):
    code = (
        "import subprocess, sys; "
        "subprocess.run([sys.executable, '-m', 'pydist', '-c', 'import pydist as d; print(d.procs())'])"
    )
    done = run(2, "-c", code)
    assert (done.stdout, done.returncode) == ("[1]\n", 0), done.stderr


def test_an_exception_ends_all(run):
    done = run(2, "-c", "1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_what_is_left_of_a_crash_does_no_harm(mpirun, tmp_path):
    """Rank 1 finds a file that an earlier run left behind, and waits for that of this one."""
    left = {
        "host": os.uname().nodename,
        "head": "unix:/nowhere",
        "addresses": ["tcp:127.0.0.1:1"],
        "pids": [[2, 1]],
    }
    environment = {**os.environ, "PMI_SIZE": "2", "PMI_PORT": "here:1"}
    environment.pop("PYDIST_MPI_TAKEN", None)
    command = [sys.executable, "-m", "pydist", "-c", "import pydist as d; print(d.procs())"]
    digest = hashlib.sha256(b"PMI_PORT=here:1").hexdigest()[:24]
    _mpi._write(
        str(Path(os.environ["PYDIST_MEETING_FOLDER"]) / f"mpi-{digest}"), f"00\n{json.dumps(left)}\n".encode()
    )
    ranks = [
        subprocess.Popen(command, env={**environment, "PMI_RANK": rank}, stdout=subprocess.PIPE, text=True)
        for rank in ("1", "0")
    ]
    outputs = [process.communicate(timeout=60)[0] for process in ranks]
    assert outputs == ["", "[1, 2]\n"]
    assert [process.returncode for process in ranks] == [0, 0]
    assert meeting_files() == []


def test_a_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "meeting"
    _mpi._write(str(path), b"00\n{}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert _mpi._read(str(path)) == ("00", {})
    path.chmod(0o640)
    with pytest.raises(PermissionError, match="others may read it"):
        _mpi._read(str(path))


def test_killed_process_1_takes_the_others_along(mpirun, tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, time, pydist as d\n"
        "print('up', os.getpid(), *[d.remotecall_fetch(os.getpid, p) for p in d.workers()], flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [*mpirun, "-n", "3", sys.executable, "-m", "pydist", "script.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    word, *ospids = process.stdout.readline().split()
    assert (word, len(ospids)) == ("up", 3)
    os.kill(int(ospids[0]), signal.SIGKILL)
    assert process.wait(20) != 0
    process.stdout.close()
    wait_until(lambda: not any(alive(int(ospid)) for ospid in ospids))


def test_workers_that_mpirun_starts_dial_a_manager(mpirun):
    with d.ElasticManager() as manager:
        d.addprocs(manager)
        command = f"exec {' '.join(mpirun)} -n 2 {manager.command()}"
        process = subprocess.Popen(command, shell=True)
        pids = wait_until(
            lambda: (now := [pid for pid in d.procs() if pid != 1]) and len(now) == 2 and now, 30
        )
        ranks = [d.remotecall_fetch(os.getenv, pid, "OMPI_COMM_WORLD_RANK") for pid in pids]
        assert sorted(ranks) == ["0", "1"]
        assert ask(*pids) == pids[1]
        assert d.pmap(abs, range(-9, 0)) == list(range(9, 0, -1))
        d.rmprocs(pids)
        assert process.wait(20) == 0
