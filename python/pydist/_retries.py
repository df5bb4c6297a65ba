"""Whether, and when, an element of a map that failed is tried again."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

from ._errors import REMOVED, ProcessExitedException

RetryCheck: TypeAlias = Callable[[Any, Exception], Any]

DEATHS_MAX = 3
"""An element that has killed so many workers is given up."""


class ExponentialBackOff:
    """Delays that grow by a factor, with some randomness; each iteration draws new ones.

    Parameters:
        n: how many.
        first_delay: the first, in seconds.
        max_delay: the longest, in seconds.
        factor: how many times as long the next one is.
        jitter: the share by which that varies either way.

    Raises:
        ValueError: one of them is negative.

    Distributed.jl: `ExponentialBackOff`.

    >>> import pydist as d
    >>> list(d.ExponentialBackOff(4, first_delay=0.1, max_delay=5, factor=10, jitter=0))
    [0.1, 1.0, 5, 5]
    """

    def __init__(
        self,
        n: int = 1,
        first_delay: float = 0.05,
        max_delay: float = 10.0,
        factor: float = 5.0,
        jitter: float = 0.1,
    ) -> None:
        if min(n, first_delay, max_delay, factor, jitter) < 0:
            raise ValueError("n, first_delay, max_delay, factor and jitter must not be negative")
        self.n = n
        self.first_delay = first_delay
        self.max_delay = max_delay
        self.factor = factor
        self.jitter = jitter

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[float]:
        delay = min(self.first_delay, self.max_delay)
        for _ in range(self.n):
            yield delay
            spread = 1 - self.jitter + random.random() * 2 * self.jitter
            delay = min(self.max_delay, delay * self.factor * spread)

    def __repr__(self) -> str:
        return (
            f"ExponentialBackOff({self.n}, first_delay={self.first_delay}, max_delay={self.max_delay}, "
            f"factor={self.factor}, jitter={self.jitter})"
        )


class _Shared:
    """What an iterator gives, kept so that every element can begin at its first item."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for i in itertools.count():
            if i == len(self._seen):
                try:
                    self._seen.append(next(self._items))
                except StopIteration:
                    return
            yield self._seen[i]


@dataclasses.dataclass
class _Attempts:
    """What has happened to an element."""

    delays: Iterator[Any]
    state: Any = None
    deaths: int = 0
    suspicions: list[ProcessExitedException] = dataclasses.field(default_factory=list)


class Retries:
    """The rules of a map for elements that fail, and what has happened to those that did.

    Parameters:
        delays: seconds before each retry, the same for each element.
        check: is given the state of the element, None at first, and the error; returns whether to try
            again, or the new state and that.

    Raises:
        TypeError: `delays` is not iterable, or `check` not callable.
    """

    def __init__(self, delays: Iterable[float], check: RetryCheck | None) -> None:
        if check is not None and not callable(check):
            raise TypeError(f"retry_check must be callable, not {type(check).__name__}")
        try:
            items = iter(delays)
        except TypeError:
            raise TypeError(
                f"retry_delays must be an iterable of seconds, not {type(delays).__name__}"
            ) from None
        self._delays: Iterable[float] = _Shared(items) if items is delays else delays
        self._check = check
        self._attempts: dict[int, _Attempts] = {}
        nothing = object()
        self.allowed = next(iter(self._delays), nothing) is not nothing

    def failed(self, element: int, error: Exception) -> float | None:
        """An element has failed: returns the seconds until it is tried again, or None."""
        attempts = self._of(element)
        attempts.suspicions.clear()  # it has not killed the worker then
        return self._next(attempts, error)

    def suspect(self, element: int, error: ProcessExitedException) -> None:
        """A worker has died in a batch with the element, which is to be run by itself next."""
        self._of(element).suspicions.append(error)

    def killed(self, element: int, error: ProcessExitedException) -> float | None:
        """A worker has died running the element alone: returns the seconds until a retry, or None."""
        attempts = self._of(element)
        errors, attempts.suspicions = [*attempts.suspicions, error], []
        delay: float | None = None
        for each in errors:
            # One that was asked to end was not killed by what it ran.
            attempts.deaths += not each.reason.startswith(REMOVED)
            if attempts.deaths >= DEATHS_MAX:
                return None
            delay = self._next(attempts, each)
            if delay is None:
                return None
        return delay

    def deaths(self, element: int) -> int:
        """How many workers the element has killed."""
        attempts = self._attempts.get(element)
        return 0 if attempts is None else attempts.deaths

    def settle(self, first: int, count: int) -> None:
        """Elements have their values, or final errors: nothing of them is to be remembered."""
        if not self._attempts:
            return
        if count == 1:
            self._attempts.pop(first, None)
            return
        for element in [e for e in self._attempts if first <= e < first + count]:
            del self._attempts[element]

    def has_suspects(self) -> bool:
        """Whether an element is to be run by itself since its worker died."""
        return any(attempts.suspicions for attempts in self._attempts.values())

    def _of(self, element: int) -> _Attempts:
        attempts = self._attempts.get(element)
        if attempts is None:
            attempts = self._attempts[element] = _Attempts(iter(self._delays))
        return attempts

    def _next(self, attempts: _Attempts, error: Exception) -> float | None:
        nothing = object()
        delay: Any = next(attempts.delays, nothing)
        if delay is nothing:
            return None
        seconds = float(delay)
        if not 0 <= seconds < math.inf:
            raise ValueError(f"retry_delays must be seconds, not {delay!r}")
        if self._check is None:
            return seconds
        verdict = self._check(attempts.state, error)
        if isinstance(verdict, tuple):
            attempts.state, verdict = verdict
        return seconds if verdict else None
