"""The logger of pydist, made when something is to be told: most programs never hear of anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


def logger() -> logging.Logger:
    """The logger."""
    import logging

    return logging.getLogger("pydist")
