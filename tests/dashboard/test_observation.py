"""What cores tell of their processes, and what the sampler makes of it."""

from __future__ import annotations

import asyncio
import functools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import support
from pydist import _core, _recording
from pydist._dashboard import sampler as sampler_module
from pydist._dashboard.sampler import Sampler


@pytest.fixture
def sampler(d: ModuleType) -> Iterator[Sampler]:
    """Give a sampler that somebody watches."""
    sampler = sampler_module.acquire()
    sampler.watch(sampler)
    sampler.sample(0)
    yield sampler
    sampler.unwatch(sampler)
    sampler_module.release()


def look(sampler: Sampler) -> dict[str, Any]:
    sampler.sample(0)
    return sampler.state()


def row(sampler: Sampler, pid: int) -> dict[str, Any]:
    return next(row for row in look(sampler)["processes"] if row["id"] == pid)


def recorded(sampler: Sampler, d: ModuleType, pid: int) -> None:
    """Wait until a worker, whose thread may just take up the order, records its calls."""
    on = "__import__('pydist._recording', fromlist=['on']).on"
    support.wait_until(lambda: d.remotecall_eval(on, pid))
    look(sampler)


def calls(sampler: Sampler, name: str) -> list[dict[str, Any]]:
    """Wait for calls of a function that have ended."""
    return support.wait_until(
        lambda: [call for call in look(sampler)["calls"] if call["name"] == name], what=f"a call of {name}"
    )


def fail(text: str) -> None:
    raise ValueError(text)


async def linger(seconds: float) -> None:
    await asyncio.sleep(seconds)


async def fail_later() -> None:
    await asyncio.sleep(0)
    raise KeyError("late")


class Odd:
    """A callable that lets nobody look at it."""

    def __call__(self) -> int:
        return 1

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__qualname__":
            raise AttributeError(name)
        raise RuntimeError("go away")


def test_processes_and_what_they_use(d: ModuleType, workers: list[int], sampler: Sampler) -> None:
    rows = {row["id"]: row for row in look(sampler)["processes"]}
    assert [1, *workers] == [pid for pid in rows if rows[pid]["state"] != "gone"]
    assert rows[1]["ospid"] == os.getpid()
    for pid in workers:
        ospid = d.remotecall_fetch(os.getpid, pid)
        assert rows[pid]["ospid"] == ospid
        assert 0.5 < rows[pid]["memory"] / support.rss(ospid) < 2
        assert rows[pid]["state"] == "idle"
    before = rows[workers[0]]["received"]
    d.remotecall_fetch(len, workers[0], bytes(100_000))
    assert row(sampler, workers[0])["received"] >= before + 100_000


def test_processor_time_is_told_of_the_one_that_computes(
    d: ModuleType, workers: list[int], sampler: Sampler
) -> None:
    busy = d.remotecall_eval(
        "import time\ndef burn(seconds):\n    end = time.process_time() + seconds\n"
        "    while time.process_time() < end: pass\nburn",
        workers[0],
    )
    future = d.remotecall(busy, workers[0], 0.5)
    support.wait_until(lambda: row(sampler, workers[0])["cpu"] > 5)
    assert row(sampler, workers[1])["cpu"] < row(sampler, workers[0])["cpu"] or future.isready()
    future.fetch()


def test_running_and_ended_calls(d: ModuleType, workers: list[int], sampler: Sampler, tmp_path: Path) -> None:
    pid = workers[0]
    recorded(sampler, d, pid)
    future = d.remotecall(support.nap, pid, 0.4, str(tmp_path / "started"))
    support.wait_until((tmp_path / "started").exists)
    found = row(sampler, pid)
    assert found["state"] == "busy"
    assert [call["name"] for call in found["calls"]] == ["nap"]
    future.fetch()
    (call,) = calls(sampler, "nap")
    assert call["worker"] == pid
    assert call["error"] is None
    assert 0.4 <= call["took"] < 30
    assert abs(time.time() - call["began"]) < 60
    assert row(sampler, pid)["state"] == "idle"


