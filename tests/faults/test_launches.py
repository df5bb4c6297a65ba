"""Rows F3 and F4 of the fault table: workers that die or talk nonsense while they start."""

import time

import psutil
import pytest

import pydist as d
from support import executable, rss, wait_until

MIB = 2**20


def test_f03_sigkill_before_anything(fresh_workers, tmp_path):
    """F3: SIGKILL during addprocs, before address: LaunchError within 1 s of the death, with exit status."""
    (before,) = fresh_workers(1)
    begin = time.monotonic()
    with pytest.raises(d.LaunchWorkerError, match=r"(?i)(signal|status)\D*9\b|SIGKILL"):
        d.addprocs(1, exename=executable(tmp_path, "echo about to die >&2; kill -9 $$"))
    assert time.monotonic() - begin < 1.5
    assert d.workers() == [before]


@pytest.mark.timeout(110)
@pytest.mark.parametrize("delays", [(0.01, 0.03, 0.06, 0.1), (0.13, 0.16, 0.2), (0.25, 0.3, 0.4)])
def test_f03_sigkill_at_points_of_the_launch(fresh_workers, tmp_path, delays):
    """F3: SIGKILL during addprocs at 5 points (the delays spread over them).

    LaunchError within 1 s of the death (not L); survivors listed on the error and usable; ids never
    reused; next addprocs works.
    """
    highest = 1
    for delay in delays:
        first = tmp_path / f"first-{delay}"
        victim = executable(
            tmp_path,
            f"""
            if mkdir {first} 2>/dev/null; then
                (sleep {delay}; kill -9 $$) </dev/null >/dev/null 2>&1 &
            fi
            exec "$PYTHON" "$@"
            """,
        )
        begin = time.monotonic()
        try:
            ids = d.addprocs(3, exename=victim)
        except d.LaunchWorkerError as error:
            assert time.monotonic() - begin < delay + 5  # the two others have to start
            failures, ids = error.failures, list(error.started)
        else:
            failures = ()
        assert len(failures) == 3 - len(ids) <= 1
        survivors = wait_until(lambda ids=ids: (now := answering(ids)) and len(now) == 2 and now, 5)
        assert min(ids) > highest
        highest = max(ids)
        (new,) = fresh_workers(1)
        assert new > highest
        highest = new
        assert d.remotecall_fetch(d.remotecall_fetch, survivors[0], d.myid, survivors[1]) == survivors[1]
        d.rmprocs([*survivors, new])
        wait_until(lambda: d.procs() == [1])
        wait_until(lambda: not psutil.Process().children(recursive=True))


def answering(ids: list[int]) -> list[int]:
    found = []
    for pid in ids:
        try:
            found.append(d.remotecall(d.myid, pid).fetch(timeout=5))
        except d.ProcessExitedException:
            continue
    return found


@pytest.mark.timeout(40)
@pytest.mark.parametrize(
    "talk",
    [
        "exec sleep 100",
        "echo this is no address; echo 0123456789; exec sleep 100",
        "head -c 3000 /dev/urandom; exec sleep 100",
        'exec "$PYTHON" -c "import os\nwhile True: os.write(1, b\'x\' * 65536)"',
        'exec "$PYTHON" -c "import os\nwhile True: os.write(2, b\'x\' * 65536)"',
    ],
    ids=["nothing", "no address", "garbage", "endless line", "endless line on stderr"],
)
def test_f04_worker_that_talks_nonsense(fresh_workers, tmp_path, talk):
    """F4: no address / garbage / 1 GB without newline: LaunchError at L; child killed and reaped."""
    (before,) = fresh_workers(1)
    memory = rss()
    begin = time.monotonic()
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(1, exename=executable(tmp_path, talk), timeout=2)
    assert time.monotonic() - begin < 5
    assert len(str(caught.value)) < 20_000
    assert rss() - memory < 50 * MIB
    (child,) = psutil.Process().children(recursive=True)
    assert child.pid == d.remotecall_fetch(lambda: __import__("os").getpid(), before)
    (after,) = fresh_workers(1)
    assert d.remotecall_fetch(d.myid, after) == after
