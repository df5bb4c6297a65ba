"""Recording what happens to calls, on all processes: `trace`."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from . import _batches, _core, _functions, _refs, _session

if TYPE_CHECKING:
    from . import _trace_calls

CAPACITY = 200_000
"""Events that a process keeps; a call makes two at each end and one more."""
START_SECONDS = 5.0
"""So long workers have to begin, all in all; those that are busy for longer begin later."""
STOP_SECONDS = 10.0
"""So long they have to tell what they have noted."""
LEAVE_SECONDS = 2.0
"""So long a worker has for that which is about to be ended."""
PINGS = 8
"""Exchanges by which a clock is compared; the quickest ones count."""
PING_SECONDS = 0.5

_EVENT = struct.Struct("<BBHIQQ")
SENT, ARRIVED, STARTED, ENDED, REPLIED, ASKED, LEFT = range(7)

_names: deque[tuple[int, int, str, int]] = deque(maxlen=0)
_lock = threading.Lock()


class Noted(NamedTuple):
    """What one process has noted."""

    events: bytes
    dropped: int
    names: list[tuple[int, int, str, int]]
    """Of calls: who made them, their numbers, the names of the functions, and how many elements of a map."""
    failed: list[int]
    """The numbers of calls to the process itself that have raised."""

    def rows(self) -> Iterable[tuple[int, int, int, int, int, int]]:
        """Its events: kind, detail, thread, process, number and time in nanoseconds."""
        return _EVENT.iter_unpack(self.events)


def note_name(key: tuple[int, int], f: Any, args: tuple[Any, ...]) -> None:
    """Notes what a call runs that begins here; never raises."""
    try:
        count = 0
        if f is _batches.run:
            f, count = _functions.get(args[0]), len(args[3][0])
        elif f is _batches.run_single:
            f, count = _functions.get(args[:2]), 1
        _names.append((*key, _name_of(f), count))
    except Exception:  # an object that hides its attributes
        return


def _name_of(f: Any) -> str:
    module, name = getattr(f, "__module__", None), getattr(f, "__qualname__", None)
    if not isinstance(name, str):
        name = type(f).__qualname__
    return name if module in (None, "__main__", "builtins") else f"{module}.{name}"


def _begin(capacity: int) -> None:
    global _names
    _names, _session.failed = deque(maxlen=capacity), deque(maxlen=capacity)
    _core.trace_start(capacity)


def _end() -> Noted:
    global _names
    events, dropped = _core.trace_stop()
    names, _names = _names, deque(maxlen=0)
    failed, _session.failed = _session.failed or (), None
    return Noted(events, dropped, list(names), list(failed))


class Trace:
    """What `trace` returns: a context manager that records, and then has what was recorded.

    Attributes:
        calls: the calls, as `Call`s, in the order in which they were sent or came.
        events: the same as events of Chrome's trace format.
        dropped: for each process how many of its events were dropped, where there were too many.
        missing: for each process whose events are missing, why.
    """

    def __init__(self, path: str | os.PathLike[str] | None, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.missing: dict[int, str] = {}
        self._path = path
        self._capacity = capacity
        self._noted: dict[int, Noted] = {}
        self._bounds: dict[int, list[tuple[int, int]]] = {}
        self._own: set[int] = set()
        self._taken_up: set[int] = set()
        self._hosts: dict[int, str] = {}
        self._span = (0, 0)
        self._begun = False
        self._together: _trace_calls.Together | None = None

    def __repr__(self) -> str:
        if 1 not in self._noted:
            return "<Trace, not recorded yet>"
        return f"<Trace of {len(self.calls)} calls on {len(self._noted)} processes>"

    def _repr_html_(self) -> str:
        from . import _html

        facts = {"calls": len(self.calls), "processes": _html.several(self._noted)}
        return _html.card("Trace", {**facts, "dropped events": sum(self.dropped.values())})

    def __enter__(self) -> Self:
        if not _session.is_head():
            raise RuntimeError("Only process 1 can record a trace")
        _session.ensure_started()
        with _lock:
            if _session.trace is not None:
                raise RuntimeError("a trace is being recorded already")
            if self._begun:
                raise RuntimeError("this trace has been recorded; make another one")
            self._begun = True
            _session.trace = self
        self._span = (_core.trace_clock(), 0)
        _begin(self._capacity)
        try:
            self.take_up(_workers())
        except BaseException:
            self._finish()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            left = [pid for pid in _workers() if pid not in self._noted]
            self._compare_clocks(left)
            self.collect(left, STOP_SECONDS)
        finally:
            self._finish()
        if self._path is not None:
            self.save(self._path)

    def _finish(self) -> None:
        self._span = (self._span[0], _core.trace_clock())
        _session.trace = None
        self._note_hosts()
        self._noted[1] = _end()
        for pid in self._taken_up - set(self._noted):
            self.missing.setdefault(pid, "it has left without a word")

    def _note_hosts(self) -> None:
        self._hosts.update((pid, host) for pid, _, host in _core.members())

    def take_up(self, pids: list[int]) -> None:
        """Has workers begin to note what happens."""
        self._note_hosts()
        self._taken_up.update(pids)
        self._ask(pids, START_SECONDS, _begin, self._capacity)
        self._compare_clocks([pid for pid in pids if pid not in self.missing])

    def collect(self, pids: list[int], seconds: float) -> None:
        """Takes what workers have noted, which note nothing from then on."""
        self._note_hosts()
        for pid, noted in self._ask(pids, seconds, _end).items():
            self._noted[pid] = noted
            self.missing.pop(pid, None)

    def collect_before_end(self, pids: list[int]) -> None:
        """Takes what workers have noted that are about to be ended."""
        there = _workers()
        self.collect([pid for pid in pids if pid in there and pid not in self._noted], LEAVE_SECONDS)

    def _ask(self, pids: list[int], seconds: float, f: Callable[..., Any], *args: Any) -> dict[int, Any]:
        until = time.monotonic() + seconds
        futures: dict[int, _refs.Future] = {}
        found = {}
        for pid in pids:
            try:
                futures[pid] = self._call(f, pid, *args)
            except Exception as error:
                self.missing[pid] = str(error)
        for pid, future in futures.items():
            try:
                found[pid] = future.fetch(max(0.0, until - time.monotonic()))
            except TimeoutError:
                self.missing[pid] = f"it did not answer within {seconds:g} s"
            except Exception as error:
                self.missing[pid] = str(error)
        return found

    def _call(self, f: Callable[..., Any], pid: int, *args: Any) -> _refs.Future:
        from ._calls import remotecall

        future = remotecall(f, pid, *args)
        self._own.add(future.id)
        return future

    def _compare_clocks(self, pids: list[int]) -> None:
        """Notes within which bounds the clocks of workers are ahead of that of this process."""
        until = time.monotonic() + START_SECONDS
        for pid in pids:
            for _ in range(PINGS):
                if time.monotonic() > until:  # many are busy: the calls themselves tell enough
                    return
                before = _core.trace_clock()
                try:
                    there = self._call(_core.trace_clock, pid).fetch(PING_SECONDS)
                except Exception:
                    break
                self._bounds.setdefault(pid, []).append((there - _core.trace_clock(), there - before))

    @property
    def dropped(self) -> dict[int, int]:
        """For each process how many of its events were dropped."""
        return {pid: noted.dropped for pid, noted in self._noted.items() if noted.dropped}

    @property
    def calls(self) -> list[_trace_calls.Call]:
        """The calls that were recorded, in the order of their times."""
        return self._put_together().calls

    def _put_together(self) -> _trace_calls.Together:
        from . import _trace_calls

        if 1 not in self._noted:
            raise RuntimeError("the trace has not been recorded yet: use it after its `with` block")
        if self._together is None:
            self._together = _trace_calls.put_together(self._noted, self._bounds, self._own, self._span)
        return self._together

    @property
    def events(self) -> list[dict[str, Any]]:
        """What was recorded, as events of Chrome's trace format."""
        from . import _trace_events

        return _trace_events.events(self._put_together(), self._hosts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that https://ui.perfetto.dev and chrome://tracing show.

        Parameters:
            path: the file, as JSON.
        """
        import json

        whole = {
            "traceEvents": self.events,
            "displayTimeUnit": "ms",
            "otherData": {
                "dropped": {str(pid): n for pid, n in self.dropped.items()},
                "missing": {str(pid): why for pid, why in self.missing.items()},
            },
        }
        with open(path, "w", encoding="utf-8") as file:
            json.dump(whole, file, separators=(",", ":"))


def _workers() -> list[int]:
    return [member[0] for member in _core.members() if member[0] != 1]


def trace(path: str | os.PathLike[str] | None = None, *, capacity: int = CAPACITY) -> Trace:
    """Records what happens to calls on all processes, for the length of a `with` block.

    For each call: when it was sent, when it came, when it began to run, when its answer was ready and when
    that came back, by the clocks of the cores, put right to that of process 1. Workers that are added
    meanwhile are recorded too. Where nothing is recorded it costs next to nothing.

    Parameters:
        path: a file for https://ui.perfetto.dev or chrome://tracing, written at the end of the block.
        capacity: events that each process keeps, of 24 bytes; of more the first are dropped.

    Returns:
        A `Trace`, whose `calls`, `events` and `save(path)` are of use after the block.

    Raises:
        RuntimeError: this is not process 1, or a trace is being recorded already.
        ValueError: `capacity` is below 1.

    >>> import pydist as d
    >>> with d.cluster(1) as pids, d.trace() as trace:
    ...     d.remotecall_fetch(divmod, pids[0], 7, 2)
    (3, 1)
    >>> [(call.name, call.caller, call.callee == pids[0], call.status) for call in trace.calls]
    [('divmod', 1, True, 'ended')]
    """
    return Trace(path, capacity)
