"""The elements of a map, taken from its iterables as they are needed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

from ._batches import Columns

PATIENCE = 0.002
"""Seconds after which a slow iterable is not waited for, where it has given something."""


class Elements:
    """Takes the elements of several iterables side by side, up to the end of the shortest.

    Lists, tuples and ranges are cut into pieces; others are iterated.
    """

    def __init__(self, iterables: tuple[Iterable[Any], ...]) -> None:
        self.exhausted = False
        self.error: Exception | None = None
        lengths = [len(each) for each in iterables if isinstance(each, Sized)]
        self.total = min(lengths) if len(lengths) == len(iterables) else None
        self._taken = 0
        self.several = len(iterables) > 1
        self._sequences: tuple[Any, ...] = ()
        self._rows: Iterator[Any] = iter(())
        if self.total is not None and all(type(each) in (list, tuple, range) for each in iterables):
            self._sequences = iterables
        elif self.several:
            self._rows = zip(*iterables, strict=False)
        else:
            self._rows = iter(iterables[0])

    def take(self, count: int) -> Columns:
        """Takes up to so many elements; fewer where there are no more, or where they are slow to come.

        An error of an iterable is kept as `error`, and ends the elements.
        """
        if self._sequences:
            assert self.total is not None
            begin, end = self._taken, min(self._taken + count, self.total)
            self._taken = end
            self.exhausted = end == self.total
            return tuple(each[begin:end] for each in self._sequences)
        rows = self._take_rows(count)
        return tuple(map(list, zip(*rows, strict=True))) or ([],) if self.several else (rows,)

    def one_by_one(self) -> Iterator[Any]:
        """Leaves the elements to who takes them from the iterator; of several iterables they are tuples."""
        if self._sequences:
            self._rows = zip(*self._sequences, strict=False) if self.several else iter(self._sequences[0])
            self._sequences = ()
        return self._rows

    def _take_rows(self, count: int) -> list[Any]:
        rows: list[Any] = []
        until = time.monotonic() + PATIENCE
        while len(rows) < count:
            wanted = min(count, max(1, 2 * len(rows)))
            try:
                rows.extend(itertools.islice(self._rows, wanted - len(rows)))
            except Exception as error:
                self.error = error
                self.exhausted = True
                break
            if len(rows) < wanted:
                self.exhausted = True
                break
            if time.monotonic() > until:
                break
        return rows


def row_of(columns: Columns, place: int) -> tuple[Any, ...]:
    """One element of a batch."""
    return tuple(column[place] for column in columns)
