"""How costs grow with the number of workers, calls and references."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import psutil

import pydist
from benches.model import Operation, Reading, Row, Scale, Work
from benches.parked import park, unpark
from benches.rows.common import points
from benches.systems import Pydist
from benches.work import nothing

ROOT = Path(__file__).parents[2]
SLEEP = 0.01
SLEEPS = 50


@contextmanager
def outstanding(scale: Scale, number: int) -> Iterator[Operation]:
    """Round trips beside so many calls that wait on the same worker."""
    with pydist.cluster(1) as (worker,):
        waiting = [pydist.remotecall(park, worker) for _ in range(number)]
        pydist.remotecall_fetch(nothing, worker)
        yield Operation(lambda: pydist.remotecall_fetch(nothing, worker))
        pydist.remotecall_fetch(unpark, worker)
        for future in waiting:
            future.fetch()


@contextmanager
def connected(scale: Scale, number: int) -> Iterator[Operation]:
    """Round trips to one worker after the other."""
    with Pydist(number, topology="master_worker") as cluster:
        turns = cycle(cluster.ids)
        for _ in range(number):
            pydist.remotecall_fetch(nothing, next(turns))
        yield Operation(lambda: pydist.remotecall_fetch(nothing, next(turns)))


@contextmanager
def references(scale: Scale, number: int) -> Iterator[Operation]:
    """Round trips while so many futures of a worker are held here, whose values are not here."""
    with pydist.cluster(1) as (worker,):
        held = [pydist.Future(worker) for _ in range(number)]
        pydist.remotecall_fetch(nothing, worker)
        yield Operation(lambda: pydist.remotecall_fetch(nothing, worker))
        held.clear()


@contextmanager
def map_scaling(scale: Scale, number: int) -> Iterator[Operation]:
    """A map of calls that sleep, as many for each worker whatever their number: the ideal is flat."""
    sleeps = [SLEEP] * (SLEEPS * number if scale.name == "full" else 2 * number)
    with Pydist(number, topology="master_worker") as cluster:
        cluster.call_each(nothing)
        yield Operation(lambda: pydist.pmap(time.sleep, sleeps))


@contextmanager
def routing(scale: Scale, number: int) -> Iterator[Work]:
    """No-op calls to one worker after the other, then all results."""
    with Pydist(number, topology="master_worker") as cluster:
        cluster.call_each(nothing)
        yield Work(lambda count: cluster.results([cluster.start(nothing) for _ in range(count)]), scale.calls)


@contextmanager
def head(scale: Scale, number: int, read: Callable[[psutil.Process], float]) -> Iterator[Reading]:
    """Read something off process 1 once every worker has answered a call."""
    with Pydist(number, topology="master_worker") as cluster:
        cluster.call_each(nothing)
        yield Reading(lambda: read(psutil.Process()))


@contextmanager
def hub(scale: Scale, number: int) -> Iterator[Reading]:
    """Read off the cost of a message in the core of process 1 with simulated peers, without Python."""
    command = ["cargo", "run", "--release", "--quiet", "-p", "pydist-node", "--example", "hub", "--"]
    command += [str(number), str(scale.calls)]

    def take() -> float:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return float(json.loads(done.stdout)["seconds_per_message"])

    yield Reading(take)


def head_open(read: Callable[[psutil.Process], float]) -> Callable[[Scale, int], object]:
    return lambda scale, number: head(scale, number, read)


MANY_WORKERS = (2, 4, 16, 64, 128)

ROWS = (
    Row(
        name="outstanding",
        title=lambda scale: "round trip with calls outstanding",
        contestants=points(outstanding, (10, 100, 1_000, 10_000, 100_000)),
        samples=1,
        quantile=0.5,
        curve=True,
    ),
    Row(
        name="connected",
        title=lambda scale: "round trip with workers connected",
        contestants=points(connected, (2, 4, 16, 64, 200)),
        samples=1,
        quantile=0.5,
        curve=True,
    ),
    Row(
        name="references",
        title=lambda scale: "round trip with references held",
        contestants=points(references, (10, 100, 1_000, 10_000, 100_000, 1_000_000)),
        samples=1,
        quantile=0.5,
        curve=True,
    ),
    Row(
        name="map_scaling",
        title=lambda scale: "map with as much work for each of the workers",
        contestants=points(map_scaling, (1, 2, 4, 8, 16, 32, 64)),
        samples=2,
        curve=True,
    ),
    Row(
        name="routing",
        title=lambda scale: "no-op call, one of many, over the workers",
        contestants=points(routing, (1, 2, 4, 8, 16, 32, 64)),
        samples=3,
        curve=True,
    ),
    Row(
        name="hub",
        title=lambda scale: "message of a hub with simulated peers, no Python",
        contestants=points(hub, (10, 100, 1_000, 10_000), "program:cargo"),
        samples=1,
        curve=True,
    ),
    Row(
        name="head_memory",
        title=lambda scale: "memory of process 1 with workers (USS)",
        contestants=points(head_open(lambda me: me.memory_full_info().uss), MANY_WORKERS),
        unit="B",
        samples=1,
        curve=True,
    ),
    Row(
        name="head_descriptors",
        title=lambda scale: "file descriptors of process 1 with workers",
        contestants=points(head_open(lambda me: me.num_fds()), MANY_WORKERS),
        unit="count",
        samples=1,
        curve=True,
    ),
    Row(
        name="head_threads",
        title=lambda scale: "threads of process 1 with workers",
        contestants=points(head_open(lambda me: me.num_threads()), MANY_WORKERS),
        unit="count",
        samples=1,
        curve=True,
    ),
)
