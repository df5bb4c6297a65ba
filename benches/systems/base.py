"""What the rows ask of a system. One that has no way to do a thing leaves that method out."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from benches.work import meet

Function = Callable[..., Any]


class System(ABC):
    """Workers that run functions, started on entry and ended on exit."""

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    environment: ClassVar[Mapping[str, str]] = {}

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers

    @abstractmethod
    def open(self) -> None:
        """Start the workers."""

    @abstractmethod
    def close(self) -> None:
        """End them and wait for that."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def call(self, function: Function, *args: Any) -> Any:
        """Run a function on some worker and return its value."""

    @abstractmethod
    def start(self, function: Function, *args: Any) -> Any:
        """Start a call, and return what `results` takes."""

    @abstractmethod
    def results(self, started: list[Any]) -> list[Any]:
        """Wait for calls, and return their values."""

    def each_answers(self) -> None:
        """Return once every worker has run a call, as far as the system lets one know."""
        self.results([self.start(meet) for _ in range(self.workers)])

    def call_each(self, function: Function, *args: Any) -> list[Any]:
        """Run a function as often as there are workers."""
        return self.results([self.start(function, *args) for _ in range(self.workers)])

    def worker_processes(self) -> set[int]:
        """Return the system's ids of the workers."""
        found: set[int] = set()
        for _ in range(20):
            found.update(self.call_each(meet))
            if len(found) == self.workers:
                return found
        raise RuntimeError(f"{len(found)} of {self.workers} workers have answered")


def chunk_of(items: Sequence[Any], chunks: int | None) -> int:
    """Return the size of chunks, so that there are `chunks` of them; None: one item in each."""
    return 1 if chunks is None else max(1, len(items) // chunks)


async def gather(awaitables: Sequence[Any]) -> list[Any]:
    return await asyncio.gather(*awaitables)
