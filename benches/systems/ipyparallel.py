"""ipyparallel with engines on this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from benches.systems.base import Function, System, chunk_of
from benches.work import item_of


class IPyParallel(System):
    name = "ipyparallel"
    needs = ("ipyparallel",)

    def open(self) -> None:
        import ipyparallel

        self.cluster = ipyparallel.Cluster(n=self.workers, log_level=logging.ERROR)
        self.client = self.cluster.start_and_connect_sync(activate=False)
        self.views = [self.client[index] for index in self.client.ids]
        self.all = self.client[:]
        self.balanced = self.client.load_balanced_view()
        self.turn = 0

    def close(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()

    def call(self, function: Function, *args: Any) -> Any:
        return self.views[0].apply_sync(function, *args)

    def start(self, function: Function, *args: Any) -> Any:
        self.turn = (self.turn + 1) % self.workers
        return self.views[self.turn].apply_async(function, *args)

    def results(self, started: list[Any]) -> list[Any]:
        return [result.get() for result in started]

    def map(self, function: Function, items: Sequence[Any], chunks: int | None) -> list[Any]:
        result = self.balanced.map_async(function, items, chunksize=chunk_of(items, chunks))
        return list(result.get())

    def map_closure(self, data: Any, indices: Sequence[int]) -> list[Any]:
        self.all.push({"_closure_data": data}, block=True)
        import ipyparallel

        shared = ipyparallel.Reference("_closure_data")
        return self.results([self.start(item_of, shared, index) for index in indices])

    def broadcast(self, data: Any) -> None:
        self.all.push({"_data": data}, block=True)
