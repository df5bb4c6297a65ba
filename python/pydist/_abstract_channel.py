"""What a channel of the user's own has to offer."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

from ._errors import ChannelClosedError


class AbstractChannel(ABC):
    """The base of channels that users write: stores by key, priority queues.

    An object of a subclass is made by the factory of a `RemoteChannel` and lives on its process. Its methods
    run there, several at once on threads of their own, with the arguments of the caller, and may block.

    Distributed.jl: `AbstractChannel`.

    >>> import pydist as d
    >>> class Store(d.AbstractChannel):
    ...     def __init__(self):
    ...         self.items = {}
    ...     def put(self, key, value):
    ...         self.items[key] = value
    ...     def take(self, key):
    ...         return self.items.pop(key)
    ...     def fetch(self, key):
    ...         return self.items[key]
    ...     def isready(self, key=None):
    ...         return key in self.items
    ...     def isopen(self):
    ...         return True
    ...     def close(self, exc=None):
    ...         pass
    >>> store = d.RemoteChannel(Store)
    >>> store.put("a", 1).fetch("a")
    1
    """

    @abstractmethod
    def put(self, *args: Any, **kwargs: Any) -> Any:
        """Puts an item."""

    @abstractmethod
    def take(self, *args: Any, **kwargs: Any) -> Any:
        """Takes an item out."""

    @abstractmethod
    def fetch(self, *args: Any, **kwargs: Any) -> Any:
        """Returns an item that stays."""

    @abstractmethod
    def isready(self, *args: Any, **kwargs: Any) -> bool:
        """Says whether there is an item."""

    @abstractmethod
    def isopen(self) -> bool:
        """Says whether it has not been closed."""

    @abstractmethod
    def close(self, exc: BaseException | None = None) -> None:
        """Closes the channel."""

    def wait(self, timeout: float | None = None) -> None:
        """Waits until there is an item, by asking `isready` again and again.

        Raises:
            TimeoutError: the time is over.
            ChannelClosedError: the channel is closed and empty.
        """
        until = None if timeout is None else time.monotonic() + timeout
        pause = 0.0005
        while not self.isready():
            if not self.isopen():
                raise ChannelClosedError("the channel is closed")
            if until is not None and time.monotonic() >= until:
                raise TimeoutError(f"no item within {timeout} s")
            time.sleep(pause)
            pause = min(2 * pause, 0.02)
