"""A channel of a user's own, for the tests; workers import it too."""

from __future__ import annotations

import threading
from typing import Any

import pydist as d


class Store(d.AbstractChannel):
    """A store by key; `take` and `fetch` of a key that is not there wait for it."""

    def __init__(self) -> None:
        self.items: dict[Any, Any] = {}
        self.open = True
        self.changed = threading.Condition()

    def put(self, key: Any, value: Any) -> None:
        with self.changed:
            if not self.open:
                raise d.ChannelClosedError("the store is closed")
            self.items[key] = value
            self.changed.notify_all()

    def _wait_for(self, key: Any) -> None:
        self.changed.wait_for(lambda: key in self.items or not self.open)
        if key not in self.items:
            raise d.ChannelClosedError("the store is closed")

    def take(self, key: Any) -> Any:
        with self.changed:
            self._wait_for(key)
            return self.items.pop(key)

    def fetch(self, key: Any) -> Any:
        with self.changed:
            self._wait_for(key)
            return self.items[key]

    def isready(self, key: Any = None) -> bool:
        return bool(self.items) if key is None else key in self.items

    def isopen(self) -> bool:
        return self.open

    def close(self, exc: BaseException | None = None) -> None:
        with self.changed:
            self.open = False
            self.changed.notify_all()
