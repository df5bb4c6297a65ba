"""What a row of the benchmark table is made of."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import repeat
from time import perf_counter
from typing import Literal


@dataclass(frozen=True)
class Scale:
    """How much one measured operation does."""

    calls: int
    items: int
    array_bytes: int


FULL = Scale(calls=20_000, items=100_000, array_bytes=100_000_000)
QUICK = Scale(calls=2_000, items=5_000, array_bytes=20_000_000)


@dataclass(frozen=True)
class Operation:
    """What is measured, and what has to happen unmeasured after each time."""

    once: Callable[[], object]
    after: Callable[[], object] | None = None


@dataclass(frozen=True)
class Contestant:
    """One way to do what a row measures; `open` is ready to be measured once it is entered."""

    name: str
    role: Literal["pydist", "peer", "floor"]
    open: Callable[[Scale], AbstractContextManager[Operation]]

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Row:
    """One line of the table: the same work done by several contestants."""

    name: str
    title: Callable[[Scale], str]
    contestants: tuple[Contestant, ...]
    samples: int
    loops: int = 1

    def measure(self, contestant: Contestant, scale: Scale) -> list[float]:
        """Return the seconds of one operation, sampled after one warm-up."""
        with contestant.open(scale) as operation:
            return [self._sample(operation) for _ in range(self.samples + 1)][1:]

    def _sample(self, operation: Operation) -> float:
        begin = perf_counter()
        for _ in repeat(None, self.loops):
            operation.once()
        seconds = (perf_counter() - begin) / self.loops
        if operation.after is not None:
            operation.after()
        return seconds
