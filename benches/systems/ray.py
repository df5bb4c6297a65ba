"""Ray on this machine: calls as tasks, and as methods of actors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from benches.systems.base import Function, System, chunk_of, gather
from benches.work import item_of, nothing


def run_chunk(function: Function, items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def chunks_of(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


class RayTasks(System):
    name = "Ray tasks"
    needs = ("ray",)
    environment = {  # noqa: RUF012
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }

    def open(self) -> None:
        import ray

        self.ray = ray
        ray.init(
            num_cpus=self.workers,
            include_dashboard=False,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        self.remotes: dict[Function, Any] = {}

    def close(self) -> None:
        self.ray.shutdown()

    def call(self, function: Function, *args: Any) -> Any:
        return self.ray.get(self.start(function, *args))

    def start(self, function: Function, *args: Any) -> Any:
        remote = self.remotes.get(function)
        if remote is None:
            remote = self.remotes[function] = self.ray.remote(function)
        return remote.remote(*args)

    def results(self, started: list[Any]) -> list[Any]:
        return self.ray.get(started)

    def fire(self, function: Function, count: int) -> None:
        self.results([self.start(function) for _ in range(count)])

    def map(self, function: Function, items: Sequence[Any], chunks: int | None) -> list[Any]:
        if chunks is None:
            return self.results([self.start(function, item) for item in items])
        parts = [self.start(run_chunk, function, part) for part in chunks_of(items, chunk_of(items, chunks))]
        return [value for part in self.results(parts) for value in part]

    def map_closure(self, data: Any, indices: Sequence[int]) -> list[Any]:
        shared = self.ray.put(data)
        return self.results([self.start(item_of, shared, index) for index in indices])

    def broadcast(self, data: Any) -> None:
        shared = self.ray.put(data)
        self.results([self.start(nothing, shared) for _ in range(self.workers)])

    async def await_all(self, function: Function, count: int) -> list[Any]:
        return await gather([self.start(function) for _ in range(count)])


class Runner:
    """An actor that runs any function."""

    def run(self, function: Function, *args: Any) -> Any:
        return function(*args)


class RayActors(RayTasks):
    name = "Ray actors"

    def open(self) -> None:
        super().open()
        runner = self.ray.remote(Runner)
        self.actors = [runner.remote() for _ in range(self.workers)]
        self.turn = 0

    def start(self, function: Function, *args: Any) -> Any:
        self.turn = (self.turn + 1) % self.workers
        return self.actors[self.turn].run.remote(function, *args)

    def call(self, function: Function, *args: Any) -> Any:
        return self.ray.get(self.actors[0].run.remote(function, *args))
