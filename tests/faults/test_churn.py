"""Rows F48 and F49 of the fault table: workers that come while others go; signals to what is gone."""

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

import pydist as d
import tally
from support import exists, wait_until


def ask(pid: int) -> int:
    return d.remotecall_fetch(d.myid, pid)


@pytest.mark.timeout(600)
def test_f48_workers_come_while_others_go(milestone):
    """F48: rmprocs racing addprocs, 500 rounds: a new worker ignores a vanished peer and joins. (Here 20.)"""
    rng = random.Random(48)
    (stays,) = d.addprocs(1)
    pids, seen = d.addprocs(2), []
    with ThreadPoolExecutor(2) as threads:
        for _ in range(500 if milestone else 20):
            gone, kept = pids[0], pids[1:]
            tally.fault("removal during a start")
            # One that has connections to the others, or has none.
            if rng.random() < 0.5:
                assert d.remotecall_fetch(ask, kept[0], gone) == gone
            coming = threads.submit(d.addprocs, 1)
            going = threads.submit(d.rmprocs, gone)
            (new,) = coming.result(30)
            going.result(30)
            seen.append(new)
            assert gone not in d.workers()
            # All others know the new one, and nobody knows the one that has gone.
            for pid in (stays, kept[0]):
                assert d.remotecall_fetch(ask, pid, new) == new
                assert d.remotecall_fetch(ask, new, pid) == pid
            assert d.remotecall_fetch(d.workers, new) == sorted([stays, kept[0], new])
            pids = [*kept, new]
    # F49: ids are never given twice, and grow.
    assert seen == sorted(set(seen))
    d.rmprocs(stays, *pids)


def test_f49_no_signal_goes_to_a_process_that_has_been_reaped(fresh_workers, monkeypatch):
    """F49: signals go to a process only before it is reaped: its number may be somebody else's then."""
    victim, other = fresh_workers(2)
    ospid = d.remotecall_fetch(os.getpid, victim)
    process = d._cluster._workers[victim].config.process  # type: ignore[attr-defined]
    future = d.remotecall(signal.pause, victim)
    os.kill(ospid, signal.SIGKILL)
    with pytest.raises(d.ProcessExitedException):
        future.fetch(timeout=10)
    wait_until(lambda: not exists(ospid), 10, "the end of the process")
    sent = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
        patched.setattr(os, "killpg", lambda pid, number: sent.append((pid, number)))
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGKILL)
        d.rmprocs(victim)
        d.interrupt(other)
    assert [pid for pid, _ in sent if pid == ospid] == []
    assert d.remotecall_fetch(ask, other, other) == other
