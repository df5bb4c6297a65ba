"""What a worker does for `pmap`: it keeps the function, which is sent once, and runs batches of elements."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

from . import _core
from ._errors import dump_exception

Element = tuple[Any, ...]


class _Function:
    """A function that has been announced; batches may arrive before it has been unpickled."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.f: Callable[..., Any] | None = None


_functions: dict[str, _Function] = {}


def install(key: str, f: Callable[..., Any]) -> None:
    """Keeps a function under a key."""
    function = _functions.setdefault(key, _Function())
    function.f = f
    function.arrived.set()


def forget(key: str) -> None:
    """Lets go of a function; batches that wait for it end."""
    function = _functions.pop(key, None)
    if function is not None:
        function.arrived.set()


def run(key: str, keep_errors: bool, batch: list[Element]) -> Any:
    """Runs a batch: returns the seconds that it took and the values.

    With `keep_errors` a value is (True, value), and where the function raised (False, the pickled error).
    """
    function = _functions.setdefault(key, _Function())
    if function.f is None:
        function.arrived.wait()
    f = function.f
    if f is None:
        raise RuntimeError("the function of this pmap could not be sent here")
    return run_function(f, keep_errors, batch)


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
