"""Calls to several processes that belong together: awaited together, their errors raised together."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from . import _core, _session
from ._abstract_pool import AbstractWorkerPool
from ._errors import NotConnectedError, ProcessExitedException
from ._refs import Future


def as_pids(pids: Any) -> list[int]:
    """The ids of processes, each once, of an id, several, or a pool.

    Raises:
        TypeError: an id is no integer.
        ValueError: one never was in this cluster.
    """
    _session.ensure_started()
    if isinstance(pids, AbstractWorkerPool):
        return pids.workers()
    if not isinstance(pids, Iterable):
        pids = (pids,)
    numbers = list(dict.fromkeys(map(_session.as_pid, pids)))
    for number in numbers:
        try:
            _core.check_pid(number)
        except (ProcessExitedException, NotConnectedError):
            continue
    return numbers


def is_pid(value: Any) -> bool:
    """Whether a value is the id of one process, rather than several of them."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def call_each(pids: Iterable[int], call: Callable[[int], Future]) -> list[tuple[int, Future | Exception]]:
    """Makes a call on each process; where one has gone or cannot be reached, there is its error instead."""
    calls: list[tuple[int, Future | Exception]] = []
    try:
        for pid in pids:
            try:
                calls.append((pid, call(pid)))
            except (ProcessExitedException, NotConnectedError) as error:
                calls.append((pid, error))
    except BaseException:
        cancel_all(future for _, future in calls if isinstance(future, Future))
        raise
    return calls


def values_of(
    calls: Iterable[tuple[int, Future | Exception]],
) -> tuple[list[Any], list[tuple[int, Exception]]]:
    """Waits for all calls to end; returns the values in order, and the errors with the ids they are from."""
    values: list[Any] = []
    errors: list[tuple[int, Exception]] = []
    for pid, future in calls:
        try:
            if isinstance(future, Exception):
                raise future
            values.append(future.fetch())
        except Exception as error:
            errors.append((pid, error.with_traceback(None)))
    return values, errors


def group_of(what: str, errors: list[tuple[int, Exception]]) -> ExceptionGroup[Exception]:
    """The error to raise for those of several processes, which it names."""
    pids = sorted({pid for pid, _ in errors})
    where = f"process {pids[0]}" if len(pids) == 1 else f"processes {', '.join(map(str, pids))}"
    return ExceptionGroup(f"{what} failed on {where}", [error for _, error in errors])


def cancel_all(futures: Iterable[Future]) -> None:
    """Cancels the calls that have not ended; those of processes that have gone have."""
    for future in futures:
        try:
            future.cancel()
        except (ProcessExitedException, ConnectionError, RuntimeError):
            continue
