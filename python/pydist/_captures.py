"""The warning about functions that take large variables along each time they are sent."""

from __future__ import annotations

import sys
import types
import warnings
import weakref
from typing import Any, TypeAlias

from pydist._reducers import global_names

LARGE_CAPTURE = 10 * 2**20
"""From this size on, a captured variable is worth a warning."""

Capture: TypeAlias = tuple[types.FunctionType, str, str, int]
"""The function, the kind of variable, its name and its size."""

_warned: weakref.WeakKeyDictionary[types.CodeType, set[str]] = weakref.WeakKeyDictionary()
_SIZED_PACKAGES = {
    "numpy",
    "pandas",
    "pyarrow",
    "polars",
    "torch",
    "scipy",
    "xarray",
    "cupy",
    "jax",
    "jaxlib",
}


def _size(value: Any) -> int:
    """Estimates the size of a value, without looking into it; 0 where there is no cheap way."""
    cls = type(value)
    if cls in (bytes, bytearray, str):
        return len(value)
    if cls in (list, tuple, dict, set, frozenset):
        return 8 * len(value)
    if cls is memoryview:
        return int(value.nbytes)
    if cls.__module__ == "array":
        return len(value) * int(value.itemsize)
    if cls.__module__.partition(".")[0] not in _SIZED_PACKAGES:
        return 0
    try:
        size = getattr(value, "nbytes", None)
        if size is None:
            size = value.memory_usage().sum()
        return int(size)
    except Exception:
        return 0


def large_captures(f: types.FunctionType) -> list[Capture]:
    """Lists the large globals and closure variables that a function takes along."""
    found = []
    code = f.__code__
    codes = [code]
    names: set[str] = set()
    for each in codes:
        names.update(each.co_names)
        codes.extend(constant for constant in each.co_consts if isinstance(constant, types.CodeType))
    for name in names:
        size = _size(f.__globals__.get(name))
        if size >= LARGE_CAPTURE and name in global_names(code):  # not just an attribute of that name
            found.append((f, "global", name, size))
    for name, cell in zip(code.co_freevars, f.__closure__ or (), strict=False):
        try:
            size = _size(cell.cell_contents)
        except ValueError:  # not yet bound
            continue
        if size >= LARGE_CAPTURE:
            found.append((f, "variable", name, size))
    return found


def warn_large_captures(captures: list[Capture]) -> None:
    """Warns once for each function and variable, at the line outside pydist that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("pydist."):
        level, frame = level + 1, frame.f_back
    for f, kind, name, size in captures:
        warned = _warned.setdefault(f.__code__, set())
        if name not in warned:
            warned.add(name)
            warnings.warn(
                f"function {f.__qualname__!r} captures {kind} {name!r} ({size / 2**20:.1f} MB): "
                "pass it as an argument, or use a CachingPool, which sends it once to each worker",
                UserWarning,
                stacklevel=level,
            )
