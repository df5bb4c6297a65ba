"""What a worker does for `pmap`: it runs batches of elements."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

from . import _core, _functions
from ._errors import dump_exception

Element = tuple[Any, ...]


def run(key: _functions.Key, keep_errors: bool, batch: list[Element]) -> Any:
    """Runs a batch of a function that was sent here: returns the seconds that it took and the values.

    With `keep_errors` a value is (True, value), and where the function raised (False, the pickled error).
    """
    return run_function(_functions.get(key), keep_errors, batch)


def run_function(f: Callable[..., Any], keep_errors: bool, batch: list[Element]) -> Any:
    """Runs a batch of a function that is here."""
    if inspect.iscoroutinefunction(f):
        return _run_async(f, keep_errors, batch)
    start = time.perf_counter()
    values = [_one(f, element) for element in batch] if keep_errors else [f(*element) for element in batch]
    return time.perf_counter() - start, values


def _one(f: Callable[..., Any], element: Element) -> tuple[bool, Any]:
    try:
        return True, f(*element)
    except Exception as error:
        return False, dump_exception(error, _core.me())[:2]


async def _run_async(f: Callable[..., Any], keep_errors: bool, batch: list[Element]) -> Any:
    start = time.perf_counter()
    values: list[Any] = await asyncio.gather(
        *(f(*element) for element in batch), return_exceptions=keep_errors
    )
    if keep_errors:
        values = [
            (False, dump_exception(v, _core.me())[:2]) if isinstance(v, Exception) else (True, v)
            for v in values
        ]
    return time.perf_counter() - start, values
