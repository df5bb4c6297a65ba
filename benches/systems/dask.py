"""dask.distributed with a cluster of processes on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benches.systems.base import Function, System, chunk_of
from benches.work import item_of


class Dask(System):
    name = "Dask"
    needs = ("distributed",)

    def open(self) -> None:
        from distributed import Client, LocalCluster

        self.cluster = LocalCluster(
            n_workers=self.workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        self.client = Client(self.cluster)
        self.client.wait_for_workers(self.workers)
        self.addresses = list(self.client.scheduler_info(n_workers=-1)["workers"])
        self.turn = 0

    def close(self) -> None:
        self.client.close()
        self.cluster.close()

    def call(self, function: Function, *args: Any) -> Any:
        return self.client.submit(function, *args, pure=False).result()

    def start(self, function: Function, *args: Any) -> Any:
        self.turn = (self.turn + 1) % self.workers
        return self.client.submit(function, *args, pure=False, workers=[self.addresses[self.turn]])

    def results(self, started: list[Any]) -> list[Any]:
        return self.client.gather(started)

    def map(self, function: Function, items: Sequence[Any], chunks: int | None) -> list[Any]:
        size = chunk_of(items, chunks)
        return self.client.gather(self.client.map(function, items, pure=False, batch_size=size))

    def map_closure(self, data: Any, indices: Sequence[int]) -> list[Any]:
        shared = self.client.scatter(data, broadcast=True, hash=False)
        return self.client.gather([self.client.submit(item_of, shared, i, pure=False) for i in indices])

    def broadcast(self, data: Any) -> None:
        self.client.scatter(data, broadcast=True, hash=False)
