"""Functions that are sent once to a process, however many calls follow."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from . import _core, _refs, _serialize, _session
from ._errors import ProcessExitedException

Key: TypeAlias = tuple[int, int]
"""The process that sent a function, and its number there."""

_numbers = itertools.count(1)


def new_key() -> Key:
    """A key for a function of this process, which has been used for no other."""
    _session.ensure_started()
    return _core.me(), next(_numbers)


class _Stub:
    """What is pickled in place of a function that has been sent: its key."""

    __slots__ = ("_sent",)

    def __init__(self, sent: SentFunction) -> None:
        self._sent = sent  # a process forgets a function only after the calls that were sent before

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._sent.f(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return look_up, self._sent.key


class SentFunction:
    """A function that goes once to each process where it is wanted, with what it captures.

    It is told by its identity: what changes in it, or in what it captures, after it has been sent is not
    sent again. Other processes drop it with `forget`, or once this object is gone.

    Parameters:
        f: any callable.

    >>> import pydist as d
    >>> sent = SentFunction(lambda x: x + 1)
    >>> pid = d.workers()[0]
    >>> [d.remotecall_fetch(sent.on(pid), pid, x) for x in range(3)]
    [1, 2, 3]
    """

    __slots__ = ("__weakref__", "_dump_lock", "_dumped", "_finalizer", "_locks", "_pids", "f", "key")

    def __init__(self, f: Callable[..., Any]) -> None:
        if not callable(f):
            raise TypeError(f"expected a callable, not {type(f).__name__}")
        self.f = f
        self.key = new_key()
        self._dump_lock = threading.Lock()
        self._dumped: tuple[Any, _core.Shared, list[Any]] | None = None
        self._locks: dict[int, threading.Lock] = {}
        self._pids: set[int] = set()
        self._finalizer = weakref.finalize(self, _forget_later, self.key, self._pids)
        self._finalizer.atexit = False

    def on(self, pid: int) -> Callable[..., Any]:
        """Sends the function to a process unless it has it, and returns what to call there.

        Parameters:
            pid: the id of the process.

        Returns:
            A callable that pickles as a key of a few bytes and arrives at that process as the function; for
            this process the function itself.

        Raises:
            ValueError: there is no such process.
            ProcessExitedException: it has gone.
            pickle.PicklingError: the function cannot be pickled.
        """
        if pid == _core.me():
            return self.f
        if pid not in self._pids:
            self._send(pid)
        return _Stub(self)

    def _send(self, pid: int) -> None:
        with self._locks.setdefault(pid, threading.Lock()):
            if pid in self._pids:
                return
            data, buffers, refs = self._message()
            _core.call_do(pid, data, buffers, refs)
            self._pids.add(pid)

    def _message(self) -> tuple[Any, _core.Shared, list[Any]]:
        with self._dump_lock:
            if self._dumped is not None:
                return self._dumped
            data, buffers, refs = _serialize.dumps(self.f, root="f", warn=False)
            outer, buffers, _ = _serialize.dumps(_Announcement(self.key, data, buffers, bool(refs)))
            message = outer, _core.share([buffer.raw() for buffer in buffers]), refs
            if not refs:  # what a future pickles to depends on whether its value has come
                self._dumped = message
            return message

    def forget(self) -> None:
        """Has all processes drop the function, without waiting; calls that have begun there end as usual."""
        pids, self._dumped = set(self._pids), None
        self._pids.clear()
        _forget(self.key, pids)


class _Announcement:
    """Pickles as the call that takes up a function, which itself stays pickled within it."""

    def __init__(self, key: Key, data: bytes, buffers: list[Any], has_refs: bool) -> None:
        self._parts = *key, _serialize.in_buffer(data), buffers, has_refs

    def __reduce__(self) -> tuple[Any, ...]:
        return _announced, self._parts


def _announced(
    source: int, number: int, data: Any, buffers: list[Any], has_refs: bool
) -> tuple[Callable[[], None], tuple[()], dict[str, Any]]:
    """Takes a function up while its message is unpickled: before any call that was sent later is.

    Its references are counted here only until then, so that one with references is not loaded again.
    """
    receive((source, number)).load(data, buffers, again=not has_refs)
    return _nothing, (), {}


def _nothing() -> None:
    """The call that a message is which only brings a function."""


def _forget(key: Key, pids: set[int]) -> None:
    for pid in pids:
        have_dropped(pid, [key])


def have_dropped(pid: int, keys: list[Key]) -> None:
    """Has a process, if it is there, drop functions of this process; does not wait for it."""
    with contextlib.suppress(ProcessExitedException, ValueError, RuntimeError, ConnectionError):
        _core.call_do(pid, _serialize.dumps_call(drop, (keys,), {})[0], [], [])


def _forget_later(key: Key, pids: set[int]) -> None:
    """Has processes drop a function; it is called by finalizers, and leaves the sending to an executor."""
    if pids and not sys.is_finalizing() and not _session.is_forked():
        with contextlib.suppress(Exception):
            _refs.call_here(_forget, (key, pids), {})


class Received:
    """A function that another process has sent here."""

    __slots__ = ("_error", "_loaded", "_payload", "function")

    def __init__(self) -> None:
        self._loaded = threading.Event()
        self.function: Any = None
        self._error: BaseException | None = None
        self._payload: tuple[Any, Any] | None = None

    def load(self, data: Any, buffers: Any, *, again: bool) -> None:
        """Unpickles the function; with `again` that is repeated, where it fails, whenever it is wanted."""
        try:
            self.function = self._made_of(_serialize.loads(data, buffers))
        except BaseException as error:
            self._error = error
            self._payload = (data, buffers) if again else None
        else:
            self._error = self._payload = None
        finally:
            self._loaded.set()

    def _made_of(self, loaded: Any) -> Any:
        return loaded

    def is_loaded(self) -> bool:
        """Whether `get` returns at once: the thread that unpickles the function may be waiting itself."""
        return self._loaded.is_set()

    def get(self) -> Any:
        """Returns the function, or raises what unpickling it gives."""
        while not self._loaded.is_set():
            self._loaded.wait(0.1)  # an interrupt is raised between two waits
        error, payload = self._error, self._payload
        if error is not None and payload is not None:
            self.load(*payload, again=True)
            error = self._error
        if error is not None:
            raise error.with_traceback(None)
        return self.function


class _Waiting:
    """Stands for a function that another thread unpickles; a call waits for it."""

    def __init__(self, received: Received) -> None:
        self._received = received

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._received.get()(*args, **kwargs)


_received: dict[int, dict[int, Received]] = {}
_seen: set[int] = set()
"""Those of its processes that have been members: one may be heard before it is known as a member."""


def receive(key: Key, kind: type[Received] = Received) -> Received:
    """Makes the entry of a function that arrives, unless it is there."""
    source, number = key
    functions = _received.get(source)
    if functions is None:
        members = {pid for pid, *_ in _core.members()}
        for pid in (*_received, source):
            if pid in members:
                _seen.add(pid)
            elif pid in _seen:
                _received.pop(pid, None)
                _seen.discard(pid)
        functions = _received.setdefault(source, {})
    return functions.setdefault(number, kind())


def _entry(key: Key) -> Received:
    try:
        return _received[key[0]][key[1]]
    except KeyError:
        raise RuntimeError(f"process {key[0]} has had its function {key[1]} forgotten here") from None


def get(key: Key) -> Any:
    """Returns a function that was sent here, or waits until it has been unpickled.

    Parameters:
        key: the `key` of its `SentFunction`.

    Raises:
        RuntimeError: its sender has had it forgotten.
        BaseException: what unpickling it gives.
    """
    return _entry(key).get()


def get_ready(source: int, number: int) -> Any:
    """Does what `get` does, in less time for a function that has been unpickled."""
    functions = _received.get(source)
    received = None if functions is None else functions.get(number)
    if received is not None and received.function is not None:
        return received.function
    return get((source, number))


def look_up(source: int, number: int) -> Callable[..., Any]:
    """Returns a function that was sent here; a call of the result waits where it is not unpickled yet."""
    entry = _entry((source, number))
    if not entry.is_loaded():
        return _Waiting(entry)
    function: Callable[..., Any] = entry.get()
    return function


def drop(keys: list[Key]) -> None:
    """Forgets functions that were sent here."""
    for source, number in keys:
        functions = _received.get(source)
        if functions is not None:
            functions.pop(number, None)
