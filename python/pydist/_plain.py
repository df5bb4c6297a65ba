"""The short way through pickling: what is certain to be importable functions and small plain data.

Plain pickle can be trusted with these, as nothing in them can lead to `__main__` or run the user's code.
"""

from __future__ import annotations

import copyreg
import pickle
import sys
import types
from collections.abc import Iterable
from typing import Any

from pydist import _core
from pydist._reducers import by_name, registered_by_value

LARGE_BYTES = 64 * 1024
"""From this size on, bytes and bytearrays that are arguments or results travel as buffers."""

NO, ATOMS, ARRAYS = 0, 1, 2
_atoms: set[type] = {type(None), bool, int, float, complex, str, type(...)}
_ndarray: Any = None
_names: dict[Any, tuple[str, str, bytes]] = {}


def plainness(obj: Any, depth: int = 2) -> int:
    """Says whether an object is small plain data, which cannot lead to anything that is not importable."""
    cls = type(obj)
    if cls in _atoms:
        return ATOMS
    if cls is bytes:
        return ATOMS if len(obj) < LARGE_BYTES else NO
    if cls is tuple or cls is list:
        items: Iterable[Any] = obj
    elif cls is dict:
        items = (*obj, *obj.values()) if len(obj) <= 32 else ()
    elif cls is _ndarray and cls not in copyreg.dispatch_table:
        flags = obj.flags
        return (
            ARRAYS
            if flags.forc and flags.writeable and obj.dtype.isbuiltin == 1 and obj.dtype.char != "O"
            else NO
        )
    else:
        return NO
    if depth == 0 or len(obj) > 32:
        return NO
    found = ATOMS
    for item in items:
        if type(item) in _atoms:
            continue
        kind = plainness(item, depth - 1)
        if kind == NO:
            return NO
        found = max(found, kind)
    return found


def all_atoms(values: Any) -> bool:
    """Says whether the values of a list, tuple or range are all small plain data without parts."""
    return type(values) is range or _core.all_of(values, _atoms)


def learn_numpy() -> None:
    """Lets NumPy's arrays and numbers take the short way, once NumPy is there."""
    global _ndarray
    numpy = sys.modules.get("numpy")
    ndarray = getattr(numpy, "ndarray", None)
    if ndarray is None or ndarray is _ndarray:
        return
    _ndarray = ndarray
    names = (
        "bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128"
    )
    _atoms.update(getattr(numpy, name) for name in names.split())


def name_opcodes(f: Any) -> bytes | None:
    """Returns the opcodes that load an importable function or class by its name, else None."""
    cls = type(f)
    if cls is not types.FunctionType and cls is not types.BuiltinFunctionType and cls is not type:
        return None
    known = _names.get(f)
    if known is not None:
        module, name, opcodes = known
        # the name may have been given to something else, or the module registered, since
        if getattr(sys.modules.get(module), name, None) is f and not registered_by_value(module):
            return opcodes
        del _names[f]
    if not by_name(f):
        return None
    module, name = f.__module__, f.__qualname__
    texts = [text.encode() for text in (module, name)]
    if "." in name or max(map(len, texts)) > 255:
        return None
    # no MEMOIZE: the indices in the pickle of the arguments, which follows, begin at 0
    opcodes = (
        b"".join(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text for text in texts) + pickle.STACK_GLOBAL
    )
    if len(_names) >= 1024:
        _names.clear()
    _names[f] = module, name, opcodes
    return opcodes


def number_opcodes(number: int) -> bytes:
    """Returns the opcodes that make an integer of 64 bits."""
    return pickle.LONG1 + b"\x08" + number.to_bytes(8, "little", signed=True)


_SHORT = b"\x80\x05" + pickle.SHORT_BINUNICODE
_found: dict[bytes, tuple[str, str, Any]] = {}

# Calls of what is in these tables, with small plain arguments, are pickled and unpickled by the core.
_core.know_names(_names, _found, [types.FunctionType, types.BuiltinFunctionType, type])


def load_named(data: Any) -> tuple[Any, Any, Any] | None:
    """Loads a call that goes by its function's name, where that has been loaded before; else returns None.

    Finding a class or function anew is most of what unpickling a small call costs.
    """
    if type(data) is not bytes or data[:3] != _SHORT:
        return None
    module_end = 4 + data[3]
    end = module_end + 3 + data[module_end + 1]
    found = _found.get(data[2:end])
    if found is None:
        return None
    module, name, f = found
    if getattr(sys.modules.get(module), name, None) is not f:
        del _found[data[2:end]]
        return None
    _, args, kwargs = pickle.loads(b"\x80\x05N" + data[end:])
    return f, args, kwargs


def remember_named(data: Any, f: Any) -> None:
    """Remembers what a call of that pickle names, for `load_named`."""
    if type(data) is not bytes or data[:3] != _SHORT:
        return
    module_end = 4 + data[3]
    end = module_end + 3 + data[module_end + 1]
    module, name = data[4:module_end].decode(), data[module_end + 2 : end - 1].decode()
    if getattr(sys.modules.get(module), name, None) is f:
        if len(_found) >= 1024:
            _found.clear()
        _found[data[2:end]] = module, name, f
