"""Timeouts as users give them."""

from __future__ import annotations

import math
import numbers
from typing import Any


def seconds(timeout: Any) -> float | None:
    """The seconds to wait, None for as long as it takes; what is negative means not to wait.

    Raises:
        TypeError: it is no number.
        ValueError: it is NaN.

    >>> seconds(2), seconds(10**400), seconds(None)
    (2.0, inf, None)
    """
    if timeout is None:
        return None
    given: Any = timeout
    if not isinstance(timeout, numbers.Real):
        raise TypeError(f"a timeout must be a number of seconds or None, not {type(timeout).__name__}")
    try:
        number = float(given)
    except OverflowError:
        return math.inf if given > 0 else 0.0
    if math.isnan(number):
        raise ValueError("a timeout must be a number of seconds, not NaN")
    return number
