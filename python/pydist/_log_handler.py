"""What `PYDIST_LOG` prints to standard error."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from . import _core, _log

FORMAT = "%(asctime)s.%(msecs)03d [{pid}] %(levelname)s %(name)s: %(message)s"


class _Handler(logging.Handler):
    """Prints records with the id of this process in its cluster, to what standard error is then."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = -1

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        try:
            pid = _core.me()
        except RuntimeError:  # the core has not started, or this is a forked child
            pid = 0
        if pid != self._pid:
            self._pid = pid
            self.formatter = logging.Formatter(FORMAT.format(pid=pid or "-"), "%Y-%m-%d %H:%M:%S")
        return super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Prints a record."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def install(levels: Mapping[str, int]) -> None:
    """Sets the levels of loggers, and has `pydist` print."""
    logging.addLevelName(_log.TRACE, "TRACE")
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("pydist").addHandler(_Handler())
