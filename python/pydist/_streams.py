"""Streams of random numbers, one for each task of a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np


class RandomStreams(Sequence["np.random.Generator"]):
    """Independent generators of random numbers, made when they are asked for; see `random_streams`."""

    def __init__(self, seed: Any, n: int) -> None:
        import numpy as np

        self._root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        self._n = n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> np.random.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.random.Generator]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """The stream of a task; it begins anew each time."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._n))]
        if not -self._n <= index < self._n:
            raise IndexError(f"there are {self._n} streams, not one of the number {index}")
        import numpy as np

        root = self._root
        # What `SeedSequence.spawn` gives for this child, without making those before it.
        child = np.random.SeedSequence(
            root.entropy,
            spawn_key=(*root.spawn_key, index % self._n),
            pool_size=root.pool_size,
        )
        return np.random.default_rng(child)

    def __repr__(self) -> str:
        return f"<{self._n} random streams of {self._root.entropy}>"


def random_streams(seed: Any, n: int) -> RandomStreams:
    """Independent streams of random numbers, one for each task, the same whatever runs where and when.

    They are those of `numpy.random.SeedSequence(seed).spawn(n)`.

    Parameters:
        seed: an int, ints, or a `numpy.random.SeedSequence`; None for one that differs each time.
        n: how many.

    Returns:
        A sequence of `numpy.random.Generator`, each made when it is asked for.

    Raises:
        ImportError: numpy is not installed.
        ValueError: `n` is negative.

    >>> import pydist as d
    >>> def roll(stream):
    ...     return int(stream.integers(1, 7))
    >>> d.pmap(roll, d.random_streams(5, 4)) == [roll(stream) for stream in d.random_streams(5, 4)]
    True
    """
    if n < 0:
        raise ValueError(f"the number of streams must not be negative: {n}")
    return RandomStreams(seed, n)
