"""pydist as a contestant."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np

import pydist
from benches.model import Contestant, Operation, Scale
from benches.work import add_one, length, make_array, nothing, same


def contestant(open_: Callable[..., AbstractContextManager[Operation]], **options: Any) -> Contestant:
    return Contestant("pydist", "pydist", partial(open_, **options))


@contextmanager
def roundtrip(scale: Scale) -> Iterator[Operation]:
    with pydist.cluster(2) as (worker, _):
        yield Operation(partial(pydist.remotecall_fetch, nothing, worker))


@contextmanager
def calls(scale: Scale) -> Iterator[Operation]:
    with pydist.cluster(2) as workers:
        targets = [workers[i % 2] for i in range(scale.calls)]

        def once() -> None:
            for future in [pydist.remotecall(nothing, worker) for worker in targets]:
                future.fetch()

        yield Operation(once)


@contextmanager
def pmap(scale: Scale, batch_size: int | str) -> Iterator[Operation]:
    with pydist.cluster(2):
        yield Operation(lambda: pydist.pmap(add_one, range(scale.items), batch_size=batch_size))


@contextmanager
def array(scale: Scale, function: Callable[[np.ndarray], object]) -> Iterator[Operation]:
    data = make_array(scale.array_bytes)
    with pydist.cluster(2) as (worker, _):
        yield Operation(lambda: pydist.remotecall_fetch(function, worker, data))


@contextmanager
def start(scale: Scale) -> Iterator[Operation]:
    def once() -> None:
        for worker in pydist.addprocs(2):
            pydist.remotecall_fetch(nothing, worker)

    yield Operation(once, after=lambda: pydist.rmprocs(pydist.workers()))


ROUNDTRIP = contestant(roundtrip)
CALLS = contestant(calls)
PMAP_SINGLE = contestant(pmap, batch_size=1)
PMAP_AUTO = contestant(pmap, batch_size="auto")
ARRAY_THERE = contestant(array, function=length)
ARRAY_BACK = contestant(array, function=same)
START = contestant(start)
