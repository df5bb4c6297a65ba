"""What a pool of workers has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any


class AbstractWorkerPool(ABC):
    """The base of pools: sets of workers of which each is free, or taken for a call.

    An object of a subclass may stand for `where` in every call: a worker is taken, the call made, and the
    worker put back once the call has ended.

    Distributed.jl: `AbstractWorkerPool`.

    >>> import pydist as d
    >>> isinstance(d.default_worker_pool(), d.AbstractWorkerPool)
    True
    """

    @abstractmethod
    def push(self, pid: int) -> AbstractWorkerPool:
        """Adds a worker, which is free, and returns the pool."""

    @abstractmethod
    def put(self, pid: int) -> AbstractWorkerPool:
        """Puts a worker back that was taken, and returns the pool."""

    @abstractmethod
    def take(self, timeout: float | None = None) -> int:
        """Takes a worker, once one is free, and returns its id."""

    @abstractmethod
    def wait(self, timeout: float | None = None) -> AbstractWorkerPool:
        """Waits until a worker is free, leaves it there, and returns the pool."""

    @abstractmethod
    def isready(self) -> bool:
        """Says whether a worker is free."""

    @abstractmethod
    def __len__(self) -> int:
        """Says how many workers there are, free or not."""

    def workers(self) -> list[int]:
        """The ids of all workers, free or not, sorted.

        Raises:
            NotImplementedError: the pool does not tell.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method workers()")

    def _prepare(self, f: Callable[..., Any], pid: int) -> Callable[..., Any]:
        """What to send to a worker of the pool in place of a function."""
        return f

    def _put_later(self, pid: int) -> None:
        """Puts a worker back from a thread that may not wait."""
        self.put(pid)
