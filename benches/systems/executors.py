"""Systems with the interface of `concurrent.futures`."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

from benches.systems.base import Function, System, chunk_of, gather
from benches.work import item_of, nothing


class ExecutorSystem(System):
    executor: Executor

    @abstractmethod
    def make(self) -> Executor:
        """Make the executor."""

    def open(self) -> None:
        self.executor = self.make()

    def close(self) -> None:
        self.executor.shutdown()

    def call(self, function: Function, *args: Any) -> Any:
        return self.executor.submit(function, *args).result()

    def start(self, function: Function, *args: Any) -> Any:
        return self.executor.submit(function, *args)

    def results(self, started: list[Any]) -> list[Any]:
        return [future.result() for future in started]

    def fire(self, function: Function, count: int) -> None:
        self.results([self.start(function) for _ in range(count)])

    def map(self, function: Function, items: Sequence[Any], chunks: int | None) -> list[Any]:
        return list(self.executor.map(function, items, chunksize=chunk_of(items, chunks)))

    def map_closure(self, data: Any, indices: Sequence[int]) -> list[Any]:
        function = partial(item_of, data)
        return list(self.executor.map(function, indices, chunksize=chunk_of(indices, 4 * self.workers)))

    def broadcast(self, data: Any) -> None:
        self.call_each(nothing, data)

    async def await_all(self, function: Function, count: int) -> list[Any]:
        return await gather([asyncio.wrap_future(self.start(function)) for _ in range(count)])


class ProcessPool(ExecutorSystem):
    name = "ProcessPoolExecutor"

    def make(self) -> Executor:
        return ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))


class Loky(ExecutorSystem):
    name = "loky"
    needs = ("joblib",)

    def make(self) -> Executor:
        from joblib.externals.loky import ProcessPoolExecutor as LokyExecutor

        return LokyExecutor(max_workers=self.workers)


class MpiPool(ExecutorSystem):
    name = "mpi4py"
    needs = ("mpi4py", "program:mpiexec")
    environment = {  # noqa: RUF012
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }

    def make(self) -> Executor:
        from mpi4py.futures import MPIPoolExecutor

        return MPIPoolExecutor(self.workers)
