"""One run of a map on the process that asked for it: batches go out, values come in and are put in order."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pickle
import re
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from . import _batches, _calls, _core, _elements, _otel, _plain, _refs, _serialize, _session
from ._batches import Columns
from ._errors import NoWorkersError, ProcessExitedException
from ._functions import SentFunction
from ._progress import Progress
from ._retries import Retries
from ._team import Team, Threads

LOOK_EVERY = 0.1
"""Seconds between two looks at which workers have come or gone."""
WAKE = (1 << 63) - 1
"""The key under which a run is woken with no more to say."""
GIVEN_BACK = 1 << 62
"""Added to the key of a batch: the key of the worker's answer to a recall of the rest of it."""

_lanes = itertools.count(1)

OnError: TypeAlias = Callable[[Exception], Any]


@dataclasses.dataclass
class Plan:
    """What is to be mapped, and how."""

    function: SentFunction
    elements: _elements.Elements
    size: int | None
    on_error: OnError | None
    retries: Retries
    progress: Progress
    in_order: bool
    """Errors are raised where their element is in the order, and the look-ahead is bounded."""


class _Flight:
    """A batch that is under way."""

    __slots__ = ("call", "columns", "count", "first", "future", "worker")

    def __init__(self, worker: int, first: int, columns: Columns) -> None:
        self.worker = worker
        self.first = first
        self.columns = columns
        self.count = len(columns[0])
        self.call: int | None = None
        self.future: _refs.Future | None = None


