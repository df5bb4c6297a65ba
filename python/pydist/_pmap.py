"""`pmap` and `pgenerate`: a function over many elements, on all workers."""

from __future__ import annotations

import inspect
import os
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from typing import Any

from . import _block, _calls, _core, _session
from ._abstract_pool import AbstractWorkerPool
from ._elements import Elements
from ._functions import SentFunction
from ._map_run import WAKE, OnError, Plan, Run
from ._pools import CachingPool
from ._progress import Progress
from ._retries import Retries, RetryCheck
from ._team import Team, Threads

THREADS_MAX = 32
"""The threads of a map that is not distributed, at most."""


def pmap(
    f: Callable[..., Any],
    /,
    *iterables: Any,
    pool: AbstractWorkerPool | Iterable[int] | None = None,
    distributed: bool = True,
    batch_size: int | str = "auto",
    on_error: OnError | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: RetryCheck | None = None,
    respawn: bool = False,
    progress: Any = False,
) -> list[Any]:
    """Calls a function on every element, on the workers, and returns the values in order.

    `f` goes once to each worker, with what it captures. Of an `async def` function many elements of a worker
    run at once; with an int for `batch_size` those of a batch.

    Parameters:
        f: any callable, of as many parameters as there are iterables.
        iterables: the elements; the shortest ends it, and none is read far ahead of need. A pool may come
            first.
        pool: a pool, or the ids of the workers to use; the default pool if none is given. Workers that come
            to it meanwhile are used too.
        distributed: False runs the calls in threads of this process.
        batch_size: elements in one message; "auto" grows it only while calls are short.
        on_error: is given the error of an element as `fetch` would raise it, after all retries, and returns
            a value for it.
        retry_delays: seconds before each retry of an element, such as `ExponentialBackOff(3)`. Elements of
            a worker that dies run elsewhere; one that has killed three workers is given up.
        retry_check: is given a state, None at first, and the error; returns whether to try the element
            again, or its new state and that.
        respawn: start another worker for each that dies; on process 1.
        progress: True for a bar of tqdm; or a bar like that, or what makes one of the keyword `total`.

    Returns:
        The list of values.

    Raises:
        RemoteException: the first error of a call, unless `on_error` is given; nothing more is started then.
        ProcessExitedException: a worker has gone with elements that it was working on.
        NoWorkersError: the pool is empty, or every worker of it has gone.
        pickle.PicklingError: `f` or an element cannot be pickled; the message names it.
        TypeError: no iterable, or a wrong parameter.

    Distributed.jl: `pmap`.

    >>> import pydist as d
    >>> d.pmap(pow, [2, 3, 4], [2, 2, 2])
    [4, 9, 16]
    >>> d.pmap(lambda x: 1 / x, [1, 0, 2], on_error=lambda error: None)
    [1.0, None, 0.5]
    """
    options = (distributed, batch_size, on_error, retry_delays, retry_check, respawn, progress)
    start = _prepare("pmap", f, iterables, pool, False, *options)
    run, function, owned = start()
    interrupt = True
    try:
        values = run.all_values()
        interrupt = False
        return values
    except Exception:
        interrupt = False
        raise
    finally:
        run.close(interrupt)
        if owned:
            function.forget()


def pgenerate(
    f: Callable[..., Any],
    /,
    *iterables: Any,
    pool: AbstractWorkerPool | Iterable[int] | None = None,
    distributed: bool = True,
    batch_size: int | str = "auto",
    on_error: OnError | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: RetryCheck | None = None,
    respawn: bool = False,
    progress: Any = False,
) -> Values:
    """Calls a function on every element, on the workers, and yields the values in order as they come.

    It starts when the first value is asked for, and has a bounded number of elements under way, so that the
    iterables may be endless. An error is raised after the values before it. When the iterator is closed or
    dropped, what runs is interrupted. `async for` does not block the loop: the iterables are read on other
    threads then.

    Parameters:
        f: as for `pmap`, and so are the others.

    Returns:
        An iterator, with `close()`, for `async for` too.

    Raises:
        What `pmap` raises; for wrong parameters at once.

    Distributed.jl: `pgenerate`.

    >>> import itertools, pydist as d
    >>> squares = d.pgenerate(lambda x: x * x, itertools.count())
    >>> [next(squares) for _ in range(5)]
    [0, 1, 4, 9, 16]
    >>> squares.close()
    """
    options = (distributed, batch_size, on_error, retry_delays, retry_check, respawn, progress)
    return Values(_prepare("pgenerate", f, iterables, pool, True, *options))


