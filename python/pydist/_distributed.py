"""`distributed`: a loop whose range is split between the workers."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from . import _calls, _core, _ends, _groups, _refs, _sync
from ._cluster import workers
from ._errors import NoWorkersError, as_it_is, local_exception
from ._functions import SentFunction

Body = Callable[[Any], Any]
Reducer = Callable[[Any, Any], Any]


def distributed(
    iterable: Iterable[Any], reducer: Reducer | None = None, *, pids: Any = None
) -> Callable[[Body], Any]:
    """Runs a loop on the workers: each gets one contiguous part of the range.

    Parameters:
        iterable: what the loop runs over; it is read once, here, when the body is given. The sizes of the
            parts differ by at most 1; a range is sent as ranges.
        reducer: combines two values of the body into one. Each worker reduces its part first, and the parts
            are combined here in order, so that it must be associative, but need not be commutative.
        pids: the ids of the workers, or a pool of them; all workers by default.

    Returns:
        A decorator for the body, a function of one parameter: with a reducer, it waits and binds the name to
        the reduced value; without, it binds the name at once to a `Future` of the whole loop, whose value is
        None. `distributed(iterable, reducer)(body)` is the same as a call. The iterations of a body that is
        an `async def` run at once within each part.

    Raises:
        ExceptionGroup: what the parts raised, one error for each worker that failed, once all have ended;
            without a reducer from `fetch`. Each part ends with its first error.
        TypeError: there is a reducer and the iterable is empty, so that there is no value, as with
            `functools.reduce`.
        NoWorkersError: `pids` is empty.

    Distributed.jl: `@distributed`.

    >>> import operator
    >>> import pydist as d
    >>> @d.distributed(range(1, 101), operator.add)
    ... def total(i):
    ...     return i * i
    >>> total
    338350
    >>> @d.distributed(range(4))
    ... def loop(i):
    ...     pass
    >>> loop.fetch()
    """
    if not hasattr(iterable, "__iter__") and not hasattr(iterable, "__getitem__"):
        raise TypeError(f"distributed() runs over an iterable; a {type(iterable).__name__} is not iterable")
    if reducer is not None:
        _calls._check_callable(reducer)

    def run(body: Body) -> Any:
        _calls._check_callable(body)
        chosen = workers() if pids is None else _groups.as_pids(pids)
        if not chosen:
            raise NoWorkersError("there are no workers to run the loop")
        parts = split(iterable, len(chosen))
        sent = SentFunction(_Loop(body, reducer))
        if reducer is None:
            return _sync.note(_start(sent, parts, chosen))
        if not parts:
            raise TypeError("distributed() of an empty iterable has no value to reduce to")
        return _reduce(reducer, _run(sent, parts, chosen))

    return run


def split(iterable: Iterable[Any], n: int) -> list[Sequence[Any]]:
    """Splits what a loop runs over into at most `n` contiguous parts, none empty.

    >>> split(range(5), 3)
    [range(0, 2), range(2, 4), range(4, 5)]
    >>> split("ab", 3)
    ['a', 'b']
    """
    items: Any = iterable
    if type(items) not in (range, list, tuple, str, bytes) and not _is_array(items):
        items = list(items)
    n = min(n, len(items))
    ends = [0]
    for i in range(n):
        ends.append(ends[-1] + len(items) // n + (i < len(items) % n))
    return [items[start:end] for start, end in itertools.pairwise(ends)]


def _is_array(items: Any) -> bool:
    return type(items).__module__ == "numpy" and getattr(items, "ndim", 0) > 0


class _Loop:
    """What a worker does with its part."""

    def __init__(self, body: Body, reducer: Reducer | None) -> None:
        self.body = body
        self.reducer = reducer

    def __call__(self, part: Sequence[Any]) -> Any:
        if inspect.iscoroutinefunction(self.body):
            return self._at_once(part)
        if self.reducer is not None:
            return functools.reduce(self.reducer, map(self.body, part))
        for item in part:
            self.body(item)
        return None

    async def _at_once(self, part: Sequence[Any]) -> Any:
        values = await asyncio.gather(*map(self.body, part))
        return None if self.reducer is None else functools.reduce(self.reducer, values)


def _start(sent: SentFunction, parts: list[Sequence[Any]], pids: list[int]) -> _refs.Future:
    """Starts the parts, and returns the future of them all."""
    if not parts:
        return _refs.Future().put(None)
    calls = _call_parts(sent, parts, pids)
    loop = _refs.call_here(_finish, (sent, calls), {})
    futures = [future for _, future in calls if isinstance(future, _refs.Future)]
    # Where the loop is cancelled, its parts may be running still.
    _ends.watch(loop, lambda: _cancel(futures))
    return loop


def _cancel(futures: list[_refs.Future]) -> None:
    left = [future for future in futures if not future._done]
    if left:
        _refs.call_here(_groups.cancel_all, (left,), {})


def _finish(sent: SentFunction, calls: Any) -> None:
    try:
        _await_parts(sent, calls)
    except ExceptionGroup as group:
        raise as_it_is(group) from None


def _run(sent: SentFunction, parts: list[Sequence[Any]], pids: list[int]) -> list[Any]:
    return _await_parts(sent, _call_parts(sent, parts, pids))


def _call_parts(sent: SentFunction, parts: list[Sequence[Any]], pids: list[int]) -> Any:
    part_of = dict(zip(pids, parts, strict=False))
    return _groups.call_each(part_of, lambda pid: _calls._remotecall(sent.on(pid), pid, (part_of[pid],), {}))


def _await_parts(sent: SentFunction, calls: Any) -> list[Any]:
    """The values of the parts; where this is interrupted, the parts are cancelled."""
    try:
        values, errors = _groups.values_of(calls)
    except BaseException:
        _groups.cancel_all(future for _, future in calls if isinstance(future, _refs.Future))
        raise
    finally:
        sent.forget()
    if errors:
        raise _groups.group_of("distributed", errors)
    return values


def _reduce(reducer: Reducer, values: list[Any]) -> Any:
    try:
        return functools.reduce(reducer, values)
    except Exception as error:
        me = _core.me()
        raise _groups.group_of("distributed", [(me, local_exception(error, me))]) from None
