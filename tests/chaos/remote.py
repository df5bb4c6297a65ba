"""What workers run under chaos. Each value can be computed again by whoever checks it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import numpy as np

import pydist as d

SEEN: set[int] = set()


def mix(x: int) -> int:
    return (x * 2654435761 + 12345) % 4294967291


def block(seed: int, size: int) -> np.ndarray:
    """Return so many bytes that depend on a seed."""
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "little")
    return np.arange(start, start + size // 8, dtype=np.int64)


def turned(array: np.ndarray) -> np.ndarray:
    """Change what has come in place: it is private to its receiver."""
    np.negative(array, out=array)
    return array


def reverse(data: bytes) -> bytes:
    return data[::-1]


def once(token: int) -> int:
    """Fail where a call arrives twice."""
    if token in SEEN:
        raise AssertionError(f"call {token} ran twice")
    SEEN.add(token)
    return mix(token)


def through(path: list[int], x: int) -> int:
    """Mix a number on each process of a path, each of which calls the next."""
    if not path:
        return mix(x)
    return mix(d.remotecall_fetch(through, path[0], path[1:], x))


def add(future: d.Future, k: int) -> Any:
    return future.fetch(timeout=60) + k


def put(future: d.Future, value: Any) -> None:
    future.put(value)


async def gather(pids: list[int], x: int, seconds: float) -> int:
    """Sum what several processes say, without a thread of one's own."""
    calls = [d.remotecall(mix, pid, x + i) for i, pid in enumerate(pids)]
    await asyncio.sleep(seconds)
    return sum([await call for call in calls])


async def later(x: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    return mix(x)


def work(x: int, seconds: float) -> int:
    """Compute for a while in short steps."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        mix(x)
    return mix(x)


def element(x: int) -> Any:
    """Be an element of a map: mostly short, sometimes long, large, or one that calls another process."""
    kind = x % 97
    if kind == 1:
        return work(x, 0.02)
    if kind == 2:
        return block(x, 700_000)
    if kind == 3:
        others = [pid for pid in d.workers() if pid != d.myid()]
        return d.remotecall_fetch(mix, others[x % len(others)], x) if others else mix(x)
    return mix(x)


async def element_async(x: int) -> int:
    await asyncio.sleep(0.001 * (x % 5))
    return mix(x)


# --- channels


def produce(channel: d.RemoteChannel, generation: int, count: int, large: int) -> int:
    """Put numbered items, each `large`-th one with half a megabyte and more."""
    for n in range(count):
        channel.put(
            (generation, n, block(n, 600_000) if large and n % large == large - 1 else None), timeout=60
        )
    return count


def consume(source: d.RemoteChannel, results: d.RemoteChannel, consumer: int) -> int:
    """Take until the channel is closed and empty, and say of each item that this consumer has had it."""
    count = 0
    while True:
        try:
            n, array = source.take(timeout=60)
        except d.ChannelClosedError:
            return count
        results.put((n, consumer, n if array is None else int(array.sum())), timeout=60)
        count += 1


def collect(channel: d.RemoteChannel, count: int) -> list[int]:
    """Take so many items of one producer, and return their numbers."""
    taken = []
    for _ in range(count):
        _, n, array = channel.take(timeout=60)
        assert array is None or np.array_equal(array, block(n, 600_000))
        taken.append(n)
    return taken