_Start = Callable[[], tuple[Run, SentFunction, bool]]


class Values(Iterator[Any]):
    """The values of a map, as they come: by `for` and `next`, or by `async for`."""

    def __init__(self, start: _Start) -> None:
        self._start = start
        self._values = _generate(start)
        self._later: AsyncGenerator[Any, None] | None = None

    def __next__(self) -> Any:
        return next(self._values)

    def close(self) -> None:
        """Ends the map; what runs is interrupted."""
        self._values.close()

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        if self._later is None:
            if inspect.getgeneratorstate(self._values) != inspect.GEN_CREATED:
                raise RuntimeError("these values are taken by `for` or `next` already, or closed")
            self._values.close()
            self._later = _generate_async(self._start)
        return self._later


async def _generate_async(start: _Start) -> AsyncGenerator[Any, None]:
    interrupt = True
    runs: list[Run] = []
    try:
        await _block.in_thread(lambda: runs.append(start()[0]))
        while (piece := await _block.in_thread(runs[0].next_piece, runs[0].stop)) is not None:
            for value in piece:
                yield value
        interrupt = False
    except Exception:
        interrupt = False
        raise
    finally:
        for run in runs:
            run.close(interrupt)


def _generate(start: _Start) -> Generator[Any, None, None]:
    run, _, _ = start()
    interrupt = True
    try:
        while (piece := run.next_piece()) is not None:
            yield from piece
        interrupt = False
    except Exception:
        interrupt = False
        raise
    finally:
        # The function is forgotten by its finalizer: this may be one itself.
        run.close(interrupt)


def _prepare(
    name: str,
    f: Callable[..., Any],
    iterables: tuple[Any, ...],
    pool: AbstractWorkerPool | Iterable[int] | None,
    in_order: bool,
    distributed: bool,
    batch_size: int | str,
    on_error: OnError | None,
    retry_delays: Iterable[float],
    retry_check: RetryCheck | None,
    respawn: bool,
    progress: Any,
) -> _Start:
    """Checks the parameters of a map; returns what starts it."""
    _calls._check_callable(f)
    if iterables and isinstance(iterables[0], AbstractWorkerPool):
        if pool is not None:
            raise TypeError(f"{name}() was given two pools")
        pool, iterables = iterables[0], iterables[1:]
    if not iterables:
        raise TypeError(f"{name}() needs at least one iterable")
    size = _size(batch_size)
    if on_error is not None and not callable(on_error):
        raise TypeError(f"on_error must be callable, not {type(on_error).__name__}")
    retries = Retries(retry_delays, retry_check)
    elements = Elements(iterables)

    def start() -> tuple[Run, SentFunction, bool]:
        _session.ensure_started()
        queue = _core.Queue()
        team: Team | Threads
        if distributed:
            team = Team(pool, respawn, queue, WAKE)
        else:
            team = Threads(min(THREADS_MAX, (os.cpu_count() or 1) + 4))
        bar = Progress(progress, elements.total, f)
        owned = not isinstance(pool, CachingPool)
        function = pool._sent(f) if isinstance(pool, CachingPool) else SentFunction(f)
        plan = Plan(function, elements, size, on_error, retries, bar, in_order)
        return Run(plan, team, queue), function, owned

    return start


def _size(batch_size: int | str) -> int | None:
    if isinstance(batch_size, str) and batch_size == "auto":
        return None
    if isinstance(batch_size, bool) or not isinstance(batch_size, int):
        raise TypeError(f'batch_size must be an int or "auto", not {batch_size!r}')
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    return batch_size
