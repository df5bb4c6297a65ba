"""Parallel maps."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benches import limits
from benches.limits import limit
from benches.model import Operation, Reading, Row, Scale, Work
from benches.rows.common import compete, megabytes
from benches.systems import PEERS, Pydist, System
from benches.work import add_one, make_array, spin, uneven_seconds

CHUNKS = 8
MILLISECOND = 0.001
WORKERS = 2
SYSTEMS_OF_ROWS = (Pydist, *PEERS)


@contextmanager
def short_calls(scale: Scale, system: type[System], chunks: int | None) -> Iterator[Work]:
    with system(WORKERS) as cluster:
        cluster.each_answers()
        yield Work(lambda count: cluster.map(add_one, range(count), chunks), scale.items)


@contextmanager
def spinning_calls(
    scale: Scale, system: type[System], seconds: Callable[[Scale], list[float]], chunks: int | None
) -> Iterator[Operation]:
    with system(WORKERS) as cluster:
        cluster.each_answers()
        yield Operation(lambda: cluster.map(spin, seconds(scale), chunks))


def even_seconds(scale: Scale) -> list[float]:
    return [MILLISECOND] * scale.sleepers


def uneven(scale: Scale) -> list[float]:
    return uneven_seconds(scale.sleepers)


def ideal_seconds(seconds: list[float]) -> float:
    return max(sum(seconds) / WORKERS, max(seconds))


@contextmanager
def closure(scale: Scale, system: type[System]) -> Iterator[Operation]:
    data = make_array(scale.closure_bytes)
    with system(WORKERS) as cluster:
        cluster.each_answers()
        yield Operation(lambda: cluster.map_closure(data, range(200)))


def resident_peak() -> int:
    """Return the most memory that this process has had since `reset_peak`, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def reset_peak() -> int:
    """Begin anew with the peak, and return the memory that this process has now."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident_peak()


@contextmanager
def lazy_memory(scale: Scale, system: type[System]) -> Iterator[Reading]:
    def take() -> float:
        before = reset_peak()
        cluster.count_lazily(add_one, scale.lazy_items)
        return resident_peak() - before

    with system(WORKERS) as cluster:
        cluster.each_answers()
        cluster.count_lazily(add_one, 1000)
        yield Reading(take)


ROWS = (
    Row(
        name="pmap_single",
        title=lambda scale: f"map over {scale.items:,} short calls, one in each message",
        contestants=(
            *compete(short_calls, SYSTEMS_OF_ROWS, chunks=None),
            limit("bare socket, windows of 256", limits.stream, count=lambda scale: scale.items),
        ),
        samples=2,
        per="elements",
    ),
    Row(
        name="pmap_auto",
        title=lambda scale: f"map over {scale.items:,} short calls, in batches",
        contestants=(
            *compete(short_calls, SYSTEMS_OF_ROWS, chunks=CHUNKS),
            limit("loop in one process", limits.loop),
        ),
        per="elements",
    ),
    Row(
        name="pmap_1ms",
        title=lambda scale: f"map over {scale.sleepers:,} calls of 1 ms",
        contestants=(
            *compete(spinning_calls, SYSTEMS_OF_ROWS, seconds=even_seconds, chunks=CHUNKS),
            limit("ideal", limits.ideal, seconds=lambda scale: ideal_seconds(even_seconds(scale))),
        ),
        samples=3,
    ),
    Row(
        name="pmap_uneven",
        title=lambda scale: f"map over {scale.sleepers:,} uneven calls of 1 to 50 ms",
        contestants=(
            *compete(spinning_calls, SYSTEMS_OF_ROWS, seconds=uneven, chunks=None),
            limit("ideal", limits.ideal, seconds=lambda scale: ideal_seconds(uneven(scale))),
        ),
        samples=3,
    ),
    Row(
        name="closure",
        title=lambda scale: f"closure over {megabytes(scale.closure_bytes)}, mapped over 200 items",
        contestants=compete(closure, SYSTEMS_OF_ROWS),
    ),
    Row(
        name="pgenerate_memory",
        title=lambda scale: f"peak memory of a lazy map over {scale.lazy_items:,} items",
        contestants=compete(lazy_memory, SYSTEMS_OF_ROWS, "count_lazily"),
        unit="B",
        samples=1,
    ),
)
