"""What the processes run and wait for, also where their Python is stuck; warnings of waits that take long."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

import pydist as d
from support import hold_gil, stop, touch, wait_until


@pytest.fixture
def running(workers) -> Iterator[list[d.Future]]:
    """Give a list for calls, which are interrupted at the end."""
    futures: list[d.Future] = []
    yield futures
    for future in futures:
        future.cancel()
    d.interrupt(*workers)
    wait_until(lambda: all(d.stats(pid)["calls_running"] == 0 for pid in workers))


def nap_here(path: str) -> None:
    touch(path)
    time.sleep(60)


def take_from(channel: d.RemoteChannel) -> None:
    channel.take()


def ask_another(pid: int, path: str) -> None:
    d.remotecall_fetch(nap_here, pid, path)


async def wait_async(path: str) -> None:
    touch(path)
    await asyncio.sleep(60)


def compute(path: str) -> None:
    touch(path)
    while True:
        pass


def test_every_running_call_is_told_with_what_it_waits_for(workers, running, tmp_path):
    one, two = workers
    paths = [str(tmp_path / name) for name in "abcd"]
    channel = d.RemoteChannel(lambda: d.Channel(1), one)
    running += [
        d.remotecall(nap_here, one, paths[0]),
        d.remotecall(take_from, two, channel),
        d.remotecall(ask_another, two, one, paths[1]),
        d.remotecall(wait_async, two, paths[2]),
        d.remotecall(compute, two, paths[3]),
    ]
    wait_until(lambda: all(map(os.path.exists, paths)))
    thread = threading.Thread(target=running[0].wait, name="the user's", daemon=True)
    thread.start()
    wait_until(lambda: "wait of <Future" in d.stacks(1)[1])

    wait_until(lambda: "take of" in d.stacks(two)[two])
    found = d.stacks()
    assert list(found) == [1, one, two]
    assert 'thread "the user\'s"' in found[1]
    assert found[one].count("in nap_here") == 2
    assert "it waits: sleep of 60 s" in found[one]
    assert f"call {running[0].id} of process 1:" in found[one]
    assert f"of process {two}:" in found[one]
    assert f"it waits: take of <RemoteChannel {one}." in found[two]
    assert f"it waits: remotecall_fetch on process {one}" in found[two]
    assert ", async:" in found[two]
    assert "in wait_async" in found[two]
    assert "in compute" in found[two]
    text = str(found)
    assert all(part in text for part in ("process 1:", "nap_here", "compute"))
    running[0].cancel()
    thread.join(10)


def test_stacks_of_a_process_whose_python_is_stuck(workers, running, tmp_path):
    """The core answers for a call that holds the interpreter in C code, without waiting for it to end."""
    pid, other = workers
    flag = tmp_path / "started"
    napping = str(tmp_path / "naps")
    running.append(d.remotecall(nap_here, pid, napping))
    wait_until(lambda: os.path.exists(napping))
    stuck = d.remotecall(hold_gil, pid, 3, str(flag))
    wait_until(flag.exists)
    found = d.stacks([pid, other])
    assert not stuck.isready()
    assert "holds the interpreter" in found[pid]
    assert f"call {stuck.id} of process 1 runs" in found[pid]
    assert "in hold_gil" in found[pid]
    assert "in nap_here" in found[pid]
    assert found[other] == ""
    assert "runs nothing" in str(found)
    assert stuck.fetch(timeout=20) == "released"
    assert "hold_gil" not in d.stacks(pid)[pid]


def test_stacks_of_a_stopped_process(fresh_workers, monkeypatch):
    (pid,) = fresh_workers(1)
    ospid = d.remotecall_fetch(os.getpid, pid)
    monkeypatch.setattr("pydist._stacks.ANSWER_SECONDS", 1.0)
    stop(ospid)
    try:
        assert "stopped, or cannot be reached" in d.stacks(pid)[pid]
    finally:
        os.kill(ospid, signal.SIGCONT)
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)


def test_a_worker_asks_others(workers, running, tmp_path):
    one, two = workers
    path = str(tmp_path / "naps")
    running.append(d.remotecall(nap_here, two, path))
    wait_until(lambda: os.path.exists(path))
    assert "in nap_here" in d.remotecall_fetch(d.stacks, one, two)[two]


def test_wrong_processes(workers):
    with pytest.raises(ValueError, match="999999999"):
        d.stacks(999_999_999)
    with pytest.raises(TypeError):
        d.stacks("two")
    assert d.stacks([]) == {}


SLOW = """
import time
import pydist as d

def slow():
    time.sleep(1)
    return "value"

(pid,) = d.addprocs(1)
channel = d.RemoteChannel(lambda: d.Channel(1))
{wait}
print("done")
d.rmprocs(pid)
"""


@pytest.mark.parametrize(
    "wait",
    [
        "assert d.remotecall(slow, pid).fetch() == 'value'",
        "d.remotecall(slow, pid).wait(timeout=20)",
        "assert d.remotecall_fetch(slow, pid) == 'value'",
        "d.remotecall(lambda: (slow(), channel.put(1)), pid); channel.take()",
    ],
    ids=["fetch", "wait", "remotecall_fetch", "take"],
)
def test_a_wait_that_takes_long_is_warned_of_once(run_script, wait):
    done = run_script(SLOW.format(wait=wait), env={"PYDIST_HANG_REPORT": "0.4"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert done.stderr.count("process 1 waits for more than 0.4 s (PYDIST_HANG_REPORT)") == 1
    assert "in slow" in done.stderr
    assert "it waits: " in done.stderr


def test_a_wait_that_ends_in_time_is_not_warned_of(run_script):
    text = SLOW.format(wait="assert d.remotecall(slow, pid).fetch() == 'value'")
    assert run_script(text, env={"PYDIST_HANG_REPORT": "30"}).stderr == ""
