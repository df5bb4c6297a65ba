"""The pickler for all that does not take the short way: cloudpickle's, with reducers of our own."""

from __future__ import annotations

import copyreg
import io
import pickle
import types
from collections import ChainMap
from typing import Any

# By this name, as what unpickles functions does on other threads: that takes the locks of both modules in the
# same order, where `import cloudpickle` would take them in the other.
import cloudpickle.cloudpickle  # type: ignore[import-untyped, unused-ignore]

from pydist import _serialize
from pydist._captures import Capture, large_captures
from pydist._reducers import Reducer, reducer_for

MANY_BUFFERS = 64
"""After this many buffers, those smaller than `SMALL_BUFFER` go into the stream."""
SMALL_BUFFER = 4096


class Pickler(cloudpickle.Pickler):  # type: ignore[misc, unused-ignore]
    """Cloudpickle's pickler with reducers of our own, which say quickly that a thing is left to pickle."""

    def __init__(self, file: Any, buffers: list[pickle.PickleBuffer], by_value: bool = True) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self.by_value = by_value
        self.buffers = buffers
        self.reducers: dict[type, Reducer | None] = {}
        self.captures: list[Capture] = []
        self.nested_codes: set[int] = set()

    def dump(self, obj: Any) -> None:
        """Writes an object; a RecursionError stays one."""
        pickle.Pickler.dump(self, obj)

    def reducer_override(self, obj: Any) -> Any:
        """Called by the C pickler for whatever is not of a built-in type."""
        cls = type(obj)
        try:
            reducer = self.reducers[cls]
        except KeyError:
            reducer = self.reducers[cls] = reducer_for(cls)
        return NotImplemented if reducer is None else reducer(self, obj)

    def reduce_by_value(self, obj: Any) -> Any:
        """Lets cloudpickle reduce a function or class."""
        if not self.by_value:
            raise _serialize.ByValueError
        if isinstance(obj, types.FunctionType):
            self.captures.extend(large_captures(obj))
        return super().reducer_override(obj)

    def keep_in_band(self, nbytes: int) -> bool:
        """Says whether a buffer of this size goes into the stream, because there are very many."""
        return nbytes < SMALL_BUFFER and len(self.buffers) >= MANY_BUFFERS


_table_sources: tuple[Any, Any] = (None, None)


def _refresh_table() -> None:
    """Gives the pickler one dict of all registered reducers, which is much quicker than a ChainMap."""
    global _table_sources
    table = cloudpickle.Pickler.dispatch_table
    if not isinstance(table, ChainMap):
        return
    own, registered = _table_sources
    if table.maps[0] != own or copyreg.dispatch_table != registered:
        # cloudpickle's own reducer for memoryview hides one that the user has registered
        users = {cls: reducer for cls, reducer in copyreg.dispatch_table.items() if cls is memoryview}
        Pickler.dispatch_table = {**table, **users}
        _table_sources = dict(table.maps[0]), dict(copyreg.dispatch_table)


def run(obj: Any, by_value: bool = True) -> tuple[bytes, Pickler]:
    """Pickles an object; returns the pickle, and the pickler with what it has found on its way."""
    _refresh_table()
    file = io.BytesIO()
    pickler = Pickler(file, [], by_value)
    pickler.dump(obj)
    return file.getvalue(), pickler
