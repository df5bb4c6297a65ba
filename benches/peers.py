"""The standard library's process pools as contestants, each with two workers."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from typing import Any

import numpy as np

from benches.model import Contestant, Operation, Scale
from benches.work import add_one, length, make_array, nothing, same

MakePool = Callable[[], Pool]
MakeExecutor = Callable[[], ProcessPoolExecutor]
Open = Callable[..., AbstractContextManager[Operation]]


def make_pool(method: str) -> Pool:
    return get_context(method).Pool(2)


def make_executor(method: str) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(2, mp_context=get_context(method))


def peers(
    with_pool: Open,
    with_executor: Open,
    methods: tuple[str, ...] = ("spawn",),
    **options: Any,
) -> tuple[Contestant, ...]:
    """Return the peers of a row; the start method matters only where starting is what is measured."""
    return tuple(
        Contestant(f"{name} ({method})", "peer", partial(open_, make=partial(make, method), **options))
        for name, open_, make in (("Pool", with_pool, make_pool), ("Executor", with_executor, make_executor))
        for method in methods
    )


@contextmanager
def pool_roundtrip(scale: Scale, make: MakePool) -> Iterator[Operation]:
    with make() as pool:
        yield Operation(partial(pool.apply, nothing))


@contextmanager
def executor_roundtrip(scale: Scale, make: MakeExecutor) -> Iterator[Operation]:
    with make() as executor:
        yield Operation(lambda: executor.submit(nothing).result())


@contextmanager
def pool_calls(scale: Scale, make: MakePool) -> Iterator[Operation]:
    def once() -> None:
        for result in [pool.apply_async(nothing) for _ in range(scale.calls)]:
            result.get()

    with make() as pool:
        yield Operation(once)


@contextmanager
def executor_calls(scale: Scale, make: MakeExecutor) -> Iterator[Operation]:
    def once() -> None:
        for future in [executor.submit(nothing) for _ in range(scale.calls)]:
            future.result()

    with make() as executor:
        yield Operation(once)


@contextmanager
def pool_map(scale: Scale, make: MakePool, chunks: int | None) -> Iterator[Operation]:
    """Map in `chunks` chunks; None: one chunk for each item."""
    size = 1 if chunks is None else scale.items // chunks
    with make() as pool:
        yield Operation(lambda: pool.map(add_one, range(scale.items), chunksize=size))


@contextmanager
def executor_map(scale: Scale, make: MakeExecutor, chunks: int | None) -> Iterator[Operation]:
    """Map in `chunks` chunks; None: one chunk for each item."""
    size = 1 if chunks is None else scale.items // chunks
    with make() as executor:
        yield Operation(lambda: list(executor.map(add_one, range(scale.items), chunksize=size)))


@contextmanager
def pool_array(scale: Scale, make: MakePool, function: Callable[[np.ndarray], object]) -> Iterator[Operation]:
    data = make_array(scale.array_bytes)
    with make() as pool:
        yield Operation(lambda: pool.apply(function, (data,)))


@contextmanager
def executor_array(
    scale: Scale, make: MakeExecutor, function: Callable[[np.ndarray], object]
) -> Iterator[Operation]:
    data = make_array(scale.array_bytes)
    with make() as executor:
        yield Operation(lambda: executor.submit(function, data).result())


@contextmanager
def pool_start(scale: Scale, make: MakePool) -> Iterator[Operation]:
    started: list[Pool] = []

    def once() -> None:
        started.append(make())
        started[-1].map(add_one, range(2), chunksize=1)

    def after() -> None:
        pool = started.pop()
        pool.terminate()
        pool.join()

    yield Operation(once, after)


@contextmanager
def executor_start(scale: Scale, make: MakeExecutor) -> Iterator[Operation]:
    started: list[ProcessPoolExecutor] = []

    def once() -> None:
        started.append(make())
        for future in [started[-1].submit(nothing) for _ in range(2)]:
            future.result()

    yield Operation(once, after=lambda: started.pop().shutdown())


ROUNDTRIP = peers(pool_roundtrip, executor_roundtrip)
CALLS = peers(pool_calls, executor_calls)
MAP_SINGLE = peers(pool_map, executor_map, chunks=None)
MAP_CHUNKED = peers(pool_map, executor_map, chunks=8)
ARRAY_THERE = peers(pool_array, executor_array, function=length)
ARRAY_BACK = peers(pool_array, executor_array, function=same)
START = peers(pool_start, executor_start, methods=("fork", "spawn"))
