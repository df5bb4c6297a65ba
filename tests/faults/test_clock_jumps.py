"""Row F54 of the fault table: the wall clock jumps by an hour, in the whole process and its workers."""

import subprocess
from pathlib import Path

import pytest

import tally
from support import run_script

SCRIPT = """
    import os
    import time

    import pydist as d

    def jumps():
        low = high = time.time() - time.monotonic()
        while high - low < 7000:
            now = time.time() - time.monotonic()
            low, high = min(low, now), max(high, now)
            time.sleep(0.001)
        return high - low

    pids = d.addprocs(2)
    d.set_heartbeat(timeout=1.5, interval=0.25)
    begin = time.monotonic()
    for pid in d.procs():
        assert d.remotecall_eval("__import__('pydist').remotecall_fetch(abs, 1, -1)", pid) == 1
        assert d.remotecall_fetch(jumps, pid) >= 7000

    for wait in (d.RemoteChannel(pid=pids[0]).take, d.RemoteChannel().take, d.Future(pids[1]).fetch):
        waits = time.monotonic()
        try:
            wait(timeout=0.3)
        except TimeoutError:
            assert 0.3 <= time.monotonic() - waits < 10
        else:
            raise AssertionError("something out of nothing")
    d.remotecall(time.sleep, pids[1], 0.5).fetch(timeout=30)
    assert d.pmap(abs, range(-500, 0)) == list(range(500, 0, -1))
    while time.monotonic() - begin < 3.5:
        time.sleep(0.1)
        assert d.remotecall_fetch(d.remotecall_fetch, pids[0], os.getpid, pids[1]) != os.getpid()
    assert d.workers() == pids
    d.rmprocs(pids)
    print("all is well")
    """


@pytest.fixture(scope="module")
def jumping_clock(tmp_path_factory) -> str:
    """Compile what is preloaded."""
    library = tmp_path_factory.mktemp("clock") / "jumping_clock.so"
    source = Path(__file__).with_name("jumping_clock.c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return str(library)


def test_f54_the_wall_clock_jumps(jumping_clock):
    """F54: nothing: no death, no early end of a wait, no late one; timers go by monotonic time."""
    done = run_script(SCRIPT, env={"LD_PRELOAD": jumping_clock})
    tally.fault("clock jump")
    assert done.returncode == 0, done.stderr
    assert "all is well" in done.stdout
