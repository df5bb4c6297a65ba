"""What the processes of the cluster do, asked of their cores: the model behind the page and the terminal."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import deque
from typing import Any

from .. import _calls, _core, _output, _progress, _recording, _refs, _session
from .._errors import ProcessExitedException

INTERVAL = 1.0
"""Seconds between two samples."""
PATIENCE = 0.5
"""Seconds that the processes have for an answer; a later one is taken up with the next sample."""
SILENT_AFTER = 3.0
"""Seconds without an answer after which a process is shown as silent."""
CALLS_KEPT, LINES_KEPT, HISTORY_KEPT, GONE_KEPT = 1500, 400, 120, 20
LINE_CHARACTERS = 2000
SMOOTHING = 0.3
"""The weight of the newest rate of a map in the one that its remaining time is told by."""


class Process:
    """What is known of one process."""

    def __init__(self, pid: int, ospid: int, host: str) -> None:
        self.pid = pid
        self.ospid = ospid
        self.host = host
        self.since = time.time()
        self.told: dict[str, Any] = {}
        self.answered = time.monotonic()
        self.cpu = self.sent_rate = self.received_rate = self.call_rate = 0.0
        self.running: list[dict[str, Any]] = []
        self.hidden = 0
        self.gone: str | None = None
        self.gone_at: float | None = None
        self._seen: dict[tuple[int, int], float] = {}

    def take(self, told: dict[str, Any], now: float) -> None:
        """Takes what its core told."""
        before, elapsed = self.told, now - self.answered
        if before and elapsed > 0:
            self.cpu = _rate(before, told, "cpu", elapsed) * 100
            self.sent_rate = _rate(before, told, "bytes_sent", elapsed)
            self.received_rate = _rate(before, told, "bytes_received", elapsed)
            self.call_rate = _rate(before, told, "calls_begun", elapsed)
        self.told, self.answered = told, now
        seen = {}
        self.running = []
        self.hidden = 0
        for src, number, name, ago in told["calls"]:
            key = (src, number)
            if name == "":
                self.hidden += 1
                continue
            # Of a call that began unwatched nobody knows for how long it runs.
            seen[key] = self._seen.get(key, now) if ago is None else now - ago
            self.running.append(
                {"name": name or f"call {number} of process {src}", "seconds": now - seen[key]}
            )
        self.running.sort(key=lambda call: -float(call["seconds"]))
        self._seen = seen

    def state(self, now: float) -> str:
        """Its state in one word."""
        if self.gone is not None:
            return "gone"
        if now - self.answered > SILENT_AFTER:
            return "silent"
        return "busy" if self.count() else "idle"

    def count(self) -> int:
        """How many calls of the user run there."""
        return max(int(self.told.get("running", 0)) - self.hidden, 0)

    def row(self, now: float) -> dict[str, Any]:
        """What is shown of it."""
        told = {} if self.gone is not None else self.told
        alive = self.gone is None
        return {
            "id": self.pid,
            "host": self.host,
            "ospid": self.ospid,
            "since": self.since,
            "state": self.state(now),
            "silent_for": now - self.answered,
            "reason": self.gone,
            "gone_at": self.gone_at,
            "cpu": self.cpu if alive else 0.0,
            "memory": told.get("rss", 0),
            "threads": told.get("threads", 0),
            "running": self.count() if alive else 0,
            "queued": told.get("queued", 0),
            "calls": self.running if alive else [],
            "calls_begun": self.told.get("calls_begun", 0),
            "call_rate": self.call_rate if alive else 0.0,
            "sent": self.told.get("bytes_sent", 0),
            "received": self.told.get("bytes_received", 0),
            "sent_rate": self.sent_rate if alive else 0.0,
            "received_rate": self.received_rate if alive else 0.0,
            "waiting_bytes": told.get("queued_bytes", 0),
            "shared_bytes": told.get("shared_bytes", 0),
            "references": told.get("refs", 0),
        }


def _rate(before: dict[str, Any], after: dict[str, Any], name: str, elapsed: float) -> float:
    """How fast a total grows; one that began anew grows from nothing."""
    grown = float(after[name] - before[name])
    return max(grown if grown >= 0 else float(after[name]), 0.0) / elapsed


class _Pace:
    """The rate of one map, by which its remaining time is told."""

    def __init__(self, progress: _progress.Progress) -> None:
        self.done, self.at = 0, progress.since
        self.rate: float | None = None

    def measure(self, done: int, now: float) -> None:
        if now - self.at < INTERVAL / 4:
            return
        rate = (done - self.done) / (now - self.at)
        self.rate = rate if self.rate is None else SMOOTHING * rate + (1 - SMOOTHING) * self.rate
        self.done, self.at = done, now


class Sampler:
    """Asks all processes what they do, once a second while somebody watches.

    Workers record their calls while they are watched, and are told once when that begins and ends. A sample
    is one small message to each process and one back, which its core answers.
    """

    def __init__(self) -> None:
        _session.ensure_started()
        self._lock = threading.Lock()
        self._queue = _core.Queue()
        self._asked: dict[int, int] = {}
        self._recorded: set[int] = set()
        self._processes: dict[int, Process] = {}
        self._paces: dict[int, _Pace] = {}
        self._calls: deque[dict[str, Any]] = deque(maxlen=CALLS_KEPT)
        self._lines: deque[dict[str, Any]] = deque(maxlen=LINES_KEPT)
        self._history: deque[dict[str, Any]] = deque(maxlen=HISTORY_KEPT)
        self._numbers = 0
        self._number_lock = threading.Lock()
        self._last = -float("inf")
        self._began = time.time()
        self._watchers: set[int] = set()
        _output.tap = self._hear

    # --- watching

    def sample(self, max_age: float = INTERVAL / 4) -> None:
        """Asks all processes, unless that was done less than `max_age` seconds ago."""
        with self._lock:
            if time.monotonic() - self._last < max_age:
                return
            self._last = time.monotonic()
            self._look_at_members()
            self._ask()
            self._measure_maps()
            self._remember()

    def watch(self, watcher: object) -> None:
        """Somebody asks for samples from now on."""
        self._watchers.add(id(watcher))

    def unwatch(self, watcher: object) -> None:
        """Somebody asks for no more samples; where nobody else does, workers record nothing."""
        with self._lock:
            self._watchers.discard(id(watcher))
            if self._watchers:
                return
            self._last = -float("inf")
            recorded, self._recorded = self._recorded, set()
            for pid in recorded:
                self._tell(pid, _recording.stop)

    def close(self) -> None:
        """Nothing is asked of it any more."""
        if _output.tap == self._hear:
            _output.tap = None
        with self._lock:
            for request in self._asked.values():
                _core.abandon(request)
            self._asked.clear()

    def _tell(self, pid: int, f: Any) -> None:
        if pid == _core.me():
            f()
            return
        try:
            _calls.remote_do(f, pid)
        except (ProcessExitedException, ValueError, ConnectionError):
            # It has just gone, as the next sample shows.
            return

    # --- taking samples

    def _look_at_members(self) -> None:
        members = {pid: (ospid, host) for pid, ospid, host in _core.members()}
        for pid, (ospid, host) in members.items():
            if pid not in self._processes:
                # That of process 1 is known here alone.
                self._processes[pid] = Process(pid, ospid or (os.getpid() if pid == _core.me() else 0), host)
                if pid != _core.me() and self._history:
                    self._note(pid, "joined", f"worker {pid} joined on {host}")
            if pid not in self._recorded:
                self._recorded.add(pid)
                self._tell(pid, _recording.start)
        for pid, process in self._processes.items():
            if pid not in members and process.gone is None:
                process.gone, process.gone_at = _reason(pid), time.time()
                self._recorded.discard(pid)
                self._note(pid, "gone", f"worker {pid} is gone: {process.gone}")
        gone = [pid for pid, process in self._processes.items() if process.gone is not None]
        for pid in gone[:-GONE_KEPT]:
            del self._processes[pid]

    def _ask(self) -> None:
        for pid, process in self._processes.items():
            if process.gone is not None or pid in self._asked:
                continue
            if pid == _core.me():
                self._take(pid, _core.observation())
                continue
            try:
                self._asked[pid] = _core.ask_observation(pid, self._queue, pid)
            except (ProcessExitedException, ValueError, ConnectionError):
                continue
        until = time.monotonic() + PATIENCE
        while self._asked and (left := until - time.monotonic()) > 0:
            for pid, outcome in self._queue.wait(left):
                self._asked.pop(pid, None)
                if outcome.status == _refs.VALUE:
                    self._take(pid, bytes(outcome.data).decode())

    def _take(self, pid: int, text: str) -> None:
        process, now, clock = self._processes[pid], time.monotonic(), time.time()
        told = json.loads(text)
        process.take(told, now)
        for src, number, name, ago, took, count, error in told["ended"]:
            self._add(
                self._calls,
                {
                    "id": f"{src}.{number}",
                    "worker": pid,
                    "name": name,
                    "began": clock - ago,
                    "took": took,
                    "count": count,
                    "error": error,
                },
            )
            if error is not None:
                self._note(pid, "error", f"{name}: {error}")

    def _measure_maps(self) -> None:
        now = time.monotonic()
        maps = {id(progress): progress for progress in _progress.maps()}
        self._paces = {key: pace for key, pace in self._paces.items() if key in maps}
        for key, progress in maps.items():
            if progress.ended is None:
                self._paces.setdefault(key, _Pace(progress)).measure(progress.done, now)

    def _remember(self) -> None:
        alive = [process for process in self._processes.values() if process.gone is None]
        self._history.append(
            {
                "time": time.time(),
                "cpu": sum(process.cpu for process in alive),
                "memory": sum(process.told.get("rss", 0) for process in alive),
                "calls": sum(process.call_rate for process in alive),
                "traffic": sum(process.sent_rate for process in alive),
            }
        )

    def _hear(self, pid: int, is_error: bool, lines: list[str]) -> None:
        """Takes lines that a worker has printed; called by the thread that passes them on."""
        for line in lines[-LINES_KEPT:]:
            self._note(pid, "stderr" if is_error else "stdout", line[:LINE_CHARACTERS])

    def _note(self, pid: int, kind: str, text: str) -> None:
        self._add(self._lines, {"time": time.time(), "worker": pid, "kind": kind, "text": text})

    def _add(self, entries: deque[dict[str, Any]], entry: dict[str, Any]) -> None:
        # Several threads add; a watcher asks for what came after the number that it was told last.
        with self._number_lock:
            self._numbers += 1
            entries.append({"number": self._numbers, **entry})

    # --- what is shown

    def state(self, after: int = 0) -> dict[str, Any]:
        """What there is to show, ready for JSON.

        Parameters:
            after: the `number` of an earlier state, whose calls and lines are not told again.
        """
        with self._lock:
            now, clock = time.monotonic(), time.time()
            with self._number_lock:
                number, calls, lines = self._numbers, list(self._calls), list(self._lines)
            processes = sorted(self._processes.values(), key=lambda process: process.pid)
            return {
                "time": clock,
                "cluster": {
                    "host": _session.host(),
                    "program": program(),
                    "ospid": os.getpid(),
                    "version": _core.__version__,
                    "python": ".".join(map(str, sys.version_info[:3])),
                    "cpus": len(os.sched_getaffinity(0)),
                    "since": self._began,
                },
                "processes": [process.row(now) for process in processes],
                "maps": [self._map_row(progress, now, clock) for progress in _progress.maps()],
                "channels": self._channel_rows(),
                "number": number,
                "calls": [call for call in calls if call["number"] > after],
                "lines": [line for line in lines if line["number"] > after],
                "history": list(self._history)[-1 if after else 0 :],
                "dropped": sum(process.told.get("calls_dropped", 0) for process in processes),
            }

    def _map_row(self, progress: _progress.Progress, now: float, clock: float) -> dict[str, Any]:
        pace = self._paces.get(id(progress))
        running = progress.ended is None
        elapsed = (now if progress.ended is None else progress.ended) - progress.since
        rate = pace.rate if running and pace is not None else progress.done / elapsed if elapsed > 0 else None
        left = None if progress.total is None else progress.total - progress.done
        complete = left == 0 if left is not None else not running
        return {
            "name": str(progress.name),
            "began": clock - (now - progress.since),
            "done": progress.done,
            "total": progress.total,
            "state": "running" if running else "done" if complete else "stopped",
            "elapsed": elapsed,
            "rate": rate,
            "eta": left / rate if running and left is not None and rate else None,
        }

    def _channel_rows(self) -> list[dict[str, Any]]:
        return [
            {
                "owner": process.pid,
                "id": f"{whence}.{number}",
                "capacity": capacity,
                "depth": depth,
                "putters": putters,
                "takers": takers,
                "open": is_open,
            }
            for process in self._processes.values()
            if process.gone is None
            for whence, number, capacity, depth, putters, takers, is_open in process.told.get("channels", ())
        ]


def program() -> str:
    """What this process runs, in few words."""
    name = sys.argv[0] if sys.argv else ""
    if os.path.basename(name) == "__main__.py":
        return f"python -m {os.path.basename(os.path.dirname(name))}"
    if name in ("", "-c", "-m", "-"):
        return "interactive session" if name == "" else f"python {name}"
    return os.path.basename(name)


def _reason(pid: int) -> str:
    try:
        _core.check_pid(pid)
    except ProcessExitedException as error:
        return str(error.reason)
    except Exception as error:
        return str(error)
    return "it has left"


_sampler: Sampler | None = None
_users = 0
_sampler_lock = threading.Lock()


def acquire() -> Sampler:
    """The one sampler of this process, as cores tell of each call once; `release` gives it back."""
    global _sampler, _users
    with _sampler_lock:
        if _sampler is None:
            _sampler = Sampler()
        _users += 1
        return _sampler


def release() -> None:
    """One of those who use the sampler does so no longer; it ends with the last."""
    global _sampler, _users
    with _sampler_lock:
        _users -= 1
        if _users == 0 and _sampler is not None:
            _sampler.close()
            _sampler = None
