"""Everything at once under random faults: nothing is lost, nothing wrong, nothing left."""

from __future__ import annotations

import faulthandler
import gc
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import remote
from crew import INTERVAL, Crew, H
from loads import ALL, Load

import pydist as d
import support
from faults import Injector
from support import wait_until
from support_network import dial_in

LOCAL, FAR = 4, 2
KILLS = 50 / 60
"""So many workers are killed a second, on average."""
AT_REST = ("refs_owned", "refs_held", "calls_outstanding", "calls_running", "queued_bytes", "shared_bytes")


class Deaths(logging.Handler):
    """Counts what is logged of each worker."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if named := re.match(r"worker (\d+)", text):
            self.lines.setdefault(named[1], []).append(text)


@contextmanager
def short_heartbeat() -> Iterator[None]:
    d.set_heartbeat(H, INTERVAL)
    try:
        yield
    finally:
        d.set_heartbeat(30)


def show_stacks(why: str) -> None:
    """Print what every thread of every process does, to be found when the test has failed."""
    print(f"--- {why}", file=sys.stderr)
    faulthandler.dump_traceback(file=sys.__stderr__)
    asking = threading.Thread(target=lambda: print(d.stacks(), file=sys.stderr), daemon=True)
    asking.start()
    asking.join(20)


def watch(loads: list[Load], crew: Crew, injector: Injector, seconds: float) -> list[str]:
    """Let them go on for so long, on a busy machine longer, for enough kills; return what is wrong."""
    end = time.monotonic() + seconds
    latest = end + seconds / 4
    while (now := time.monotonic()) < end or (injector.done["kill"] < KILLS * seconds and now < latest):
        time.sleep(0.1)
        idle = {load.name: time.monotonic() - load.moved for load in loads}
        if min(idle.values()) > 2 * H or max(idle.values()) > 12 * H:
            show_stacks(f"no progress: {idle}")
            return [f"no progress: {idle}"]
        if crew.failure or injector.failure or any(load.failures for load in loads):
            break
    return []


def finish(loads: list[Load]) -> list[str]:
    """Let each load end its step."""
    for load in loads:
        load.ended.set()
    deadline = time.monotonic() + 60
    for load in loads:
        load.join(max(0, deadline - time.monotonic()))
    stuck = [load.name for load in loads if load.is_alive()]
    if stuck:
        show_stacks(f"no end: {stuck}")
        return [f"no end: {stuck}"]
    return []


def held(pid: int = 1) -> dict[str, int]:
    """Say what a process holds that it should not hold at rest."""
    gc.collect()
    stats = d.stats()
    found = {name: stats[name] for name in AT_REST}
    found["segments"] = support.segments()
    if pid != 1:
        found["calls_running"] -= 1  # this one
    return {name: n for name, n in found.items() if n}


def test_chaos(chaos_seconds, chaos_seed, monkeypatch):
    """Chaos soak: maps, channels, futures, nested calls, large and small, under random faults from a seed."""
    print(f"--chaos-seed {chaos_seed} --chaos-seconds {chaos_seconds:g}")
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    deaths = Deaths()
    logging.getLogger("pydist").addHandler(deaths)
    try:
        with short_heartbeat(), dial_in() as far:
            crew = Crew(LOCAL, FAR, far)
            try:
                run(crew, chaos_seconds, chaos_seed)
            finally:
                crew.close()
    finally:
        logging.getLogger("pydist").removeHandler(deaths)
    twice = {pid: lines for pid, lines in deaths.lines.items() if len(lines) > 1}
    assert not twice, "I4: more than one line in the log of one lost worker"


def run(crew: Crew, seconds: float, seed: int) -> None:
    crew.start()
    injector = Injector(crew, seed, pause=0.4)
    loads = [kind(crew, injector, seed) for kind in ALL]
    for load in loads:
        load.start()
    injector.start()
    wrong = watch(loads, crew, injector, seconds)
    injector.stop()
    wrong += finish(loads)
    if not wrong:
        wait_until(lambda: crew.complete() or crew.failure, 30, "replacements for all that were lost")
    crew.stop()
    wrong += [
        "".join(traceback.format_exception(error))
        for error in (crew.failure, injector.failure)
        if error is not None
    ]
    wrong += [text for load in loads for text in load.verdict()]
    report = [
        f"{load.name}: {load.steps} steps, {load.items} items, {load.spoiled} spoiled" for load in loads
    ]
    print("\n".join([*report, f"{dict(injector.done)}, {crew.replaced} replaced"]))
    if wrong:
        print("\n".join(injector.log[-30:]))
        pytest.fail("\n\n".join(wrong[:5]))
    assert all(load.items for load in loads), "a load has done nothing"
    see_rest(crew)
    assert injector.done["kill"] > 0.4 * KILLS * seconds, f"too few faults: {injector.done}"


def see_rest(crew: Crew) -> None:
    """I2, I3: the surviving workers answer, and no process holds anything any more."""
    for pid in crew.pids():
        assert d.remotecall(remote.mix, pid, 1).fetch(timeout=5) == remote.mix(1)

    def at_rest() -> bool:
        return not any([held(), *(d.remotecall_fetch(held, pid, pid) for pid in crew.pids())])

    try:
        wait_until(at_rest, 10)
    except AssertionError:
        left = {1: held()} | {pid: d.remotecall_fetch(held, pid, pid) for pid in crew.pids()}
        pytest.fail(f"not at rest: {left}\n{d.stacks()}")
