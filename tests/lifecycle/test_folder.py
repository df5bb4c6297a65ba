"""Where the sockets of a cluster lie."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tally
from pydist import _folders
from support import wait_until

CALL = """
import os, pydist as d
(pid,) = d.addprocs(1)
print(d.remotecall_fetch(abs, pid, -7), d._session.session.folder)
"""


def run(tmpdir: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", CALL],
        env={**os.environ, "TMPDIR": str(tmpdir)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    value, folder = done.stdout.split()
    return value, folder


def test_a_long_path_of_temporary_files_does_not_matter(tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    value, folder = run(long)
    assert value == "7"
    assert not folder.startswith(str(long))


def test_the_folder_of_temporary_files_is_used_where_it_fits(tmp_path_factory):
    short = Path("/tmp") / f"pd{os.getpid()}"
    short.mkdir(mode=0o700)
    try:
        value, folder = run(short)
        assert value == "7"
        assert folder.startswith(str(short))
        assert not list(short.iterdir())
    finally:
        short.rmdir()


def test_the_folder_is_closed_to_others():
    code = "import os, pydist as d; d.addprocs(1); print(os.stat(d._session.session.folder).st_mode)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert stat.S_IMODE(int(done.stdout)) == 0o700


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder for temporary files whose path is short."""
    path = Path(tempfile.mkdtemp(prefix="pd", dir="/tmp"))
    yield path
    assert not list(path.iterdir())
    path.rmdir()


START = """
import os, sys, time, pydist as d
d.ElasticManager().command()
print(d.remotecall_fetch(abs, 1, -7), flush=True)
sys.stdin.read(1)
"""


def test_f11_what_a_killed_process_leaves_is_removed_by_the_next(folder):
    """F11: SIGKILL of a process without workers leaves its folder to the next one, which removes them."""
    env = {**os.environ, "TMPDIR": str(folder)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}

    def start() -> tuple[subprocess.Popen, set[Path]]:
        process = subprocess.Popen([sys.executable, "-c", START], env=env, **pipes)
        assert process.stdout.readline() == b"7\n"
        return process, set(folder.iterdir())

    first, of_first = start()
    (left,) = of_first
    assert {path.name for path in left.iterdir()} == {"1", "cookie"}
    tally.fault("SIGKILL of process 1")
    first.kill()
    first.wait(10)
    assert set(folder.iterdir()) == of_first
    second, of_second = start()
    assert len(of_second) == 1
    assert not of_first & of_second
    third, of_third = start()
    assert of_third > of_second
    for process in (first, second, third):
        process.communicate(timeout=20)
    assert (second.returncode, third.returncode) == (0, 0)


def test_f11_workers_remove_what_a_killed_process_leaves(folder):
    """F11: SIGKILL of a process with workers leaves no folder, and no file with the cookie."""
    code = START.replace("print(", "d.addprocs(1)\nprint(")
    env = {**os.environ, "TMPDIR": str(folder)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, **pipes)
    assert process.stdout.readline() == b"7\n"
    (left,) = folder.iterdir()
    assert {"1", "2", "cookie"} <= {path.name for path in left.iterdir()}
    tally.fault("SIGKILL of process 1")
    process.kill()
    process.communicate(timeout=20)
    wait_until(lambda: not list(folder.iterdir()))


def test_f25_a_forked_child_does_not_keep_the_folder_of_its_parent(folder):
    """F25: the folders of a process that was killed are removed though a forked child of it lives."""
    code = START.replace(
        "print(", "child = os.fork()\nif not child:\n    sys.stdin.read()\n    os._exit(0)\nprint("
    )
    env = {**os.environ, "TMPDIR": str(folder)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], env=env, **pipes)
    assert process.stdout.readline() == b"7\n"
    process.kill()
    process.wait(10)
    assert list(folder.iterdir())
    assert run(folder)[0] == "7"
    assert not list(folder.iterdir())
    process.communicate(timeout=20)


def test_folders_of_others_are_left_alone(folder):
    """What is open to others, or is no folder, was not made by pydist."""
    opened, link = folder / f"{_folders.OWNED}1", folder / f"{_folders.OWNED}2"
    opened.mkdir(mode=0o755)
    link.symlink_to(opened)
    (folder / f"{_folders.OWNED}3").touch()
    assert run(folder)[0] == "7"
    assert len(list(folder.iterdir())) == 3
    for path in folder.iterdir():
        if path != opened:
            path.unlink()
    opened.rmdir()
