"""What a row of the benchmark table is made of."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["pydist", "peer", "limit"]


@dataclass(frozen=True)
class Scale:
    """How much one measured operation does, and for how many seconds it is repeated at most."""

    name: str
    calls: int
    items: int
    array_bytes: int
    closure_bytes: int
    lazy_items: int
    sleepers: int
    channel_items: int
    crowd: int
    star: int
    idle_seconds: float
    budget: float
    points: Callable[[tuple[int, ...]], tuple[int, ...]] = field(default=lambda points: points)


FULL = Scale(
    name="full",
    calls=20_000,
    items=100_000,
    array_bytes=100_000_000,
    closure_bytes=50_000_000,
    lazy_items=1_000_000,
    sleepers=2_000,
    channel_items=20_000,
    crowd=64,
    star=128,
    idle_seconds=5.0,
    budget=4.0,
)
QUICK = Scale(
    name="quick",
    calls=1_000,
    items=2_000,
    array_bytes=8_000_000,
    closure_bytes=2_000_000,
    lazy_items=20_000,
    sleepers=60,
    channel_items=400,
    crowd=4,
    star=4,
    idle_seconds=0.3,
    budget=0.05,
    points=lambda points: points[:2],
)
SCALES = {scale.name: scale for scale in (FULL, QUICK)}


@dataclass(frozen=True)
class Operation:
    """What is timed, again and again, and what has to happen untimed after each time."""

    once: Callable[[], object]
    after: Callable[[], object] | None = None


@dataclass(frozen=True)
class Work:
    """What is timed over `count` equal steps, or fewer where it is slow: the value is that of one step."""

    run: Callable[[int], object]
    count: int


@dataclass(frozen=True)
class Reading:
    """What is read off rather than timed: bytes, seconds of CPU, quantiles."""

    take: Callable[[], float]


Measured = Operation | Work | Reading
Open = Callable[[Scale], AbstractContextManager[Measured]]


@dataclass(frozen=True)
class Contestant:
    """One way to do what a row measures; `open` is ready to be measured once it is entered."""

    name: str
    role: Role
    open: Open
    needs: tuple[str, ...] = ()
    """What has to be there: modules that can be imported, programs in the form `program:NAME`."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """What its process is given in its environment."""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Row:
    """One line of the table: the same work done by several contestants. Less is better in all of them."""

    name: str
    title: Callable[[Scale], str]
    contestants: tuple[Contestant, ...]
    unit: Literal["s", "B", "count"] = "s"
    samples: int = 5
    loops: int = 1
    quantile: float | None = None
    """None: the mean of `loops` operations is one sample; else each is timed, and this quantile is one."""

    warm: bool = True
    amount: Callable[[Scale], float] = field(default=lambda scale: 1.0)
    """How much of `per` one value stands for: the table shows amount ÷ value instead of seconds."""

    per: str | None = None
    curve: bool = False
    """The contestants are the points of a curve, named by their numbers."""
