"""joblib with its default backend, loky, which puts large arrays into files that workers map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benches.systems.base import Function, System, chunk_of
from benches.work import item_of, nothing


class Joblib(System):
    name = "joblib"
    needs = ("joblib",)

    def open(self) -> None:
        from joblib import Parallel, delayed

        self.delayed = delayed
        self.parallel = Parallel(n_jobs=self.workers)
        self.parallel.__enter__()

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        self.parallel.__exit__(None, None, None)
        get_reusable_executor().shutdown(wait=True, kill_workers=True)

    def call(self, function: Function, *args: Any) -> Any:
        return self.results([self.start(function, *args)])[0]

    def start(self, function: Function, *args: Any) -> Any:
        return self.delayed(function)(*args)

    def results(self, started: list[Any]) -> list[Any]:
        return self.parallel(started)

    def map(self, function: Function, items: Sequence[Any], chunks: int | None) -> list[Any]:
        self.parallel.batch_size = chunk_of(items, chunks)
        return self.parallel(self.delayed(function)(item) for item in items)

    def map_closure(self, data: Any, indices: Sequence[int]) -> list[Any]:
        return self.parallel(self.delayed(item_of)(data, index) for index in indices)

    def broadcast(self, data: Any) -> None:
        self.call_each(nothing, data)
