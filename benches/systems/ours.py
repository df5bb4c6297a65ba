"""pydist."""

from collections.abc import Sequence
from typing import Any

import pydist
from benches.systems.base import Function, System, gather
from benches.work import item_of, nothing


class Pydist(System):
    name = "pydist"

    def __init__(self, workers: int = 2, topology: str = "all_to_all") -> None:
        super().__init__(workers)
        self.topology = topology
        self.ids: list[int] = []
        self.turn = 0

    def open(self) -> None:
        self.ids = pydist.addprocs(self.workers, topology=self.topology)

    def close(self) -> None:
        pydist.rmprocs(self.ids)

    def call(self, function: Function, *args: Any) -> Any:
        return pydist.remotecall_fetch(function, self.ids[0], *args)

    def start(self, function: Function, *args: Any) -> Any:
        self.turn = (self.turn + 1) % self.workers
        return pydist.remotecall(function, self.ids[self.turn], *args)

    def results(self, started: list[Any]) -> list[Any]:
        return [future.fetch() for future in started]

    def fire(self, function: Function, count: int) -> None:
        """Make calls without results, and wait until they have run."""
        worker = self.ids[0]
        for _ in range(count):
            pydist.remote_do(function, worker)
        pydist.remotecall_fetch(nothing, worker)

    def map(self, function: Function, items: Sequence[Any], chunks: int | None) -> list[Any]:
        """Map one by one, or without any tuning: pydist chooses its batches."""
        return pydist.pmap(function, items, batch_size=1 if chunks is None else "auto")

    def map_closure(self, data: Any, indices: Sequence[int]) -> list[Any]:
        return pydist.pmap(lambda index: item_of(data, index), indices)

    def count_lazily(self, function: Function, items: int) -> int:
        return sum(1 for _ in pydist.pgenerate(function, range(items)))

    def broadcast(self, data: Any) -> None:
        self.call_each(nothing, data)

    async def await_all(self, function: Function, count: int) -> list[Any]:
        return await gather([self.start(function) for _ in range(count)])
