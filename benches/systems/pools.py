"""`multiprocessing.Pool`."""

from collections.abc import Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from typing import Any, ClassVar

from benches.systems.base import Function, System, chunk_of
from benches.work import item_of, nothing

LAZY_CHUNK = 1000


class SpawnPool(System):
    name = "Pool (spawn)"
    method: ClassVar[str] = "spawn"
    pool: Pool

    def open(self) -> None:
        self.pool = get_context(self.method).Pool(self.workers)

    def close(self) -> None:
        self.pool.terminate()
        self.pool.join()

    def call(self, function: Function, *args: Any) -> Any:
        return self.pool.apply(function, args)

    def start(self, function: Function, *args: Any) -> Any:
        return self.pool.apply_async(function, args)

    def results(self, started: list[Any]) -> list[Any]:
        return [result.get() for result in started]

    def fire(self, function: Function, count: int) -> None:
        self.results([self.start(function) for _ in range(count)])

    def map(self, function: Function, items: Sequence[Any], chunks: int | None) -> list[Any]:
        return self.pool.map(function, items, chunksize=chunk_of(items, chunks))

    def map_closure(self, data: Any, indices: Sequence[int]) -> list[Any]:
        return self.pool.map(partial(item_of, data), indices)

    def count_lazily(self, function: Function, items: int) -> int:
        return sum(1 for _ in self.pool.imap(function, range(items), chunksize=LAZY_CHUNK))

    def broadcast(self, data: Any) -> None:
        self.call_each(nothing, data)


class ForkPool(SpawnPool):
    name = "Pool (fork)"
    method = "fork"