def test_errors_are_told_with_their_message(d: ModuleType, workers: list[int], sampler: Sampler) -> None:
    recorded(sampler, d, workers[0])
    with pytest.raises(ValueError, match="lost"):
        d.remotecall_fetch(fail, workers[0], 'it is "lost"\n\x1b[31m')
    (call,) = calls(sampler, "fail")
    assert call["error"] == 'ValueError: it is "lost"\n\x1b[31m'
    assert ("error", workers[0]) in [(line["kind"], line["worker"]) for line in look(sampler)["lines"]]


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_errors_of_elements_of_a_map_are_told(
    d: ModuleType, workers: list[int], sampler: Sampler, batch_size: Any
) -> None:
    recorded(sampler, d, workers[0])
    text = f"batches of {batch_size}"
    with pytest.raises(ValueError, match=text):
        d.pmap(fail, [text] * 3, pool=[workers[0]], batch_size=batch_size)
    errors = [call["error"] for call in calls(sampler, "fail [map]")]
    assert f"ValueError: {text}" in errors


def test_coroutines_are_told_until_they_have_ended(
    d: ModuleType, workers: list[int], sampler: Sampler
) -> None:
    recorded(sampler, d, workers[0])
    future = d.remotecall(linger, workers[0], 0.3)
    support.wait_until(lambda: [call["name"] for call in row(sampler, workers[0])["calls"]] == ["linger"])
    future.fetch()
    assert calls(sampler, "linger")[0]["took"] >= 0.3
    with pytest.raises(KeyError):
        d.remotecall_fetch(fail_later, workers[0])
    assert calls(sampler, "fail_later")[0]["error"] == "KeyError: 'late'"


def test_calls_have_the_names_of_the_users_functions(
    d: ModuleType, workers: list[int], sampler: Sampler
) -> None:
    pid = workers[0]
    recorded(sampler, d, pid)
    d.remotecall_fetch(functools.partial(pow, 2), pid, 5)
    d.remotecall_fetch(lambda: 1, pid)
    d.remotecall_fetch(Odd(), pid)
    d.remotecall_fetch(d.myid, pid)
    d.pmap(lambda x: x, range(4), pool=[pid])
    d.pmap(math.sqrt, range(4), pool=[pid], batch_size=2)
    d.pmap(math.cos, range(4), pool=[pid], batch_size=1)
    d.pmap(math.sin, range(4), distributed=False)
    with d.Executor(pool := 1) as executor:
        assert pool
        list(executor.map(math.floor, [1.5], chunksize=1))
    names = {call["name"] for call in look(sampler)["calls"]}
    here = "test_calls_have_the_names_of_the_users_functions.<locals>.<lambda>"
    assert {"pow", here, "Odd", "myid", f"{here} [map]", "sqrt [map]", "cos [map]", "sin [map]"} <= names
    # What pydist does for itself is no call of the user.
    assert names.isdisjoint({"", "start", "stop", "give_back", "_serve", "_nothing", "have_dropped"})


def test_calls_to_process_1_itself(d: ModuleType, sampler: Sampler) -> None:
    d.remotecall_fetch(math.gcd, 1, 4, 6)
    assert calls(sampler, "gcd")[0]["worker"] == 1


def test_a_call_that_began_unwatched_is_named(d: ModuleType, workers: list[int], tmp_path: Path) -> None:
    future = d.remotecall(support.nap, workers[0], 1.0, str(tmp_path / "started"))
    support.wait_until((tmp_path / "started").exists)
    sampler = sampler_module.acquire()
    sampler.watch(sampler)
    support.wait_until(lambda: [c["name"] for c in row(sampler, workers[0])["calls"]] == ["nap"])
    sampler.unwatch(sampler)
    sampler_module.release()
    future.fetch()


