"""What a worker does for `pmap`: it runs batches of elements, and gives back what it has not begun."""

from __future__ import annotations

import itertools
import pickle
import time
import types
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from . import _core, _functions, _interrupts, _plain, _recording, _serialize
from ._errors import local_exception

Columns: TypeAlias = tuple[Any, ...]
"""The elements of a batch: for each parameter of the function a list or a range of as many values."""
BatchId: TypeAlias = tuple[int, int, int]
"""The process that runs the map, the number of the map there, and the number of the batch."""
Result: TypeAlias = tuple[int, list[Any], list[tuple[int, Exception]]]
"""The nanoseconds it took, the values from the first on, and the places and errors of those that failed."""

KEEP_ERRORS, ASYNC = 1, 2
"""How a batch is run: go on after an error, which otherwise is the last; the function is asynchronous."""

FEW = 16
"""Up to so many values of a batch are looked at one by one, so that large ones travel beside the pickle."""

_running: dict[BatchId, tuple[list[Any], Any]] = {}


def run(key: _functions.Key, batch: BatchId, how: int, columns: Columns) -> Any:
    """Runs a batch of a function that was sent here.

    Parameters:
        key: of the function.
        batch: names the batch for `give_back`.
        how: `KEEP_ERRORS`, `ASYNC`, both or neither.
        columns: the elements.

    Returns:
        A `Result` that is pickled already; of an asynchronous function a coroutine that gives it.
    """
    result = run_function(_functions.get(key), batch, how, columns)
    return _dump(result) if type(result) is tuple else _dump_later(result)


def run_single(source: int, number: int, /, *row: Any) -> Any:
    """Runs one element of a function that was sent here, which came in a message of its own.

    Parameters:
        source, number: the key of the function.
        row: the arguments.

    Returns:
        The nanoseconds it took and the value, where that is plain; else what `run` returns.
    """
    f = _functions.get_ready(source, number)
    start = time.perf_counter_ns()
    try:
        value = f(*row)
    except BaseException as error:
        if _interrupts.leaving():
            raise
        if _recording.on:
            _recording.failed(error)
        took = time.perf_counter_ns() - start
        return _dump((took, [None], [(0, local_exception(error, _core.me()))]))
    took = time.perf_counter_ns() - start
    if _plain.plainness(value) == _plain.ATOMS:
        return took, value
    if isinstance(value, types.CoroutineType):
        return _dump_later(_await_values(took, [value], []))
    return _dump((took, [value], []))


def run_function(f: Callable[..., Any], batch: BatchId, how: int, columns: Columns) -> Any:
    """Runs a batch of a function that is here: returns a `Result`, or a coroutine that gives it."""
    keep_errors = bool(how & KEEP_ERRORS)
    if how & ASYNC:
        return _run_async(f, keep_errors, columns)
    start = time.perf_counter_ns()
    rows = list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))
    iterator = iter(rows)
    calls = map(f, iterator) if len(columns) == 1 else itertools.starmap(f, iterator)
    values: list[Any] = []
    errors: list[tuple[int, Exception]] = []
    _running[batch] = rows, iterator
    try:
        while (error := _extend(values, calls, iterator)) is not None:
            errors.append((len(values), local_exception(error, _core.me())))
            values.append(None)
            if not keep_errors or isinstance(error, KeyboardInterrupt):
                break
    finally:
        del _running[batch]
    took = time.perf_counter_ns() - start
    if values and isinstance(values[0], types.CoroutineType):
        return _await_values(took, values, errors)
    return took, values, errors


def is_async(f: Callable[..., Any]) -> bool:
    """Whether a call of a function gives a coroutine."""
    import inspect

    return inspect.iscoroutinefunction(f) or inspect.iscoroutinefunction(getattr(f, "__call__", None))  # noqa: B004


