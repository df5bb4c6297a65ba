"""Row F24 of the fault table: workers that print more than process 1 takes, and output that is gone."""

import os
import re
import subprocess
import sys
import textwrap
import uuid

import pytest

from support import TOKEN, Script, holders, wait_until

FLOOD = """
    import ctypes, sys, time
    import pydist as d

    def flood(lines):
        line = "x" * 999
        begin = time.monotonic()
        for i in range(lines):
            print(line)
        print("the last line", flush=True)
        return time.monotonic() - begin

    one, two = d.addprocs(2)
    flooding = d.remotecall(flood, one, {lines})
    # Python of this process does nothing until the worker has printed all, as its core knows.
    usleep = ctypes.PyDLL(None).usleep
    deadline = time.monotonic() + 60
    while not flooding.isready() and time.monotonic() < deadline:
        usleep(1_000_000)
    answers = [d.remotecall_fetch(abs, pid, -3) for pid in (one, two)]
    print(flooding.isready(), *answers, file=sys.stderr)
    flooding.fetch(timeout=30)
    """


@pytest.mark.timeout(120)
def test_f24_a_worker_prints_100_mb_while_process_1_is_busy(tmp_path, milestone):
    """F24: calls are not delayed, memory is bounded, and a line tells how much was dropped. (Here 40 MB.)"""
    lines = 100_000 if milestone else 40_000
    with Script(FLOOD.replace("{lines}", str(lines))) as script:
        done = script.finish(100)
        assert done.stderr == "True 3 3\n"
        assert done.returncode == 0
        out = done.stdout
    passed_on = out.count("x" * 999)
    dropped = sum(int(n) for n in re.findall(r"From worker 2:\t\.\.\. dropped (\d+) bytes", out))
    assert dropped > 0
    # Where a line was cut in two, it counts among neither.
    missing = lines * 1000 - dropped - passed_on * 1000
    assert 0 <= missing < 2000 * out.count("dropped")
    assert out.endswith("      From worker 2:\tthe last line\n")


STANDING = """
    import sys
    import pydist as d
    one, two = d.addprocs(2)
    d.remotecall_fetch(print, one, "x" * 1_000_000)
    print("flooded", file=sys.stderr, flush=True)
    (three,) = d.addprocs(1)
    print(d.remotecall_fetch(abs, three, -3), d.remotecall_fetch(abs, one, -3), file=sys.stderr, flush=True)
    d.rmprocs(three)
    print("done", file=sys.stderr, flush=True)
    """


def test_f24_the_output_of_process_1_stands_still():
    """F24: where nobody reads what process 1 prints, calls go on, and workers come and go."""
    read, write = os.pipe()
    try:
        with Script(STANDING, stdout=write) as script:
            os.close(write)
            wait_until(lambda: "done" in script.err or script.process.poll() is not None, 30)
            assert script.err == "flooded\n3 3\ndone\n"
    finally:
        os.close(read)


ENDS = """
    import os, sys
    import pydist as d
    (pid,) = d.addprocs(1)
    d.remotecall_fetch(print, pid, "into the void")
    # The output of the worker is closed too.
    d.remotecall_fetch(os.closerange, pid, 1, 3)
    assert d.remotecall_fetch(abs, pid, -3) == 3
    sys.exit(7)
    """


@pytest.mark.parametrize("how", ["1>&- 2>&-", "| true"])
def test_f24_output_that_is_closed(tmp_path, how):
    """F24: EPIPE never skips teardown: the exit status is that of Python, and no process is left."""
    path, status, token = tmp_path / "script.py", tmp_path / "status", uuid.uuid4().hex
    path.write_text(textwrap.dedent(ENDS))
    # Python ends with 120 where it cannot flush what was printed.
    command = f"('{sys.executable}' '{path}'; echo $? >'{status}') {how}"
    subprocess.run(["bash", "-c", command], env={**os.environ, TOKEN: token}, check=False, timeout=60)
    wait_until(lambda: status.exists() and status.read_text().endswith("\n"), 30)
    assert int(status.read_text()) in ((7,) if "&" in how else (7, 120))
    wait_until(lambda: not holders(token), 5, "the end of all processes")