def test_a_worker_whose_python_is_stuck_is_told_of(
    d: ModuleType, workers: list[int], sampler: Sampler, tmp_path: Path
) -> None:
    """Its core answers while one call in C code has the interpreter, and tells which."""
    pid = workers[0]
    recorded(sampler, d, pid)
    future = d.remotecall(support.hold_gil, pid, 2.0, str(tmp_path / "started"))
    support.wait_until((tmp_path / "started").exists)
    before = time.monotonic()
    found = row(sampler, pid)
    assert not future.isready()
    assert [call["name"] for call in found["calls"]] == ["hold_gil"]
    assert found["state"] == "busy"
    assert found["silent_for"] < time.monotonic() - before + 0.1
    future.fetch()


def test_short_calls_that_follow_each_other_are_one_bar(
    d: ModuleType, workers: list[int], sampler: Sampler
) -> None:
    recorded(sampler, d, workers[0])
    for number in range(100):
        d.remotecall_fetch(math.isqrt, workers[0], number)
    found = calls(sampler, "isqrt")
    assert sum(call["count"] for call in found) == 100
    assert len(found) < 50


def test_a_flood_of_calls_is_told_of_in_part_but_for_its_errors(
    d: ModuleType, workers: list[int], sampler: Sampler
) -> None:
    pid = workers[0]
    recorded(sampler, d, pid)
    began = time.monotonic()
    before = row(sampler, pid)["calls_begun"]
    flood = [d.remotecall(math.isqrt, pid, number) for number in range(3000)]
    failing = d.remotecall(fail, pid, "in the flood")
    d.wait(flood)
    with pytest.raises(ValueError, match="in the flood"):
        failing.fetch()
    assert row(sampler, pid)["calls_begun"] - before >= 3001
    assert "ValueError: in the flood" in [call["error"] for call in look(sampler)["calls"]]
    told = sum(call["count"] for call in look(sampler)["calls"] if call["name"] == "isqrt")
    slices = (time.monotonic() - began) / _recording.SLICE_SECONDS + 2
    assert 0 < told <= slices * _recording.SLICE_CALLS


def test_a_call_that_was_cancelled_before_it_began_is_no_error(
    d: ModuleType, workers: list[int], sampler: Sampler, tmp_path: Path
) -> None:
    pid = workers[0]
    recorded(sampler, d, pid)
    futures = [d.remotecall(support.hold_gil, pid, 0.3, str(tmp_path / "started"))]
    support.wait_until((tmp_path / "started").exists)
    futures += [d.remotecall(math.isqrt, pid, number) for number in range(5)]
    cancelled = [future.cancel() for future in futures[1:]]
    assert True in cancelled
    futures[0].fetch()
    d.remotecall_fetch(math.isqrt, pid, 4)
    assert [call for call in look(sampler)["calls"] if call["error"] is not None] == []


def test_channels_with_their_depth_and_who_waits(d: ModuleType, workers: list[int], sampler: Sampler) -> None:
    bounded = d.RemoteChannel(lambda: d.Channel(2), workers[0])
    unbounded = d.RemoteChannel(lambda: d.Channel(math.inf), workers[1])
    bounded.put(1)
    bounded.put(2)
    putting = [d.remotecall(bounded.put, workers[1], x) for x in (3, 4)]
    taking = d.remotecall(unbounded.take, workers[0])

    def gauges() -> dict[int, tuple[Any, ...]]:
        return {
            row["owner"]: (row["capacity"], row["depth"], row["putters"], row["takers"], row["open"])
            for row in look(sampler)["channels"]
        }

    wanted = {workers[0]: (2, 2, 2, 0, True), workers[1]: (None, 0, 0, 1, True)}
    support.wait_until(lambda: gauges() == wanted, what="the gauges")
    assert [bounded.take() for _ in range(4)] == [1, 2, 3, 4]
    unbounded.put(None)
    d.wait([*putting, taking])
    bounded.close()
    support.wait_until(lambda: gauges()[workers[0]] == (2, 0, 0, 0, False))


