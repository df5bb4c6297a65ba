"""`pmap`: a function over many elements, on all workers."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from . import _batches, _calls, _core, _refs, _session
from ._cluster import workers
from ._errors import NoWorkersError, ProcessExitedException, load_exception

TARGET_SECONDS = 0.004
"""How much work a message carries where calls are short."""
GROWTH = 4
"""How much larger a batch may be than the one before."""
SIZE_MAX = 10_000
"""The largest batch that is made by itself."""
IN_FLIGHT = 2
"""Messages under way per worker, to hide the round trip."""
IN_FLIGHT_MAX = 64
"""Messages under way per worker where each is short."""
INSTALLED = (1 << 64) - 1
"""The key of the answer that a function has arrived."""


def pmap(
    f: Callable[..., Any],
    /,
    *iterables: Iterable[Any],
    pool: Iterable[int] | None = None,
    distributed: bool = True,
    batch_size: int | str = "auto",
    on_error: Callable[[BaseException], Any] | None = None,
) -> list[Any]:
    """Calls a function on every element, on the workers, and returns the values in order.

    Parameters:
        f: any callable, of as many parameters as there are iterables.
        iterables: the elements; the shortest ends it, and none is read far ahead of need.
        pool: the ids of the workers to use; all by default.
        distributed: False runs the calls in threads of this process.
        batch_size: elements in one message; "auto" grows it only while calls are short.
        on_error: is given the error of an element as `fetch` would raise it, and returns a value for it.

    Returns:
        The list of values.

    Raises:
        RemoteException: the first error of a call, unless `on_error` is given; nothing more is started then.
        ProcessExitedException: a worker has gone with elements that it was working on.
        NoWorkersError: the pool is empty.
        TypeError: no iterable, or a wrong `batch_size`.

    Distributed.jl: `pmap`.

    >>> import pydist as d
    >>> d.pmap(pow, [2, 3, 4], [2, 2, 2])
    [4, 9, 16]
    """
    _calls._check_callable(f)
    if not iterables:
        raise TypeError("pmap() needs at least one iterable")
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int)):
        raise TypeError(f'batch_size must be an int or "auto", not {batch_size!r}')
    if isinstance(batch_size, int) and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    elements = zip(*iterables, strict=False)
    if not distributed:
        return _in_threads(f, elements, on_error)
    _session.ensure_started()
    pids = workers() if pool is None else [_session.as_pid(pid) for pid in pool]
    if not pids:
        raise NoWorkersError("the pool has no workers")
    if pids == [_core.me()]:
        return _in_threads(f, elements, on_error)
    return _Map(f, elements, pids, batch_size, on_error).run()


def _in_threads(
    f: Callable[..., Any],
    elements: Iterator[tuple[Any, ...]],
    on_error: Callable[[BaseException], Any] | None,
) -> list[Any]:
    import os
    from collections import deque

    _session.ensure_started()
    window = 2 * (os.cpu_count() or 1)
    pending: deque[_refs.Future] = deque()
    values: list[Any] = []

    def take() -> None:
        try:
            values.append(pending.popleft().fetch())
        except Exception as error:
            if on_error is None:
                for future in pending:
                    future.cancel()
                raise
            values.append(on_error(error))

    for element in elements:
        pending.append(_refs.call_here(f, element, {}))
        if len(pending) >= window:
            take()
    while pending:
        take()
    return values


@dataclasses.dataclass
class _Flight:
    """A batch that is under way."""

    pid: int
    index: int
    count: int
    call: int | None = None
    future: _refs.Future | None = None


class _Map:
    """One run of `pmap`: batches go to workers as these have room, values are put in order as they come."""

    def __init__(
        self,
        f: Callable[..., Any],
        elements: Iterator[tuple[Any, ...]],
        pids: list[int],
        batch_size: int | str,
        on_error: Callable[[BaseException], Any] | None,
    ) -> None:
        self._key = uuid.uuid4().hex
        self._f = f
        self._me = _core.me()
        self._function = _calls._dump(_batches.install, (self._key, f), {})
        self._elements = elements
        self._auto = batch_size == "auto"
        self._size = 1 if isinstance(batch_size, str) else batch_size
        self._on_error = on_error
        self._queue = _core.Queue()
        self._installed: set[int] = set()
        self._busy = dict.fromkeys(pids, 0)
        self._window = IN_FLIGHT
        self._flying: dict[int, _Flight] = {}
        self._values: dict[int, Any] = {}
        self._next_key = 0
        self._next_index = 0
        self._exhausted = False

    def run(self) -> list[Any]:
        """Sends everything, and returns the values in order."""
        try:
            while True:
                self._dispatch()
                if not self._flying:
                    break
                for key, outcome in self._queue.wait():
                    self._take(key, outcome)
        except BaseException:
            for flight in self._flying.values():
                if flight.call is not None:
                    _core.abandon(flight.call)
                elif flight.future is not None:
                    flight.future.cancel()
            raise
        finally:
            self._forget()
        values: list[Any] = []
        for index in sorted(self._values):
            values.extend(self._values[index])
        return values

    def _forget(self) -> None:
        for pid in self._installed:
            try:
                _calls.remote_do(_batches.forget, pid, self._key)
            except (ProcessExitedException, RuntimeError):
                continue

    def _install(self, pid: int) -> None:
        self._installed.add(pid)
        _core.call_queue(pid, *self._function, self._queue, INSTALLED)

    def _dispatch(self) -> None:
        while not self._exhausted:
            pid = min(self._busy, key=self._busy.__getitem__, default=None)
            if pid is None:
                raise NoWorkersError("every worker of the pool has gone")
            if self._busy[pid] >= self._window:
                return
            self._send(pid)

    def _send(self, pid: int) -> None:
        batch: list[tuple[Any, ...]] = []
        for element in self._elements:
            batch.append(element)
            if len(batch) >= self._size:
                break
        if len(batch) < self._size:
            self._exhausted = True
        if not batch:
            return
        key = self._next_key
        self._next_key += 1
        self._busy[pid] += 1
        self._flying[key] = _Flight(pid, self._next_index, len(batch))
        self._next_index += len(batch)
        if pid == self._me:
            self._run_here(key, batch)
            return
        if pid not in self._installed:
            self._install(pid)
        arguments = (self._key, self._on_error is not None, batch)
        data, buffers, refs = _calls._dump(_batches.run, arguments, {})
        call = _core.call_queue(pid, data, buffers, refs, self._queue, key)
        self._flying[key].call = call

    def _run_here(self, key: int, batch: list[tuple[Any, ...]]) -> None:
        """Runs a batch in this process, which is one of the workers."""
        future = _refs.call_here(_batches.run_function, (self._f, self._on_error is not None, batch), {})
        self._flying[key].future = future
        future._ref.tell(self._queue, key, False)

    def _take(self, key: int, outcome: _core.Outcome) -> None:
        if key == INSTALLED:
            if outcome.status == _refs.ERROR:
                raise _refs.error_of(outcome)
            return
        flight = self._flying.pop(key)
        pid, index, count = flight.pid, flight.index, flight.count
        result, error = self._result(flight, outcome)
        if error is not None:
            if isinstance(error, ProcessExitedException):
                self._busy.pop(pid, None)
            else:
                self._busy[pid] -= 1
            if self._on_error is None or not isinstance(error, Exception):
                raise error
            self._values[index] = [self._on_error(error) for _ in range(count)]
            return
        self._busy[pid] -= 1
        seconds, values = result
        if self._on_error is not None:
            values = [v if ok else self._on_error(load_exception(*v)) for ok, v in values]
        self._values[index] = values
        self._adapt(max(seconds, 1e-9), count)

    def _result(self, flight: _Flight, outcome: _core.Outcome) -> tuple[Any, BaseException | None]:
        if flight.future is None:
            return _refs.load_outcome(outcome)
        try:
            return flight.future.fetch(), None
        except BaseException as error:
            return None, error

    def _adapt(self, seconds: float, count: int) -> None:
        """Fits the batches, and how many are under way, to the time that one took."""
        self._window = max(IN_FLIGHT, min(int(TARGET_SECONDS / seconds), IN_FLIGHT_MAX))
        if self._auto:
            fitting = int(TARGET_SECONDS * count / seconds)
            self._size = max(1, min(fitting, self._size * GROWTH, SIZE_MAX))
