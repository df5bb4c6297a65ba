"""Python's `logging`, imported when something is to be told, and the events of the core on their way there.

Most programs never hear of anything, so what takes long to import waits until there is something to tell.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from . import _config, _core
from ._fork_lock import ForkLock

if TYPE_CHECKING:
    import logging

JOIN_SECONDS = 1.0
"""So long the end of the process waits for what is being written."""
TRACE = 5
"""The level below `logging.DEBUG`."""

calls = False
"""Whether calls are told of one by one."""
_thread: threading.Thread | None = None
_writing = ForkLock()


def logger(name: str = "pydist") -> logging.Logger:
    """A logger."""
    import logging

    return logging.getLogger(name)


def start() -> None:
    """Prepares what `PYDIST_LOG` asks for, before the core starts.

    Raises:
        ValueError: it cannot be read.
    """
    global calls, _thread
    if _thread is not None:  # an earlier start has failed
        return
    levels = _config.log_levels()
    _core.keep_events(list(levels.items()), bool(levels))
    if not levels:
        return
    from . import _log_handler

    _log_handler.install(levels)
    calls = logger("pydist.calls").isEnabledFor(10)
    _thread = threading.Thread(target=_hand_over_all, name="pydist-log", daemon=True)
    _thread.start()


def call(f: Any, pid: int) -> None:
    """Tells of a call that is about to be sent."""
    named = f if hasattr(f, "__qualname__") else type(f)
    logger("pydist.calls").debug("calls %s.%s on process %d", named.__module__, named.__qualname__, pid)


def hand_over() -> None:
    """Hands over the events of the core that wait."""
    told = _core.next_events(False)
    if told is not None:
        _tell(*told)


def _hand_over_all() -> None:
    while (told := _core.next_events(True)) is not None:
        _tell(*told)


def _tell(events: list[tuple[str, int, str, float]], dropped: int) -> None:
    for name, level, text, age in events:
        _tell_one(name, level, text, age)
    if dropped:
        _tell_one("pydist.core", 30, f"{dropped} events came faster than the log could take them", 0.0)


def _tell_one(name: str, level: int, text: str, age: float) -> None:
    target = logger(name)
    if not target.isEnabledFor(level):
        return
    record = target.makeRecord(name, level, "(pydist core)", 0, text, (), None)
    record.created -= age
    record.msecs = record.created % 1 * 1000
    with _writing:
        target.handle(record)


def stop() -> None:
    """Hands over what is left at the end of the process."""
    if _thread is None:
        hand_over()
        return
    _core.stop_events(False)
    _thread.join(JOIN_SECONDS)
    if _thread.is_alive():
        _core.stop_events(True)
