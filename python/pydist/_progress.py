"""How far maps are, and their progress bars."""

from __future__ import annotations

import importlib
import time
import weakref
from collections import deque
from typing import Any

KEPT = 20
"""So many maps that have ended are remembered, for those that watch."""

_running: weakref.WeakValueDictionary[int, Progress] = weakref.WeakValueDictionary()
_ended: deque[Progress] = deque(maxlen=KEPT)


def maps() -> list[Progress]:
    """The maps that run in this process, and those that have ended last."""
    running = [progress for ref in _running.valuerefs() if (progress := ref()) is not None]
    return [*list(_ended), *sorted(running, key=lambda progress: progress.since)]


class Progress:
    """Counts the elements of a map that are done, and tells a bar like those of tqdm.

    Parameters:
        wanted: True for `tqdm.auto.tqdm`; a class or function that makes a bar of the keyword `total`; or
            a bar, which is left open at the end. False or None for no bar.
        total: how many elements there are; None where that is not known.
        f: the function that is mapped.

    Raises:
        ImportError: tqdm is wanted and not installed.
        TypeError: what is wanted is no bar and makes none.
    """

    def __init__(self, wanted: Any, total: int | None, f: Any = None) -> None:
        self.name: str = getattr(f, "__qualname__", "") or type(f).__name__
        self.total = total
        self.done = 0
        self.since = time.monotonic()
        self.ended: float | None = None
        self._owned = True
        self._bar: Any = None
        if wanted is not None and wanted is not False:
            self._make_bar(wanted, total)
        _running[id(self)] = self

    def _make_bar(self, wanted: Any, total: int | None) -> None:
        if wanted is True:
            wanted = _tqdm()
        if not isinstance(wanted, type) and hasattr(wanted, "update"):
            self._owned = False
            self._bar = wanted
            return
        if not callable(wanted):
            raise TypeError(
                "progress must be True, a bar like those of tqdm, or what makes one, "
                f"not {type(wanted).__name__}"
            )
        self._bar = wanted(total=total)
        if not hasattr(self._bar, "update"):
            raise TypeError(f"progress made a {type(self._bar).__name__}, which has no method update()")

    def update(self, count: int) -> None:
        """So many elements more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        """The map has ended."""
        if self.ended is None:
            self.ended = time.monotonic()
            if _running.pop(id(self), None) is not None:
                _ended.append(self)
        bar, self._bar = self._bar, None
        if bar is not None and self._owned and hasattr(bar, "close"):
            bar.close()


def _tqdm() -> Any:
    try:
        return importlib.import_module("tqdm.auto").tqdm
    except ImportError as error:
        raise ImportError(
            'progress=True needs tqdm, which is not installed: pip install "pydist[progress]"'
        ) from error