class Run:
    """Carries out a plan on workers, or in threads of this process."""

    def __init__(self, plan: Plan, team: Team | Threads, queue: _core.Queue) -> None:
        self._plan = plan
        self._team = team
        self._queue = queue
        self._me = _core.me()
        self._async = _batches.is_async(plan.function.f)
        self._at_once = self._async and plan.size is None
        self._number = next(_lanes)
        self._schedule = _core.Schedule(
            size=plan.size, total=plan.elements.total, bounded=plan.in_order, at_once=self._at_once
        )
        for worker in team.pids:
            self._schedule.join(worker, not self._is_here(worker))
        keeps_errors = plan.on_error is not None or plan.retries.allowed
        self._how = _batches.KEEP_ERRORS * keeps_errors + _batches.ASYNC * self._async
        self._opcodes = _plain.name_opcodes(_batches.run)
        self._carried = _otel.carried()
        self._flights: dict[int, _Flight] = {}
        # Elements that are to be run again, by their numbers.
        self._kept: dict[int, tuple[Any, ...]] = {}
        # Values that are not to be consumed yet, by the number of the first.
        self._pieces: dict[int, list[Any]] = {}
        # Values by the number of their element, where none is consumed before all are there.
        self._values: list[Any] = []
        self._next = 0
        self._error: tuple[int, Exception] | None = None
        self._next_look = 0.0
        self._stopped = False
        self._singles = self._make_singles() if plan.size == 1 and isinstance(team, Team) else None

    def _make_singles(self) -> _core.Singles | None:
        """What carries elements that go one by one, unless each gives a coroutine."""
        opcodes = None if self._async or self._carried else _plain.name_opcodes(_batches.run_single)
        if opcodes is None:
            return None
        return _core.Singles(
            self._schedule,
            self._queue,
            prefix=_serialize.open_call(opcodes, *self._plan.function.key),
            lane=self._number,
            rows=self._plan.elements.one_by_one(),
            several=self._plan.elements.several,
            values=self._pieces if self._plan.in_order else self._values,
        )

    def all_values(self) -> list[Any]:
        """Runs everything and returns the values in order."""
        self._dispatch()
        while not self._schedule.is_done():
            self._await()
            self._dispatch()
        values = self._values
        for first, piece in sorted(self._pieces.items()):
            values[first : first + len(piece)] = piece
        return values

    def stop(self) -> None:
        """Has `next_piece` return None soon on whatever thread it waits."""
        self._stopped = True
        self._queue.push(WAKE)

    def next_piece(self) -> list[Any] | None:
        """Returns the values that come next, as many as there are; None at the end."""
        while not self._stopped:
            self._dispatch()
            piece = self._pieces.pop(self._next, None)
            if piece is not None:
                self._next += len(piece)
                self._schedule.consumed(self._next)
                self._take_all(self._drain())
                return piece
            if self._error is not None and self._error[0] <= self._next:
                raise self._error[1]
            if self._schedule.is_done():
                return None
            self._await()
        return None

    def _await(self) -> None:
        """Waits until something has come in, and takes it."""
        if self._schedule.needs_workers():
            coming = self._team.is_coming()
            self._look()
            if self._schedule.needs_workers() and not coming:
                _session.stay_at_exit()
                raise NoWorkersError("every worker of the pool has gone")
        self._take_all(self._wait())

    def _wait(self) -> list[tuple[int, _core.Outcome]]:
        patience = self._patience()
        if self._singles is None:
            return self._queue.wait(patience)
        return self._noted(*self._singles.wait(patience, time.monotonic_ns()))

    def _drain(self) -> list[tuple[int, _core.Outcome]]:
        if self._singles is None:
            return self._queue.drain()
        return self._noted(*self._singles.drain(time.monotonic_ns()))

    def _noted(
        self, values: int, outcomes: list[tuple[int, _core.Outcome]]
    ) -> list[tuple[int, _core.Outcome]]:
        """Notes that so many elements more have their values, and gives the outcomes of others."""
        if values:
            self._plan.progress.update(values)
        return outcomes

    def _take_all(self, outcomes: list[tuple[int, _core.Outcome]]) -> None:
        for key, outcome in outcomes:
            self._take(key, outcome)

    def _patience(self) -> float:
        now = time.monotonic_ns()
        until = self._schedule.next_time(now)
        return LOOK_EVERY if until is None else min(LOOK_EVERY, max(0, until - now) / 1e9)

    def _is_here(self, worker: int) -> bool:
        return worker == self._me or worker >= 1 << 31

    # --- what goes out

    def _dispatch(self) -> None:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_EVERY
            self._look()
        if self._singles is not None:
            while (step := self._singles.poll(time.monotonic_ns())) is not None:
                (kind, key, worker, first, count), found = step
                if kind == "row":
                    self._send_row(key, worker, first, found)
                elif kind == "error":
                    self._raise_at(first, found)
                else:
                    self._act(kind, key, worker, first, count)
            return
        while (action := self._schedule.poll(time.monotonic_ns())) is not None:
            self._act(*action)

    def _act(self, kind: str, key: int, worker: int, first: int, count: int) -> None:
        """Does what the schedule says is to be done."""
        if kind == "pull":
            self._pull(key, worker, first, count)
            return
        if kind == "send":
            rows = [self._kept.pop(element) for element in range(first, first + count)]
            self._send(key, _Flight(worker, first, tuple(map(list, zip(*rows, strict=True)))))
            return
        self._take_over()
        if key in self._flights:
            self._recall(key, rest=kind == "recall_rest")

    def _send_row(self, key: int, worker: int, first: int, row: Any) -> None:
        """Sends one element that is not as simple as others, or is the first for its worker."""
        assert self._singles is not None
        self._send(key, _Flight(worker, first, self._columns(row)))
        if not self._is_here(worker):
            self._singles.know(worker)

    def _columns(self, row: Any) -> Columns:
        return tuple([value] for value in row) if self._plan.elements.several else ([row],)

    def _take_over(self) -> None:
        """Takes all that is under way without Python's part over."""
        if self._singles is not None:
            for key, flight in self._singles.release_all():
                self._flights[key] = self._flight_of(flight)

    def _flight_of(self, single: tuple[int, int, Any, int]) -> _Flight:
        worker, first, row, call = single
        flight = _Flight(worker, first, self._columns(row))
        flight.call = call
        return flight

    def _landed(self, key: int) -> _Flight | None:
        """The batch of a key, which is not under way any more."""
        flight = self._flights.pop(key, None)
        if flight is None and self._singles is not None:
            single = self._singles.release(key)
            return None if single is None else self._flight_of(single)
        return flight

    def _look(self) -> None:
        joined, gone = self._team.look()
        for worker in joined:
            self._schedule.join(worker, not self._is_here(worker))
        if gone:
            self._take_over()
        for worker in gone:
            # What it had ends by itself; this is for a worker that had nothing.
            if all(flight.worker != worker for flight in self._flights.values()):
                self._schedule.leave(worker)
                self._team.lost(worker)

    def _pull(self, key: int, worker: int, first: int, count: int) -> None:
        elements = self._plan.elements
        columns = elements.take(count)
        taken = len(columns[0])
        self._schedule.filled(key, taken, elements.exhausted)
        if elements.error is not None:
            error, elements.error = elements.error, None
            self._raise_at(first + taken, error)
        if taken:
            self._send(key, _Flight(worker, first, columns))

    def _send(self, key: int, flight: _Flight) -> None:
        self._flights[key] = flight
        batch = (self._me, self._number, key)
        if self._is_here(flight.worker):
            arguments = (self._plan.function.f, batch, self._how, flight.columns)
            flight.future = _refs.call_here(_batches.run_function, arguments, dict(self._carried))
            flight.future._ref.tell(self._queue, key, False)
            return
        try:
            self._plan.function.on(flight.worker)
            data, buffers, refs = self._dump(batch, flight)
            lane = 0 if self._at_once else self._number
            flight.call = _core.call_queue(flight.worker, data, buffers, refs, self._queue, key, lane)
        except ProcessExitedException as error:
            del self._flights[key]
            self._schedule.cancelled(key, time.monotonic_ns())
            self._keep(flight, flight.first, flight.count)
            # What it has is lost too: the news of that has not been taken yet.
            self._died(flight.worker, error)
            return
        self._schedule.note_bytes(flight.count, len(data) + sum(map(len, buffers)))

    def _dump(self, batch: _batches.BatchId, flight: _Flight) -> tuple[bytes, list[Any], list[Any]]:
        columns, key = flight.columns, self._plan.function.key
        if self._opcodes is not None and not self._carried and all(map(_plain.all_atoms, columns)):
            data = pickle.dumps((key, batch, self._how, columns), 5)
            if len(data) < _plain.LARGE_BYTES:
                return _serialize.with_function(self._opcodes, data), [], []
        if flight.count <= _batches.FEW:
            columns = tuple([_serialize.outer(value) for value in column] for column in columns)
        arguments = (key, batch, self._how, columns)
        try:
            return _calls._dump(_batches.run, arguments, self._carried)
        except _serialize.PicklingError as error:
            where = re.compile(r"args\[3\]\[(\d+)\]\[(\d+)\]")
            name = where.sub(lambda m: f"iterables[{m[1]}][{flight.first + int(m[2])}]", str(error))
            raise _serialize.PicklingError(name) from error

    def _recall(self, key: int, rest: bool) -> None:
        """Asks for a batch that has not begun, or for what has not begun of one that runs."""
        flight = self._flights[key]
        batch = (self._me, self._number, key)
        if self._is_here(flight.worker):
            self._given_back(key, _batches.give_back(batch))
        elif rest:
            data, buffers, refs = _calls._dump(_batches.give_back, (batch,), {})
            # A worker that is gone tells so by the batch.
            with contextlib.suppress(ProcessExitedException):
                _core.call_queue(flight.worker, data, buffers, refs, self._queue, key + GIVEN_BACK)
        elif flight.call is not None:
            _core.recall(flight.call)

    # --- what comes in

    def _take(self, key: int, outcome: _core.Outcome) -> None:
        if key == WAKE:
            self._next_look = 0.0
            return
        if key >= GIVEN_BACK:
            kept, error = _refs.load_outcome(outcome)
            self._given_back(key - GIVEN_BACK, None if error is not None else kept)
            return
        flight = self._landed(key)
        if flight is None:
            return
        if flight.future is not None:
            self._take_here(key, flight)
        elif outcome.status == _refs.VALUE:
            size = len(outcome.data) + sum(map(len, outcome.buffers))
            self._schedule.note_bytes(flight.count, size)
            try:
                result = _serialize.loads(outcome.data, outcome.buffers)
            except Exception as error:
                count = flight.count
                result = 0, [None] * count, [(place, error) for place in range(count)]
            self._finished(key, flight, result)
        elif outcome.status == _refs.CANCELLED:
            self._schedule.cancelled(key, time.monotonic_ns())
            self._keep(flight, flight.first, flight.count)
        elif outcome.status in _refs.GONE:
            self._flights[key] = flight
            self._died(flight.worker, _refs.error_of(outcome))
        else:
            self._could_not_begin(key, flight, _refs.error_of(outcome))

    def _take_here(self, key: int, flight: _Flight) -> None:
        assert flight.future is not None
        try:
            result = flight.future.fetch()
        except Exception as error:
            self._could_not_begin(key, flight, error)
        else:
            self._finished(key, flight, result)

    def _could_not_begin(self, key: int, flight: _Flight, error: BaseException) -> None:
        """A batch failed as a whole: its elements run singly, so that each has an error of its own."""
        if flight.count == 1:
            failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
            self._finished(key, flight, (0, [None], [(0, failure)]))
            return
        self._schedule.split(key, time.monotonic_ns())
        self._keep(flight, flight.first, flight.count)

    def _finished(self, key: int, flight: _Flight, result: _batches.Result) -> None:
        took, values, errors = result if len(result) == 3 else (result[0], [result[1]], [])
        done = self._schedule.finished(key, len(values), took, time.monotonic_ns())
        if done is None:
            return
        first, rest, left = done
        self._keep(flight, rest, left)
        begin = 0
        for place, error in errors:
            ready, value = self._failed(first + place, error, flight)
            if ready:
                values[place] = value
            else:
                self._put(first + begin, values[begin:place])
                begin = place + 1
        self._put(first + begin, values[begin:] if begin else values)

    def _failed(self, element: int, error: Exception, flight: _Flight) -> tuple[bool, Any]:
        """An element has failed: returns whether it has a value in place of the error, and the value."""
        delay = self._plan.retries.failed(element, error)
        if delay is None:
            return self._give_up(element, error)
        self._retry(element, delay, flight)
        return False, None

    def _give_up(self, element: int, error: Exception) -> tuple[bool, Any]:
        self._plan.retries.settle(element, 1)
        self._check_suspects()
        if self._plan.on_error is not None:
            return True, self._plan.on_error(error)
        self._raise_at(element, error)
        return False, None

    def _retry(self, element: int, delay: float, flight: _Flight) -> None:
        self._keep(flight, element, 1)
        self._schedule.retry(element, time.monotonic_ns() + int(delay * 1e9), flight.worker)

    def _raise_at(self, element: int, error: Exception) -> None:
        """Raises an error, or has it raised after the values before it."""
        if not self._plan.in_order:
            raise error
        self._schedule.exhaust()
        if self._error is None or element < self._error[0]:
            self._error = element, error

    def _put(self, first: int, values: list[Any]) -> None:
        if values:
            self._pieces[first] = values
            self._plan.retries.settle(first, len(values))
            if self._async:
                self._check_suspects()
            self._plan.progress.update(len(values))

    def _keep(self, flight: _Flight, first: int, count: int) -> None:
        """Keeps elements of a batch, which are to be run again."""
        for element in range(first, first + count):
            self._kept[element] = _elements.row_of(flight.columns, element - flight.first)

    def _given_back(self, key: int, kept: int | None) -> None:
        given = self._schedule.given_back(key, kept, time.monotonic_ns())
        flight = self._flights.get(key)
        if given is not None and flight is not None:
            self._keep(flight, *given)

    # --- deaths

    def _leave(self, worker: int) -> list[tuple[_Flight, int, int]]:
        """Forgets a worker that is gone; returns what may have begun there, the rest waits for others."""
        self._take_over()
        begun = self._schedule.leave(worker)
        flights = {key: f for key, f in self._flights.items() if f.worker == worker}
        for key in flights:
            del self._flights[key]
        lost = [(flights.pop(key), first, count) for key, first, count in begun]
        for flight in flights.values():
            self._keep(flight, flight.first, flight.count)
        self._team.lost(worker)
        return lost

    def _died(self, worker: int, error: BaseException) -> None:
        assert isinstance(error, ProcessExitedException)
        lost = self._leave(worker)
        total = sum(count for *_, count in lost)
        for flight, first, count in lost:
            if count == 1 and total == 1:
                self._killed(first, error, flight)
            elif self._plan.retries.allowed:
                self._suspect(first, count, error, flight)
            else:
                doing = f"while it ran one of the elements {first} to {first + count - 1} of a pmap"
                told = error._while(doing if count > 1 else f"while it ran element {first} of a pmap", None)
                for element in range(first, first + count):
                    self._end(element, told)

    def _killed(self, element: int, error: ProcessExitedException, flight: _Flight) -> None:
        """A worker has died running just this element."""
        delay = self._plan.retries.killed(element, error)
        if delay is not None:
            self._retry(element, delay, flight)
            return
        deaths = self._plan.retries.deaths(element)
        doing = f"while it ran element {element} of a pmap"
        if deaths > 1:
            doing += f", which has killed {deaths} workers"
        self._end(element, error._while(doing, element))

    def _suspect(self, first: int, count: int, error: ProcessExitedException, flight: _Flight) -> None:
        """A worker has died running one of these elements: each is run by itself, so that it shows which."""
        self._keep(flight, first, count)
        for element in range(first, first + count):
            self._plan.retries.suspect(element, error)
        self._schedule.run_singly(first, count)
        if self._at_once:
            self._schedule.run_at_once(False)
            self._at_once = False

    def _check_suspects(self) -> None:
        """Asynchronous elements run at once again when none is left that may have killed its worker."""
        if self._async and self._plan.size is None and not self._at_once:
            at_once = not self._plan.retries.has_suspects()
            self._schedule.run_at_once(at_once)
            self._at_once = at_once

    def _end(self, element: int, error: Exception) -> None:
        ready, value = self._give_up(element, error)
        if ready:
            self._put(element, [value])

    # --- the end

    def close(self, interrupt: bool) -> None:
        """Has nothing more begin, and forgets what runs; with `interrupt` that is interrupted.

        It pickles nothing and does not wait, as it may be called by a finalizer.
        """
        self._take_over()
        flights, self._flights = self._flights, {}
        # At the end of the process there is no core any more.
        with contextlib.suppress(RuntimeError):
            for key, flight in flights.items():
                self._drop(key, flight, interrupt)
        self._pieces.clear()
        self._kept.clear()
        self._plan.progress.close()
        self._team.release()
        if not interrupt:
            self._stop_batches(flights)

    def _drop(self, key: int, flight: _Flight, interrupt: bool) -> None:
        if flight.future is not None:
            batch = (self._me, self._number, key)
            if interrupt or _batches.give_back(batch) is None:
                flight.future.cancel()
        elif flight.call is not None and interrupt:
            _core.cancel_fetch(flight.call)
        elif flight.call is not None:
            _core.abandon(flight.call)
            _core.recall(flight.call)

    def _stop_batches(self, flights: dict[int, _Flight]) -> None:
        """Ends the batches that run on workers after the element that they are at."""
        for key, flight in flights.items():
            if flight.call is not None and flight.count > 1:
                data, buffers, refs = _calls._dump(_batches.give_back, ((self._me, self._number, key),), {})
                with contextlib.suppress(ProcessExitedException, ValueError, RuntimeError):
                    _core.call_do(flight.worker, data, buffers, refs)
