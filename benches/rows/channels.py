"""Channels and queues: small items from process to process."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pydist
from benches.model import Contestant, Row, Scale, Work
from benches.queues import manager_queue, plain_queue, put_many, servers, take_many
from benches.rows.common import ours
from benches.systems.dask import Dask
from benches.systems.ray import RayTasks

CAPACITY = 1000
ENDS = 8
MakeQueue = Callable[[int], AbstractContextManager[Any]]


def ends(scale: Scale) -> int:
    return min(ENDS, scale.crowd // 2)


@contextmanager
def channel(scale: Scale, capacity: int) -> Iterator[Work]:
    """A worker puts, process 1 takes from the channel that it owns."""

    def run(count: int) -> None:
        putting = pydist.remotecall(put_many, worker, queue, count)
        take_many(queue, count)
        putting.fetch()

    with pydist.cluster(1) as (worker,):
        queue = pydist.RemoteChannel(lambda: pydist.Channel(capacity))
        yield Work(run, scale.channel_items)


@contextmanager
def all_to_all(scale: Scale) -> Iterator[Work]:
    """As many workers put as take, all at one channel of process 1."""
    each = ends(scale)

    def run(count: int) -> None:
        share = -(-count // each)
        started = [pydist.remotecall(put_many, worker, queue, share) for worker in workers[:each]]
        started += [pydist.remotecall(take_many, worker, queue, share) for worker in workers[each:]]
        for future in started:
            future.fetch()

    with pydist.cluster(2 * each) as workers:
        queue = pydist.RemoteChannel(lambda: pydist.Channel(CAPACITY))
        yield Work(run, scale.channel_items)


@contextmanager
def from_process(scale: Scale, make: MakeQueue, capacity: int) -> Iterator[Work]:
    """Another process puts, this one gets."""

    def run(count: int) -> None:
        serving.order(count)
        for _ in range(count):
            queue.get()
        serving.wait()

    with make(capacity) as queue, servers(queue, 1, 0) as serving:
        yield Work(run, scale.channel_items)


@contextmanager
def among_processes(scale: Scale, make: MakeQueue) -> Iterator[Work]:
    each = ends(scale)

    def run(count: int) -> None:
        serving.order(-(-count // each))
        serving.wait()

    with make(CAPACITY) as queue, servers(queue, each, each) as serving:
        yield Work(run, scale.channel_items)


@contextmanager
def dask_queue(scale: Scale, capacity: int) -> Iterator[Work]:
    """A worker puts into a queue of the scheduler, this process gets."""
    with Dask(1) as cluster:
        from distributed import Queue

        def run(count: int) -> None:
            putting = cluster.start(put_many, queue, count)
            for _ in range(count):
                queue.get()
            putting.result()

        queue = Queue(maxsize=capacity)
        yield Work(run, scale.channel_items)


@contextmanager
def ray_queue(scale: Scale, capacity: int) -> Iterator[Work]:
    """A task puts into a queue, which is an actor; this process gets."""
    with RayTasks(2) as cluster:
        from ray.util.queue import Queue

        def run(count: int) -> None:
            putting = cluster.start(put_many, queue, count)
            for _ in range(count):
                queue.get()
            cluster.results([putting])

        queue = Queue(maxsize=capacity)
        yield Work(run, scale.channel_items)


def peers(capacity: int) -> tuple[Contestant, ...]:
    return (
        peer("multiprocessing.Queue", from_process, make=plain_queue, capacity=capacity),
        peer("Manager().Queue", from_process, make=manager_queue, capacity=capacity),
        Contestant("Dask Queue", "peer", partial(dask_queue, capacity=capacity), Dask.needs),
        Contestant(
            "Ray Queue", "peer", partial(ray_queue, capacity=capacity), RayTasks.needs, RayTasks.environment
        ),
    )


def peer(name: str, open_: Callable[..., AbstractContextManager[Work]], **options: Any) -> Contestant:
    return Contestant(name, "peer", partial(open_, **options))


ROWS = (
    Row(
        name="channel",
        title=lambda scale: f"channel of capacity {CAPACITY:,}, small items",
        contestants=(ours(channel, capacity=CAPACITY), *peers(CAPACITY)),
        samples=3,
        per="items",
    ),
    Row(
        name="channel_unbuffered",
        title=lambda scale: "unbuffered channel (peers: capacity 1)",
        contestants=(ours(channel, capacity=0), *peers(1)),
        samples=3,
        per="items",
    ),
    Row(
        name="channel_many",
        title=lambda scale: f"one channel, {ends(scale)} producers and {ends(scale)} consumers",
        contestants=(
            ours(all_to_all),
            peer("multiprocessing.Queue", among_processes, make=plain_queue),
            peer("Manager().Queue", among_processes, make=manager_queue),
        ),
        samples=3,
        per="items",
    ),
)
