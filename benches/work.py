"""The functions that contestants run in their workers, importable there by name."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def nothing(*ignored: object) -> None:
    return None


def add_one(number: int) -> int:
    return number + 1


def length(data: Any) -> int:
    return len(data)


def same(data: Any) -> Any:
    return data


def item_of(data: np.ndarray, index: int) -> float:
    """Stand for a closure: use one item of the data that every call needs."""
    return float(data[index])


def spin(seconds: float) -> None:
    """Compute for so long by the clock of the wall."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def process_id(*ignored: object) -> int:
    return os.getpid()


def meet(seconds: float = 0.02) -> int:
    """Return the id of this process after a while, in which the other workers get a call too."""
    time.sleep(seconds)
    return os.getpid()


def make_array(size: int) -> np.ndarray:
    """Return an array of `size` bytes whose pages are all in memory."""
    import numpy as np

    return np.arange(size // 8, dtype=np.float64)


def uneven_seconds(count: int) -> list[float]:
    """Return the lengths of calls: most take 1 ms, every 16th 16 ms, the last but one 50 ms."""
    seconds = [0.016 if index % 16 == 7 else 0.001 for index in range(count)]
    seconds[-2] = 0.05
    return seconds
