"""Processes that fill and empty queues of `multiprocessing`, and what pydist's workers run for the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pydist

SPAWN = get_context("spawn")


def put_many(channel: pydist.RemoteChannel, count: int) -> None:
    for index in range(count):
        channel.put(index)


def take_many(channel: pydist.RemoteChannel, count: int) -> None:
    for _ in range(count):
        channel.take()


def serve(queue: Any, orders: Any, done: Any, fills: bool) -> None:
    """Fill or empty a queue as often as is ordered, until None is."""
    for count in iter(orders.get, None):
        if fills:
            for index in range(count):
                queue.put(index)
        else:
            for _ in range(count):
                queue.get()
        done.put(None)


class Servers:
    """Processes that fill a queue, and some that empty it."""

    def __init__(self, queue: Any, fillers: int, emptiers: int) -> None:
        self.orders = [SPAWN.SimpleQueue() for _ in range(fillers + emptiers)]
        self.done = SPAWN.SimpleQueue()
        self.processes = [
            SPAWN.Process(target=serve, args=(queue, orders, self.done, index < fillers))
            for index, orders in enumerate(self.orders)
        ]
        for process in self.processes:
            process.start()

    def order(self, count: int) -> None:
        for orders in self.orders:
            orders.put(count)

    def wait(self) -> None:
        for _ in self.orders:
            self.done.get()

    def close(self) -> None:
        for orders in self.orders:
            orders.put(None)
        for process in self.processes:
            process.join()


@contextmanager
def servers(queue: Any, fillers: int, emptiers: int) -> Iterator[Servers]:
    """Yield the processes once each of them runs."""
    serving = Servers(queue, fillers, emptiers)
    try:
        serving.order(0)
        serving.wait()
        yield serving
    finally:
        serving.close()


@contextmanager
def plain_queue(capacity: int) -> Iterator[Any]:
    yield SPAWN.Queue(capacity)


@contextmanager
def manager_queue(capacity: int) -> Iterator[Any]:
    with SPAWN.Manager() as manager:
        yield manager.Queue(capacity)