def test_maps_with_their_progress(d: ModuleType, workers: list[int], sampler: Sampler) -> None:
    values = d.pgenerate(support.nap, [0.02] * 40, batch_size=1)
    next(values)

    def running() -> dict[str, Any]:
        look(sampler)
        return next(m for m in reversed(look(sampler)["maps"]) if m["name"] == "nap")

    found = support.wait_until(lambda: (each := running())["eta"] is not None and each)
    assert found["state"] == "running"
    assert found["total"] == 40
    assert 1 <= found["done"] <= 40
    assert found["rate"] > 0
    assert len(list(values)) == 39
    found = running()
    assert (found["state"], found["done"], found["eta"]) == ("done", 40, None)
    with pytest.raises(ValueError, match="x"):
        d.pmap(fail, ["x"] * 3)
    assert look(sampler)["maps"][-1]["state"] == "stopped"
    endless = d.pgenerate(abs, iter(range(5)))
    assert list(endless) == [0, 1, 2, 3, 4]
    found = look(sampler)["maps"][-1]
    assert (found["total"], found["done"], found["state"]) == (None, 5, "done")


def test_output_of_workers(d: ModuleType, workers: list[int], sampler: Sampler) -> None:
    d.remotecall_eval("import sys\nprint('one\\ntwo')\nprint('three', file=sys.stderr)", workers[0])
    wanted = [("stdout", "one"), ("stdout", "two"), ("stderr", "three")]

    def heard() -> bool:
        lines = [(line["kind"], line["text"]) for line in look(sampler)["lines"]]
        return all(line in lines for line in wanted)

    support.wait_until(heard)


def test_f1_a_worker_that_died_stays_with_its_reason(d: ModuleType, sampler: Sampler) -> None:
    """F1: a worker is killed: it is shown as gone, with the signal."""
    (pid,) = d.addprocs(1)
    assert row(sampler, pid)["state"] == "idle"
    d.remote_do(support.kill_self, pid)
    support.wait_until(lambda: row(sampler, pid)["state"] == "gone")
    found = row(sampler, pid)
    assert "SIGKILL" in found["reason"]
    assert found["memory"] == 0
    assert ("gone", pid) in [(line["kind"], line["worker"]) for line in look(sampler)["lines"]]


def test_a_worker_that_comes_and_one_that_is_removed(d: ModuleType, sampler: Sampler) -> None:
    (pid,) = d.addprocs(1)
    assert row(sampler, pid)["state"] == "idle"
    recorded(sampler, d, pid)
    d.rmprocs(pid)
    found = row(sampler, pid)
    assert found["state"] == "gone"
    assert "rmprocs" in found["reason"] or "removed" in found["reason"]


def test_a_stopped_worker_is_silent_and_holds_nothing_up(
    d: ModuleType, workers: list[int], sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler_module, "SILENT_AFTER", 1.0)
    ospid = d.remotecall_fetch(os.getpid, workers[1])
    support.stop(ospid)
    try:
        support.wait_until(lambda: row(sampler, workers[1])["state"] == "silent")
        began = time.monotonic()
        assert row(sampler, workers[0])["state"] == "idle"
        assert time.monotonic() - began < 10
    finally:
        os.kill(ospid, 18)
    support.wait_until(lambda: row(sampler, workers[1])["state"] == "idle")


def test_what_ended_is_told_once(d: ModuleType, sampler: Sampler) -> None:
    d.remotecall_fetch(math.lcm, 1, 4, 6)
    assert '"lcm"' in _core.observation()
    assert '"lcm"' not in _core.observation()


def test_nothing_is_kept_when_nobody_watches(d: ModuleType) -> None:
    assert not _recording.on
    d.remotecall_fetch(math.lcm, 1, 4, 6)
    assert '"ended":[]' in _core.observation()
