"""Large arrays to workers and back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pydist
from benches import limits
from benches.limits import limit
from benches.model import Operation, Row, Scale
from benches.rows.common import compete, megabytes, ours
from benches.systems import PEERS, Pydist, System
from benches.work import length, make_array, same

SYSTEMS_OF_ROWS = (Pydist, *PEERS)
MANY = 4


@contextmanager
def array(scale: Scale, system: type[System], function: Callable[[Any], object]) -> Iterator[Operation]:
    data = make_array(scale.array_bytes)
    with system() as cluster:
        cluster.each_answers()
        cluster.call(length, data[:1])
        yield Operation(lambda: cluster.call(function, data))


@contextmanager
def broadcast(scale: Scale, system: type[System]) -> Iterator[Operation]:
    data = make_array(scale.array_bytes)
    with system(MANY) as cluster:
        cluster.each_answers()
        yield Operation(lambda: cluster.broadcast(data))


@contextmanager
def everywhere(scale: Scale) -> Iterator[Operation]:
    data = make_array(scale.array_bytes)
    with pydist.cluster(MANY) as workers:
        yield Operation(lambda: pydist.everywhere("len(data)", workers, data=data))


def size(scale: Scale) -> int:
    return scale.array_bytes


def socket_limit(back: bool) -> Any:
    return limit("bare socket", limits.socket_body, size=size, back=back)


ROWS = (
    Row(
        name="array_first",
        title=lambda scale: f"{megabytes(size(scale))} array to a worker, the first time",
        contestants=(
            *compete(array, SYSTEMS_OF_ROWS, function=length),
            limit("memcpy", limits.memory_copy, copies=1),
            limit("memcpy to new pages", limits.memory_copy, copies=1, warm=False),
        ),
        samples=1,
        warm=False,
        amount=size,
        per="B",
    ),
    Row(
        name="array_there",
        title=lambda scale: f"{megabytes(size(scale))} array to a worker, again and again",
        contestants=(
            *compete(array, SYSTEMS_OF_ROWS, function=length),
            limit("memcpy", limits.memory_copy, copies=1),
            socket_limit(False),
        ),
        amount=size,
        per="B",
    ),
    Row(
        name="array_back",
        title=lambda scale: f"{megabytes(size(scale))} array there and back",
        contestants=(
            *compete(array, SYSTEMS_OF_ROWS, function=same),
            limit("memcpy", limits.memory_copy, copies=2),
            socket_limit(True),
        ),
        amount=size,
        per="B",
    ),
    Row(
        name="broadcast",
        title=lambda scale: f"{megabytes(size(scale))} array to {MANY} workers",
        contestants=(
            *compete(broadcast, SYSTEMS_OF_ROWS),
            limit("memcpy", limits.memory_copy, copies=1),
        ),
        amount=size,
        per="B",
    ),
    Row(
        name="everywhere",
        title=lambda scale: f"`everywhere` with a {megabytes(size(scale))} array on {MANY} workers",
        contestants=(ours(everywhere), limit("memcpy", limits.memory_copy, copies=1)),
        amount=size,
        per="B",
    ),
)
