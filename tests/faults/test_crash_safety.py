"""Rows F5 and F11 of the fault table: what a cluster leaves behind that is killed as a whole, at work."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import tally
from support import Script, stop

SCRIPT = """
    import os, time
    import numpy
    import pydist as d

    def keep(data):
        import __main__
        __main__.kept.append(data)
        return len(data)

    pids = d.addprocs(2)
    d.remotecall_eval("kept = []", pids)
    data = numpy.ones(1 << 22)
    assert [d.remotecall_fetch(keep, pid, data) for pid in pids] == [1 << 22] * 2
    results = [d.remotecall_fetch(numpy.zeros, pid, 1 << 22) for pid in pids]
    assert d.remotecall_fetch(d.remotecall_fetch, pids[0], keep, pids[1], data)
    under_way = [d.remotecall(time.sleep, pid, 1000) for pid in pids]
    assert d.stats()["shared_bytes"] >= 1 << 26
    print("ready", *(d.remotecall_fetch(os.getpid, pid) for pid in (1, *pids)), flush=True)
    while True:
        for pid in pids:
            d.remotecall_fetch(len, pid, data)
    """
NEXT = "import pydist as d; print(d.remotecall_fetch(abs, 1, -7))"


@pytest.fixture
def folder():
    """Give a folder for temporary files, which is to be empty in the end."""
    with tempfile.TemporaryDirectory(prefix="pd", dir="/tmp") as path:
        yield Path(path)


def files_of(ospid: int) -> set[str]:
    """Give the files that a process has open or mapped, without those that it only runs."""
    mapped = re.findall(r"^\S+ rw\S+ \S+ \S+ \d+ +(/.*)$", Path(f"/proc/{ospid}/maps").read_text(), re.M)
    opened = [os.readlink(entry) for entry in Path(f"/proc/{ospid}/fd").iterdir()]
    return {path for path in (*mapped, *opened) if path.startswith("/")}


def test_f11_sigkill_of_all_processes_leaves_nothing(folder):
    """F5, F11: large shared arrays are in use; nobody is left to clean up, and nothing is left in memory."""
    with Script(SCRIPT, env={"TMPDIR": str(folder)}) as script:
        script.wait_for("ready")
        ospids = [int(word) for word in script.out.split()[1:4]]
        for ospid in ospids:
            stop(ospid)
        shared = [path for ospid in ospids for path in files_of(ospid) if "memfd" in path]
        assert len(shared) >= 3
        # The memory is anonymous: it has no name, and goes with the last process that maps it.
        assert all(re.fullmatch(r"/memfd:\S+ \(deleted\)", path) for path in shared)
        for ospid in ospids:
            assert not [path for path in files_of(ospid) if path.startswith("/dev/shm")]
        tally.fault("SIGKILL of all processes")
        for ospid in (*ospids, *script.survivors()):
            os.kill(ospid, signal.SIGKILL)
        script.process.wait(10)
        script.wait_gone(5)
        (left,) = folder.iterdir()
        assert {path.name for path in left.iterdir()} <= {"1", "2", "3"}  # sockets that nobody listens on
    done = subprocess.run(
        [sys.executable, "-c", NEXT],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (b"7\n", b"")
    assert not list(folder.iterdir())
