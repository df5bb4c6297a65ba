"""Single calls: their round trip under several conditions, and how many can be made."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pydist
from benches import limits
from benches.limits import limit, ping_pong, stream
from benches.measuring import latency_quantile
from benches.model import Operation, Reading, Row, Scale, Work
from benches.rows.common import compete, ours
from benches.systems import PEERS, Pydist, System
from benches.work import nothing, same

LOADING_THREADS = 4


@contextmanager
def roundtrip(scale: Scale, system: type[System]) -> Iterator[Operation]:
    with system() as cluster:
        cluster.each_answers()
        yield Operation(lambda: cluster.call(nothing))


@contextmanager
def background(run: Callable[[threading.Event], None], count: int) -> Iterator[None]:
    """Run a function in threads until the end of the block."""
    stop = threading.Event()
    threads = [threading.Thread(target=run, args=(stop,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def loaded(scale: Scale, system: type[System]) -> Iterator[Operation]:
    """Round trips while other threads of the caller make them too."""

    def load(stop: threading.Event) -> None:
        while not stop.is_set():
            cluster.call(nothing)

    with system() as cluster:
        cluster.each_answers()
        with background(load, LOADING_THREADS):
            yield Operation(lambda: cluster.call(nothing))


def compute(stop: threading.Event) -> None:
    """Hold the interpreter, as a loop in Python does."""
    while not stop.is_set():
        for _ in range(1000):
            pass


@contextmanager
def busy(scale: Scale, system: type[System]) -> Iterator[Operation]:
    with system() as cluster:
        cluster.each_answers()
        with background(compute, 1):
            yield Operation(lambda: cluster.call(nothing))


@contextmanager
def busy_ping_pong(scale: Scale) -> Iterator[Operation]:
    with ping_pong(scale) as operation, background(compute, 1):
        yield operation


def call_from_worker(target: int, q: float, seconds: float) -> float:
    """Run on a worker: call another one again and again."""
    operation = Operation(lambda: pydist.remotecall_fetch(nothing, target))
    return latency_quantile(operation, q, seconds)


@contextmanager
def between_workers(scale: Scale) -> Iterator[Reading]:
    with pydist.cluster(2) as (one, other):
        yield Reading(lambda: pydist.remotecall_fetch(call_from_worker, one, other, 0.5, scale.budget))


@contextmanager
def echo(scale: Scale, system: type[System], size: int) -> Iterator[Operation]:
    body = bytes(size)
    with system() as cluster:
        cluster.each_answers()
        yield Operation(lambda: cluster.call(same, body))


@contextmanager
def one_by_one(scale: Scale, system: type[System]) -> Iterator[Work]:
    with system() as cluster:
        cluster.each_answers()
        yield Work(lambda count: cluster.results([cluster.start(nothing) for _ in range(count)]), scale.calls)


@contextmanager
def without_result(scale: Scale, system: type[System]) -> Iterator[Work]:
    with system() as cluster:
        cluster.each_answers()
        yield Work(lambda count: cluster.fire(nothing, count), scale.calls)


@contextmanager
def awaited(scale: Scale, system: type[System]) -> Iterator[Work]:
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        cluster = stack.enter_context(system())
        cluster.each_answers()
        yield Work(lambda count: runner.run(cluster.await_all(nothing, count)), 1000)


ASLEEP = limit("ping-pong asleep, two cores", ping_pong, theirs=1)
OTHER_PING_PONGS = (
    limit("ping-pong asleep, cores free to choose", ping_pong),
    limit("ping-pong asleep, one core", ping_pong, theirs=0),
    limit("ping-pong spinning, two cores", ping_pong, theirs=1, spins=True),
)
SYSTEMS_OF_ROWS = (Pydist, *PEERS)
STREAM = limit("bare socket, windows of 256", stream, count=lambda scale: scale.calls)


def echo_row(name: str, size: int, title: str) -> Row:
    return Row(
        name=name,
        title=lambda scale: f"{title} there and back, p50",
        contestants=(
            *compete(echo, SYSTEMS_OF_ROWS, size=size),
            limit("bare socket", limits.socket_body, size=lambda scale: size, back=True),
        ),
        samples=1,
        quantile=0.5,
    )


ROWS = (
    Row(
        name="roundtrip",
        title=lambda scale: "no-op round trip, p50",
        contestants=(*compete(roundtrip, SYSTEMS_OF_ROWS), ASLEEP, *OTHER_PING_PONGS),
        samples=1,
        quantile=0.5,
    ),
    Row(
        name="roundtrip_p99",
        title=lambda scale: "no-op round trip, p99",
        contestants=(*compete(roundtrip, SYSTEMS_OF_ROWS), ASLEEP, *OTHER_PING_PONGS),
        samples=1,
        quantile=0.99,
    ),
    Row(
        name="roundtrip_loaded",
        title=lambda scale: f"no-op round trip while {LOADING_THREADS} other threads call, p99",
        contestants=(*compete(loaded, SYSTEMS_OF_ROWS, "fire"), ASLEEP),
        samples=1,
        quantile=0.99,
    ),
    Row(
        name="roundtrip_busy",
        title=lambda scale: "no-op round trip while another thread computes in Python, mean",
        contestants=(
            *compete(busy, SYSTEMS_OF_ROWS, "fire"),
            limit("ping-pong beside that thread", busy_ping_pong),
        ),
        loops=200,
    ),
    Row(
        name="roundtrip_workers",
        title=lambda scale: "no-op round trip from worker to worker, p50",
        contestants=(ours(between_workers), ASLEEP),
        samples=1,
        quantile=0.5,
    ),
    echo_row("echo_1k", 1_000, "1 KB of bytes"),
    echo_row("echo_1m", 1_000_000, "1 MB of bytes"),
    Row(
        name="calls",
        title=lambda scale: f"{scale.calls:,} no-op calls one by one, then all results",
        contestants=(*compete(one_by_one, SYSTEMS_OF_ROWS), STREAM),
        samples=3,
        per="calls",
    ),
    Row(
        name="remote_do",
        title=lambda scale: f"{scale.calls:,} calls without results (peers: results unused)",
        contestants=(*compete(without_result, SYSTEMS_OF_ROWS, "fire"), STREAM),
        samples=3,
        per="calls",
    ),
    Row(
        name="asyncio",
        title=lambda scale: "1,000 calls awaited in asyncio",
        contestants=compete(awaited, SYSTEMS_OF_ROWS, "await_all"),
        samples=3,
        per="calls",
    ),
)
