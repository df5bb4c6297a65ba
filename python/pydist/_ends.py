"""Something that is done when a future is set, on one thread for all of them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

from . import _core, _log
from ._refs import Future

_lock = threading.Lock()
_queue: _core.Queue | None = None
_keys = itertools.count()
_watched: dict[int, tuple[Future, Callable[[], None]]] = {}


def watch(future: Future, act: Callable[[], None]) -> None:
    """Has something done once a future is set or cancelled, or its process gone.

    Parameters:
        future: the future; it is kept until then.
        act: what to do; it may not wait, as others are behind it.
    """
    global _queue
    with _lock:
        if _queue is None:
            _queue = _core.Queue()
            threading.Thread(target=_follow, args=(_queue,), name="pydist-ends", daemon=True).start()
        key = next(_keys)
        _watched[key] = future, act
    future._ref.tell(_queue, key, False)


def _follow(queue: _core.Queue) -> None:
    while True:
        for key, _ in queue.wait():
            _act(key)


def _act(key: int) -> None:
    _, act = _watched.pop(key)
    try:
        act()
    except Exception as error:
        log(error)


def log(error: Exception) -> None:
    """Tells of an error that nobody waits for."""
    _log.logger().info("what was to follow the end of a call failed: %r", error)
