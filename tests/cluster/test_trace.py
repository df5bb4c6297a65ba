"""Recording a trace: what it has of each call, in which order, and what it costs where there is none."""

import asyncio
import itertools
import json
import math
import os
import signal
from typing import Any

import pytest

import pydist as d
from pydist import _core, _trace_calls
from pydist._trace import Noted
from support import nap, wait_until

CLOCK = 1_000_000
"""Nanoseconds by which clocks of processes may seem to differ."""


def fail(text: str) -> None:
    raise LookupError(text)


def call_on(pid: int, x: int) -> int:
    value: int = d.remotecall_fetch(abs, pid, x)
    return value


async def pause(x: int) -> int:
    await asyncio.sleep(0.01)
    return x


def times(call: Any) -> list[int]:
    found = (call.sent, call.arrived, call.started, call.ended, call.replied)
    return [at for at in found if at is not None]


def check_order(calls: list[Any]) -> None:
    for call in calls:
        at = times(call)
        assert all(before <= after + CLOCK for before, after in itertools.pairwise(at)), call
        assert at[0] >= -CLOCK


def named(trace: Any, name: str) -> list[Any]:
    return [call for call in trace.calls if call.name.rpartition(".")[2] == name]


def check_file(events: list[dict[str, Any]], pids: list[int]) -> None:
    """See that it is what Perfetto reads: fields, rows without overlaps, both ends of each arrow."""
    names = {e["pid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert set(names) >= {1, *pids}
    assert names[1].startswith("process 1 (")
    assert names[pids[0]].startswith(f"worker {pids[0]} (")
    rows: dict[tuple[int, int], list[tuple[float, float, str]]] = {}
    for event in events:
        assert {"name", "ph", "pid", "tid", "ts"} <= set(event)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            rows.setdefault((event["pid"], event["tid"]), []).append(
                (event["ts"], event["ts"] + event["dur"], event["cat"])
            )
    for slices in rows.values():
        open_until: list[float] = []
        for start, end, _ in sorted(slices, key=lambda s: (s[0], -s[1])):
            while open_until and open_until[-1] <= start:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 0.002
            open_until.append(end)
    begins = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert set(begins) == set(ends)
    for number, event in ends.items():
        assert event["ts"] >= begins[number]["ts"] - CLOCK / 1000
        assert any(s <= event["ts"] <= e for s, e, _ in rows[event["pid"], event["tid"]])
    spans = [(e["cat"], e["id"], e["ph"]) for e in events if e["ph"] in "be"]
    assert len(spans) == len(set(spans))
    assert {span[:2] for span in spans if span[2] == "b"} == {span[:2] for span in spans if span[2] == "e"}


def test_each_call_is_recorded_from_its_sending_to_its_reply(workers, tmp_path):
    path = tmp_path / "run.json"
    with d.trace(path) as trace:
        assert d.remotecall_fetch(divmod, workers[0], 7, 2) == (3, 1)
        future = d.remotecall(nap, workers[1], 0.02)
        d.remote_do(abs, workers[0], -1)
        d.remotecall_fetch(lambda: None, workers[0])
        assert future.fetch() == 0.02
    (fetched,), (napped,), (done,) = named(trace, "divmod"), named(trace, "nap"), named(trace, "abs")
    assert (fetched.caller, fetched.callee, fetched.mode, fetched.status) == (1, workers[0], "fetch", "ended")
    assert (napped.callee, napped.mode, napped.name) == (workers[1], "future", "support.nap")
    assert (done.mode, done.replied, done.status) == ("do", None, "ended")
    assert len(times(fetched)) == len(times(napped)) == 5
    assert napped.ended - napped.started >= 0.02e9
    check_order(trace.calls)
    assert not trace.dropped
    assert not trace.missing
    written = json.loads(path.read_text())
    assert written["traceEvents"] == json.loads(json.dumps(trace.events))
    check_file(written["traceEvents"], workers)
    (run,) = [e for e in trace.events if e["ph"] == "X" and e["name"] == "support.nap"]
    assert run["pid"] == workers[1]
    assert run["dur"] >= 20_000
    assert run["args"]["from"] == 1
    assert repr(trace) == f"<Trace of {len(trace.calls)} calls on 3 processes>"
    assert "Trace" in trace._repr_html_()


def test_nothing_is_recorded_where_nobody_asks(workers):
    d.remotecall_fetch(abs, workers[0], -1)
    for pid in (1, workers[0]):
        assert d.remotecall_fetch(_core.trace_stop, pid) == (b"", 0)
    with d.trace() as trace:
        pass
    d.remotecall_fetch(abs, workers[0], -1)
    assert trace.calls == []
    assert d.remotecall_fetch(_core.trace_stop, workers[0]) == (b"", 0)


def test_calls_within_calls(workers):
    one, two = workers
    with d.trace() as trace:
        assert d.remotecall_fetch(call_on, one, two, -5) == 5
    (outer,), (inner,) = named(trace, "call_on"), named(trace, "abs")
    assert (inner.caller, inner.callee) == (one, two)
    assert outer.started <= inner.sent <= inner.replied <= outer.ended
    check_order(trace.calls)
    check_file(trace.events, workers)
    (run,) = [
        e for e in trace.events if e["ph"] == "X" and e["name"].endswith("call_on") and e["cat"] == "run"
    ]
    (sent,) = [e for e in trace.events if e["name"] == "send abs"]
    assert (sent["pid"], sent["tid"]) == (run["pid"], run["tid"])


def test_errors_and_cancelled_calls(workers, tmp_path):
    begun = tmp_path / "begun"
    with d.trace() as trace:
        for pid in (1, workers[0]):
            with pytest.raises(LookupError):
                d.remotecall_fetch(fail, pid, "bad")
        future = d.remotecall(nap, workers[0], 60, str(begun))
        wait_until(begun.exists)
        assert future.cancel()
        with pytest.raises(d.CancelledError):
            future.fetch(10)
    assert [call.status for call in named(trace, "fail")] == ["error", "error"]
    assert {call.callee for call in named(trace, "fail")} == {1, workers[0]}
    assert [call.status for call in named(trace, "nap")] == ["cancelled"]


def test_a_call_that_runs_on_is_shown_until_the_end(workers, tmp_path):
    begun, gate = tmp_path / "begun", d.RemoteChannel(1)

    def wait_for(gate: d.RemoteChannel, begun: str) -> Any:
        open(begun, "w").close()
        return gate.take()

    with d.trace() as trace:
        future = d.remotecall(wait_for, workers[0], gate, str(begun))
        wait_until(begun.exists)
    gate.put(1)
    assert future.fetch() == 1
    (call,) = [call for call in trace.calls if call.name.endswith("wait_for")]
    assert (call.status, call.ended) == ("running", None)
    check_file(trace.events, workers)


def test_maps_are_recorded_by_batches(workers):
    with d.trace() as trace:
        assert d.pmap(math.factorial, range(200)) == [math.factorial(n) for n in range(200)]
        assert d.pmap(pause, range(10)) == list(range(10))
        assert d.pmap(abs, range(10), batch_size=1) == list(range(10))
    batches = named(trace, "factorial")
    assert sum(batch.elements for batch in batches) >= 200
    assert {batch.callee for batch in batches} <= set(workers)
    assert sum(batch.elements for batch in named(trace, "pause")) >= 10
    assert [batch.elements for batch in named(trace, "abs")] == [1] * 10
    check_order(trace.calls)
    check_file(trace.events, workers)


def test_coroutines_run_at_once_in_rows_of_their_own(workers):
    with d.trace() as trace:
        futures = [d.remotecall(pause, workers[0], n) for n in range(20)]
        assert [future.fetch() for future in futures] == list(range(20))
    calls = named(trace, "pause")
    assert all(call.ended - call.started >= 0.01e9 - CLOCK for call in calls)
    check_file(trace.events, workers)
    rows = {
        e["tid"] for e in trace.events if e["ph"] == "X" and e["name"].endswith("pause") and e["cat"] == "run"
    }
    assert len(rows) > 1


def test_requests_to_channels_are_counted(workers):
    channel = d.RemoteChannel(lambda: d.Channel(100), workers[0])
    own = d.RemoteChannel(lambda: d.Channel(100))
    with d.trace() as trace:
        for n in range(30):
            channel.put(n)
            own.put(n)
        channel.take()
        own.take()
    counted = [e["args"] for e in trace.events if e["ph"] == "C" and e["pid"] == 1]
    # What has been put on credit is asked for before others are told anything.
    assert (counted[-1]["put"], counted[-1]["take"]) == (60, 2)


def test_workers_that_come_and_go_are_recorded(workers):
    with d.trace() as trace:
        with d.cluster(2) as pids:
            assert d.remotecall_fetch(d.myid, pids[1]) == pids[1]
        assert d.remotecall_fetch(d.myid, workers[0]) == workers[0]
    assert [call.callee for call in named(trace, "myid")] == [pids[1], workers[0]]
    assert [call.status for call in named(trace, "myid")] == ["ended", "ended"]
    check_file(trace.events, [*workers, pids[1]])


def test_a_worker_that_dies(fresh_workers, workers):
    (pid,) = fresh_workers(1)
    with d.trace() as trace:
        with pytest.raises(d.ProcessExitedException):
            d.remotecall_fetch(os.kill, pid, d.remotecall_fetch(os.getpid, pid), signal.SIGKILL)
        assert d.remotecall_fetch(abs, workers[0], -1) == 1
    calls = [call for call in trace.calls if call.callee == pid]
    assert [call.status for call in calls] == ["ended", "lost"]
    assert trace.missing == {pid: "it has left without a word"}
    assert len(named(trace, "abs")) == 1
    check_file(trace.events, workers)


def test_of_too_many_events_the_last_are_kept(workers):
    with d.trace(capacity=100) as trace:
        for n in range(100):
            d.remotecall_fetch(abs, workers[0], n)
    assert set(trace.dropped) == {1, workers[0]}
    assert 20 < len(named(trace, "abs")) < 100
    check_order(trace.calls)
    check_file(trace.events, workers[:1])


def test_what_cannot_be(workers):
    with pytest.raises(ValueError, match="capacity"):
        d.trace(capacity=0)
    with d.trace() as trace:
        with pytest.raises(RuntimeError, match="already"), d.trace():
            pass
        with pytest.raises(RuntimeError, match="after its `with` block"):
            trace.calls  # noqa: B018
        assert repr(trace) == "<Trace, not recorded yet>"
        with pytest.raises(RuntimeError, match="Only process 1"):
            d.remotecall_fetch(lambda: d.trace().__enter__(), workers[0])
    with pytest.raises(RuntimeError, match="another one"), trace:
        pass
    with pytest.raises(ZeroDivisionError), d.trace() as trace:
        d.remotecall_fetch(abs, workers[0], 1 // 0)
    assert trace.events


def noted(*rows: tuple[int, int, int, int, int, int]) -> Noted:
    import struct

    return Noted(b"".join(struct.pack("<BBHIQQ", *row) for row in rows), 0, [], [])


def test_clocks_of_other_hosts_are_put_right():
    """A clock that is an hour ahead, and calls both ways: nothing comes before it was sent."""
    hour = 3_600_000_000_000
    sent, arrived, started, ended, replied = 0, 1, 2, 3, 4
    here = noted(
        (sent, 0, 1, 2, 1, 1000),
        (replied, 0, 1, 2, 1, 5000),
        (arrived, 0, 1, 2, 9, 7000),
        (ended, 0, 1, 2, 9, 7400),
    )
    there = noted(
        (arrived, 0, 1, 1, 1, hour + 2100),
        (started, 0, 1, 1, 1, hour + 2500),
        (ended, 0, 1, 1, 1, hour + 4200),
        (sent, 0, 1, 1, 9, hour + 6900),
        (replied, 0, 1, 1, 9, hour + 7500),
    )
    for bounds in ({}, {2: [(hour - 300, hour + 700), (hour - 5000, hour + 5000)]}):
        together = _trace_calls.put_together({1: here, 2: there}, bounds, set(), (0, 10_000))
        for call in together.calls:
            assert times(call) == sorted(times(call))
            assert times(call)[0] > 0
            assert times(call)[-1] < 10_000
        assert [call.caller for call in together.calls] == [1, 2]
