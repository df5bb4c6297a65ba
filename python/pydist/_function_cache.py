"""Plain remote calls of one function again and again: it goes to a process once, then its key does.

That is done for functions that go by value and that have a snapshot (see `_snapshots`). What arrives is
a plan, from which the receiver makes a function for each call, so that a call sees nothing of what another
one has changed there.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from . import _functions, _refs, _serialize, _session
from ._functions import Key, Received
from ._plain import name_opcodes, number_opcodes
from ._serialize import Dumped
from ._snapshots import Snapshot, snapshot
from ._templates import Template

ENTRIES_MAX = 512
"""So many functions are known at once; those that have not been called for long are forgotten."""
LARGE = 4096
"""A function that captures so many bytes is kept elsewhere from the first call on; others from the second."""
PATIENCE_MAX = 64
"""At most so many calls of a function that was no use to keep go by until it is looked at again."""
RETIRED_MAX = 64
"""So many small functions that are gone here may remain elsewhere."""


def _opcodes(key: Key) -> bytes:
    """Returns the opcodes that load a function by its key; like those of a name they leave the memo alone."""
    texts = [text.encode() for text in (_functions.look_up.__module__, _functions.look_up.__qualname__)]
    names = b"".join(pickle.SHORT_BINUNICODE + bytes([len(text)]) + text for text in texts)
    numbers = b"".join(map(number_opcodes, key))
    return names + pickle.STACK_GLOBAL + numbers + pickle.TUPLE2 + pickle.REDUCE


class _Known:
    """Stands in a pickle for a function that the receiver knows."""

    __slots__ = ("key", "opcodes")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.opcodes = _opcodes(key)

    def __reduce__(self) -> tuple[Any, ...]:
        return _functions.look_up, self.key


class _Entry:
    """A function that has been called."""

    __slots__ = ("known", "patience", "pids", "ref", "replaced", "sending", "snapshot", "used", "wait")

    def __init__(self, function: types.FunctionType, patience: int) -> None:
        self.ref = _Ref(function, self)
        self.snapshot: Snapshot | None = None
        self.known: _Known | None = None
        self.pids: set[int] = set()
        self.sending = 0
        self.used = False
        self.replaced = False
        self.patience = patience
        self.wait = patience

    def is_of(self, f: Any) -> bool:
        """Whether it is that of a function, and not of one whose place in memory that has taken."""
        return self.ref() is f

    def leave_for_longer(self) -> None:
        """Has the next calls pickle the function as it is."""
        self.patience = min(2 * self.patience, PATIENCE_MAX)
        self.wait = self.patience

    def is_large(self) -> bool:
        """Whether it is kept elsewhere from the first call on."""
        return self.snapshot is not None and self.snapshot.size >= LARGE


class _Ref(weakref.ref[types.FunctionType]):
    """A reference to a function; where that dies, its entry goes too."""

    __slots__ = ("entry", "function_id")

    entry: _Entry
    function_id: int

    def __new__(cls, function: types.FunctionType, entry: _Entry) -> _Ref:
        ref = super().__new__(cls, function, _on_death)
        ref.entry = entry
        ref.function_id = id(function)
        return ref


_entries: dict[int, _Entry] = {}
"""By the id of the function, which may be that of a function of the past."""
_lock = threading.Lock()
_retired: deque[tuple[Key, set[int]]] = deque()


def _on_death(ref: Any) -> None:
    """Runs in a finalizer, perhaps while this thread holds the lock."""
    if _entries is None:  # the interpreter is ending, and has cleared this module
        return
    entry = ref.entry
    del ref.entry  # which refers to it
    found = _entries.pop(ref.function_id, None)
    if found is not None and found is not entry:
        _entries[ref.function_id] = found
    _retire(entry)


def _retire(entry: _Entry) -> None:
    """Has other processes forget a function that nobody is sending."""
    if entry.known is None or not entry.pids:
        return
    _retired.append((entry.known.key, entry.pids))
    entry.pids = set()
    if (entry.is_large() or len(_retired) >= RETIRED_MAX) and not sys.is_finalizing():
        with contextlib.suppress(Exception):
            if not _session.is_forked():
                _refs.call_here(_forget_retired, (), {})


def _forget_retired() -> None:
    keys_by_pid: dict[int, list[Key]] = {}
    while _retired:
        key, pids = _retired.popleft()
        for pid in pids:
            keys_by_pid.setdefault(pid, []).append(key)
    for pid, keys in keys_by_pid.items():
        _functions.have_dropped(pid, keys)


class Sending:
    """A message under way that has a function's key in it, and the function where it `defines` that.

    As a context manager it surrounds the sending: only then others may rely on the function being there.
    """

    __slots__ = ("_pid", "defines", "entry", "known")

    def __init__(self, entry: _Entry, known: _Known, pid: int) -> None:
        self.entry = entry
        self.known = known
        self.defines = pid not in entry.pids
        self._pid = pid

    def __enter__(self) -> None:
        """The message is being sent."""

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self.end(sent=kind is None)

    def end(self, *, sent: bool) -> None:
        """The message has been sent, or will not be."""
        entry = self.entry
        with _lock:
            entry.sending -= 1
            if sent and self.defines:
                entry.pids.add(self._pid)
            over = entry.replaced and not entry.sending
        if over:
            _retire(entry)


Message: TypeAlias = tuple[Dumped, Sending | None]


def dumps_call(f: Any, pid: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Message:
    """Pickles a call for a process, which may know the function already.

    Parameters:
        f: the function.
        pid: the process.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Returns:
        What `_serialize.dumps_call` returns; and, where the function has a key, what is to be told when the
        message has been sent.

    Raises:
        pickle.PicklingError: something in it cannot be pickled; the message names the path to it.
    """
    entry = _entries.get(id(f))
    if entry is None or not entry.is_of(f):
        opcodes = name_opcodes(f)
        if opcodes is not None or type(f) is not types.FunctionType:
            return _serialize.dumps_call(f, args, kwargs, opcodes), None
        entry = _note(f, patience=1)
    elif entry.wait > 1:
        entry.wait -= 1
        return _serialize.dumps_call(f, args, kwargs), None
    elif entry.snapshot is None:
        if not _take_snapshot(entry, f):
            return _serialize.dumps_call(f, args, kwargs), None
    elif not entry.snapshot.is_unchanged():
        entry = _note(f, patience=2 * entry.patience)
    if entry.snapshot is None:
        dumped = _serialize.dumps_call(f, args, kwargs)
        large = len(dumped[0]) >= LARGE and entry.patience <= 2
        if not large or not _take_snapshot(entry, f) or not entry.is_large():
            return dumped, None
    return _dump(f, entry, pid, args, kwargs)


def _note(f: types.FunctionType, patience: int) -> _Entry:
    """Takes up a function that is new, or that has changed."""
    entry = _Entry(f, min(patience, PATIENCE_MAX))
    with _lock:
        while len(_entries) >= ENTRIES_MAX and _make_room():
            continue
        old = _entries.get(id(f))
        _entries[id(f)] = entry
        if old is not None:
            old.replaced = True
            if not old.sending:
                _retire(old)
    return entry


def _take_snapshot(entry: _Entry, f: types.FunctionType) -> bool:
    """Notes what a function looks like, unless it may change unseen or another thread has just done so."""
    taken = snapshot(f)
    if taken is None:
        entry.leave_for_longer()
        return False
    with _lock:
        if entry.snapshot is None:
            entry.snapshot = taken
            entry.wait = 1
        return entry.snapshot is taken


def _make_room() -> bool:
    """Forgets the oldest entry that has not been used since the last time, and is not being sent."""
    for number, entry in list(_entries.items()):
        if _entries.pop(number, None) is not entry:
            continue
        if not entry.sending and not entry.used:
            _retire(entry)
            return True
        entry.used = False
        _entries[number] = entry
    return False


def _dump(
    f: types.FunctionType, entry: _Entry, pid: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Message:
    sending = _begin(f, entry, pid)
    if sending is None:
        return _serialize.dumps_call(f, args, kwargs), None
    try:
        if sending.defines:
            return _dump_definition(f, sending, args, kwargs), sending
        known = sending.known
        return _serialize.dumps_call(known, args, kwargs, known.opcodes, by_value=False), sending
    except _serialize.ByValueError:
        # A function among the arguments shares its globals with this one where both are in one pickle.
        sending.end(sent=False)
        entry.leave_for_longer()
        return _serialize.dumps_call(f, args, kwargs), None
    except BaseException:
        sending.end(sent=False)
        raise


def _begin(f: types.FunctionType, entry: _Entry, pid: int) -> Sending | None:
    """Keeps an entry until a message has been sent; None where it has just been forgotten."""
    with _lock:
        if _entries.get(id(f)) is not entry:
            return None
        entry.used = True
        entry.sending += 1
        if entry.known is None:
            entry.known = _Known(_functions.new_key())
        return Sending(entry, entry.known, pid)


def _dump_definition(
    f: types.FunctionType, sending: Sending, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Dumped:
    assert sending.entry.snapshot is not None
    data, buffers, _ = _serialize.dumps(sending.entry.snapshot.plan, root="f")
    definition = _Definition(sending.known.key, data, buffers)
    dumped = _serialize.dumps_call(definition, args, kwargs, by_value=False)
    from ._captures import large_captures, warn_large_captures

    warn_large_captures(large_captures(f))
    return dumped


class _Definition:
    """Stands in a pickle for a function that is also to be kept."""

    def __init__(self, key: Key, data: bytes, buffers: list[Any]) -> None:
        self._parts = *key, _serialize.in_buffer(data), buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return define, self._parts


class _Planned(Received):
    """A plan that another process has sent here."""

    __slots__ = ()

    def _made_of(self, loaded: Any) -> Any:
        return Template(loaded)

    def get(self) -> Any:
        """Returns a new function, or raises what unpickling the plan gives."""
        return super().get().make()


def define(source: int, number: int, data: Any, buffers: list[Any]) -> Callable[..., Any]:
    """Takes up a plan that arrives in a call, and returns the function to call."""
    received = _functions.receive((source, number), _Planned)
    if not received.is_loaded():
        received.load(data, buffers, again=True)
    function: Callable[..., Any] = received.get()
    return function
