"""The progress bar of a map."""

from __future__ import annotations

import importlib
from typing import Any


class Progress:
    """Tells a bar like those of tqdm how many elements are done.

    Parameters:
        wanted: True for `tqdm.auto.tqdm`; a class or function that makes a bar of the keyword `total`; or
            a bar, which is left open at the end. False or None for no bar.
        total: how many elements there are; None where that is not known.

    Raises:
        ImportError: tqdm is wanted and not installed.
        TypeError: what is wanted is no bar and makes none.
    """

    def __init__(self, wanted: Any, total: int | None) -> None:
        self._owned = True
        self._bar: Any = None
        if wanted is None or wanted is False:
            return
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
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        """The map has ended."""
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
