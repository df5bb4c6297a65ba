"""Calls as events of Chrome's trace format, which Perfetto shows as well."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from ._trace_calls import Call, Together

Event: TypeAlias = dict[str, Any]

SEND_MICROSECONDS = 1.0
"""How long the sending of a call is shown, for arrows to begin at; less where another one follows."""
SENDERS = 1000
"""Added to the number of a thread that makes calls outside of calls: its row."""


def events(together: Together, hosts: Mapping[int, str]) -> list[Event]:
    """Makes the events.

    On the process that runs a call: the time it waited (`queue`), and the execution, in as many rows as calls
    ran at once. On the process that made it: where it was sent, with an arrow to the execution, and the time
    until the answer was there (`call`). Requests to channels are counted.

    Parameters:
        together: the calls.
        hosts: the hosts of the processes.
    """
    rows = _Rows()
    lanes = _lanes(together)
    made: list[Event] = []
    for number, call in enumerate(together.calls):
        made += _of_callee(call, number, lanes, together.end)
        made += _of_caller(call, number, lanes, rows)
    rows.cut(made)
    made += _counts(together)
    made.sort(key=lambda event: (event["ts"], event["ph"] != "X"))
    return [*_names(made, hosts, rows, lanes), *made]


def _micro(nanoseconds: int) -> float:
    return nanoseconds / 1000


class _Rows:
    """The rows of threads that make calls outside of calls, and what is shown of sending in any row."""

    def __init__(self) -> None:
        self.threads: set[tuple[int, int]] = set()

    def of(self, call: Call) -> int:
        self.threads.add((call.caller, call.sender))
        return SENDERS + call.sender

    @staticmethod
    def cut(made: Iterable[Event]) -> None:
        """Has each sending end before the next one of its row begins: a row cannot show two at once."""
        last: dict[tuple[int, int], Event] = {}
        for event in sorted((e for e in made if e.get("cat") == "send"), key=lambda event: event["ts"]):
            before = last.get((event["pid"], event["tid"]))
            if before is not None:
                before["dur"] = min(before["dur"], event["ts"] - before["ts"])
            last[event["pid"], event["tid"]] = event


class _Lanes:
    """In which row of its process each call is shown that ran."""

    def __init__(self) -> None:
        self.row: dict[int, int] = {}
        self.count: Counter[int] = Counter()
        # By process and thread: what ran there, by its start.
        self.runs: dict[tuple[int, int], list[tuple[int, int, int]]] = {}

    def parent_of(self, call: Call) -> int | None:
        """The row of the call in which a call was made, None where it was made outside of any."""
        if call.sent is None:
            return None
        for start, end, row in reversed(self.runs.get((call.caller, call.sender), [])):
            if start <= call.sent:
                return row if call.sent <= end else None
        return None


def _lanes(together: Together) -> _Lanes:
    lanes = _Lanes()
    by_process: dict[int, list[tuple[int, int, int]]] = {}
    for number, call in enumerate(together.calls):
        if call.started is not None:
            end = call.ended if call.ended is not None else together.end
            by_process.setdefault(call.callee, []).append((call.started, max(end, call.started), number))
    for pid, runs in by_process.items():
        busy: list[tuple[int, int]] = []
        free: list[int] = []
        for start, end, number in sorted(runs):
            while busy and busy[0][0] <= start:
                heapq.heappush(free, heapq.heappop(busy)[1])
            if free:
                row = heapq.heappop(free)
            else:
                lanes.count[pid] += 1
                row = lanes.count[pid]
            heapq.heappush(busy, (end, row))
            lanes.row[number] = row
            thread = (pid, together.calls[number].runner)
            lanes.runs.setdefault(thread, []).append((start, end, row))
    return lanes


def _title(call: Call) -> str:
    name = call.name or f"call {call.id}"
    return f"{name} [{call.elements}]" if call.elements else name


def _about(call: Call) -> Event:
    about: Event = {"id": f"{call.caller}.{call.id}", "from": call.caller, "status": call.status}
    if call.elements:
        about["elements"] = call.elements
    return about


def _span(call: Call, kind: str, number: int, pid: int, start: int, end: int) -> Iterator[Event]:
    """What may overlap with others of its kind."""
    common = {"name": _title(call), "cat": kind, "id": f"{kind}{number}", "pid": pid, "tid": 0}
    yield {**common, "ph": "b", "ts": _micro(start), "args": _about(call)}
    yield {**common, "ph": "e", "ts": _micro(max(start, end))}


def _of_callee(call: Call, number: int, lanes: _Lanes, end: int) -> Iterator[Event]:
    if call.arrived is not None:
        begun = call.started if call.started is not None else min(call.replied or end, end)
        yield from _span(call, "queue", number, call.callee, call.arrived, begun)
    if call.started is None:
        return
    about = _about(call)
    if call.arrived is not None:
        about["queued_us"] = _micro(call.started - call.arrived)
    ended = call.ended if call.ended is not None else end
    common = {"name": _title(call), "pid": call.callee, "tid": lanes.row[number]}
    length = _micro(max(0, ended - call.started))
    yield {**common, "cat": "run", "ph": "X", "ts": _micro(call.started), "dur": length, "args": about}
    if call.sent is not None:
        yield {**common, "cat": "flow", "ph": "f", "bp": "e", "id": number, "ts": _micro(call.started)}


def _of_caller(call: Call, number: int, lanes: _Lanes, rows: _Rows) -> Iterator[Event]:
    if call.sent is None:
        return
    row = lanes.parent_of(call)
    common = {"pid": call.caller, "tid": rows.of(call) if row is None else row, "ts": _micro(call.sent)}
    about = {**_about(call), "to": call.callee}
    yield {
        **common,
        "name": f"send {_title(call)}",
        "cat": "send",
        "ph": "X",
        "dur": SEND_MICROSECONDS,
        "args": about,
    }
    if call.started is not None:
        yield {**common, "name": _title(call), "cat": "flow", "ph": "s", "id": number}
    if call.replied is not None:
        yield from _span(call, "call", number, call.caller, call.sent, call.replied)


def _counts(together: Together) -> Iterator[Event]:
    """How often each process has asked channels for what so far."""
    counts: dict[int, Counter[str]] = {}
    for use in together.channel_uses:
        counted = counts.setdefault(use.pid, Counter())
        counted[use.operation] += 1
        common = {"ph": "C", "pid": use.pid, "tid": 0, "ts": _micro(use.at)}
        yield {**common, "name": "requests to channels", "args": dict(counted)}


def _names(made: list[Event], hosts: Mapping[int, str], rows: _Rows, lanes: _Lanes) -> Iterator[Event]:
    for pid in sorted({*hosts, *(event["pid"] for event in made)}):
        common = {"ph": "M", "pid": pid, "tid": 0, "ts": 0}
        who = f"{'process' if pid == 1 else 'worker'} {pid}"
        name = f"{who} ({hosts[pid]})" if hosts.get(pid) else who
        yield {**common, "name": "process_name", "args": {"name": name}}
        yield {**common, "name": "process_sort_index", "args": {"sort_index": pid}}
    running = ((pid, row, f"calls {row}") for pid, n in lanes.count.items() for row in range(1, n + 1))
    sending = ((pid, SENDERS + n, f"calls made by thread {n}") for pid, n in rows.threads)
    for pid, row, name in sorted(itertools.chain(running, sending)):
        yield {"ph": "M", "pid": pid, "tid": row, "ts": 0, "name": "thread_name", "args": {"name": name}}