def _extend(values: list[Any], calls: Any, iterator: Any) -> BaseException | None:
    """Takes values up to the end, or to the first error, which is returned.

    `list.extend` keeps those before the error.
    """
    try:
        values.extend(calls)
    except BaseException as error:
        if _interrupts.leaving():
            raise
        if _recording.on:
            _recording.failed(error)
        return error
    # An iterator over a list that has not come to its end names the list.
    return None if len(iterator.__reduce__()) == 2 else StopIteration()


def give_back(batch: BatchId) -> int | None:
    """Takes the elements that have not begun from a batch that runs here.

    Returns:
        How many it keeps; None where no such batch runs.
    """
    entry = _running.get(batch)
    if entry is None:
        return None
    rows, iterator = entry
    kept = len(rows)
    while kept:
        try:
            rows.pop()
        except IndexError:
            break
        # The thread that runs the batch takes elements meanwhile; one that it has taken, it runs.
        state = iterator.__reduce__()
        if len(state) == 2 or state[2] > len(rows):
            break
        kept -= 1
    return kept


async def _run_async(f: Callable[..., Any], keep_errors: bool, columns: Columns) -> Result:
    start = time.perf_counter_ns()
    values, errors = await _gather(
        [_one(f, row) for row in zip(*columns, strict=True)],
        keep_errors,
    )
    return time.perf_counter_ns() - start, values, errors


async def _one(f: Callable[..., Any], row: tuple[Any, ...]) -> Any:
    return await f(*row)


async def _await_values(took: int, values: list[Any], errors: list[tuple[int, Exception]]) -> Result:
    """Awaits the coroutines that a plain function has returned."""
    start = time.perf_counter_ns()
    failed = dict(errors)
    places = [i for i in range(len(values)) if i not in failed]
    results, more = await _gather([_itself(values[i]) for i in places], True)
    for place, value in zip(places, results, strict=True):
        values[place] = value
    failed.update((places[i], error) for i, error in more)
    return took + time.perf_counter_ns() - start, values, sorted(failed.items())


async def _itself(value: Any) -> Any:
    import inspect

    return await value if inspect.isawaitable(value) else value


async def _gather(
    coroutines: list[Coroutine[Any, Any, Any]], keep_errors: bool
) -> tuple[list[Any], list[tuple[int, Exception]]]:
    """Runs coroutines at once; without `keep_errors` the first error ends the others."""
    import asyncio

    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        how = asyncio.ALL_COMPLETED if keep_errors else asyncio.FIRST_EXCEPTION
        await asyncio.wait(tasks, return_when=how)
    finally:
        late = [task for task in tasks if not task.done()]
        for task in late:
            task.cancel()
    if late:
        await asyncio.wait(late)
    values: list[Any] = []
    errors: list[tuple[int, Exception]] = []
    for place, task in enumerate(tasks):
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        values.append(None if error is not None else task.result())
        if error is not None and (task not in late or keep_errors):
            errors.append((place, local_exception(error, _core.me())))
    return values, errors


class Dumped:
    """A value that is pickled already, which the executor sends as it is."""

    __slots__ = ("parts",)

    def __init__(self, parts: _serialize.Dumped) -> None:
        self.parts = parts


async def _dump_later(result: Coroutine[Any, Any, Result]) -> Dumped:
    return _dump(await result)


def _dump(result: Result) -> Dumped:
    """Pickles a result; a value that cannot be pickled is the error of its element alone."""
    took, values, errors = result
    if not errors and _plain.all_atoms(values):
        return Dumped((pickle.dumps(result, 5), [], []))
    if len(values) <= FEW:
        values = [_serialize.outer(value) for value in values]
    try:
        return Dumped(_serialize.dumps((took, values, errors), root="result"))
    except Exception:
        failed = dict(errors)
        for place, value in enumerate(values):
            try:
                _serialize.dumps(value, root="result")
            except Exception as error:
                values[place] = None
                failed[place] = local_exception(error, _core.me())
        return Dumped(_serialize.dumps((took, values, sorted(failed.items())), root="result"))
