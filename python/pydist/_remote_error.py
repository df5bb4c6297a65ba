"""Exceptions that cross from one process to another.

What is sent is a tuple of plain data, which always loads, around pickles of the exception and of those in its
chain, which may fail to load one by one. What arrives is raised as a class of both `RemoteException` and the
original's.
"""

from __future__ import annotations

import pickle
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pydist import _imports, _serialize
from pydist._reducers import native_attributes, restore_exception, slot_values, solid_base
from pydist._traceback_text import format_traceback, name_of, passage, place, shorten, text_of, this_host

if TYPE_CHECKING:
    from pydist import _frames

MAX_CHAIN = 32
"""So many exceptions of a chain are sent as objects; the traceback text has more."""


class _Remote(NamedTuple):
    """What a RemoteException knows beyond the exception that it stands for."""

    pid: int
    host: str | None
    type_name: str
    text: str
    traceback: str
    captured: BaseException | None = None
    traces: list[tuple[BaseException, _frames.Trace]] = []  # noqa: RUF012 - the default stays empty
    """The frames of the exceptions of its chain whose tracebacks have not been asked for yet."""

    def note(self) -> str:
        """The part that is printed below the message."""
        return f"\nOn {place(self.pid, self.host)}:\n{self.traceback.rstrip()}"


_cause_slot: Any = BaseException.__dict__["__cause__"]
_unfolding = threading.RLock()


def _cause_of(exc: BaseException) -> BaseException | None:
    """Returns what an exception was raised from; of a `RemoteException`, not its original."""
    cause: BaseException | None = _cause_slot.__get__(exc)
    return cause


class RemoteException(Exception):
    """An exception raised in another process, or in a call to this one.

    It is raised as an instance of a class that is also a subclass of the original's, wherever that is an
    `Exception` that can be rebuilt here; `__cause__` is then the original. `str()` is the text of the
    original; the traceback of the other process is printed below it. `__cause__.__traceback__` has the
    frames of that process, with their lines and without their locals, for debuggers and the like.

    Parameters:
        message: the text.
        pid: the process where it was first raised.
        captured: the original.
        type_name: the name of the original's class, with its module; `str()` begins with it if given.
        remote_traceback: the traceback there, as text.

    Distributed.jl: `RemoteException`.

    >>> try:
    ...     raise remote_exception(ValueError("bad"), 2, "Traceback …")
    ... except ValueError as e:
    ...     (e.pid, str(e), isinstance(e, RemoteException), e.captured)
    (2, 'bad', True, ValueError('bad'))
    """

    def __init__(
        self,
        message: str = "",
        *,
        pid: int = 0,
        captured: BaseException | None = None,
        type_name: str = "",
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message)
        self._become(_Remote(pid, None, type_name, message, remote_traceback, captured), [])

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if (
            "_stands_for" not in cls.__dict__
        ):  # else a user's __init_subclass__ would see classes that nobody wrote
            super().__init_subclass__(**kwargs)

    def _become(self, remote: _Remote, notes: list[str]) -> None:
        self.__dict__["_remote"] = remote
        notes = [*notes, remote.note()] if remote.traceback else notes
        if notes:
            self.__dict__["__notes__"] = notes
        if remote.captured is not None:
            # As a cause would do. What CPython itself reads as the cause stays empty: the note has it.
            object.__setattr__(self, "__suppress_context__", True)

    @property
    def pid(self) -> int:
        """The process where it was first raised; of a `ProcessExitedException`, the one that exited."""
        own = self.__dict__.get("pid")
        return (
            own if isinstance(own, int) and hasattr(type(self), "_names_exited_process") else self._info.pid
        )

    @property
    def captured(self) -> BaseException | None:
        """The original exception, None where it could not be sent or rebuilt."""
        self._unfold()
        return self._info.captured

    @property
    def __cause__(self) -> BaseException | None:
        """The original, unless it was raised from another one here."""
        cause = _cause_of(self)
        if cause is not None and cause is not self._info.captured:
            return cause
        if sys._getframe(1).f_globals.get("__name__") == "traceback":
            # It prints the frames with the note, and is not to print them twice.
            return None
        return self.captured

    @__cause__.setter
    def __cause__(self, cause: BaseException | None) -> None:
        _cause_slot.__set__(self, cause)

    def _unfold(self) -> None:
        """Makes the tracebacks of the original and its chain, which few ask for, of the frames that came."""
        info = self._info
        if not info.traces:
            return
        with _unfolding:
            for exc, trace in info.traces:
                if exc.__traceback__ is None:
                    _imports.load("_frames").rebuild(exc, trace, place(info.pid, info.host))
            info.traces.clear()

    @property
    def type_name(self) -> str:
        """The name of the original's class, with its module unless it is a built-in."""
        return self._info.type_name

    @property
    def remote_traceback(self) -> str:
        """The traceback in the other process."""
        return self._info.traceback

    @property
    def _info(self) -> _Remote:
        remote: _Remote = self.__dict__["_remote"]
        return remote

    def __str__(self) -> str:
        info = self._info
        if hasattr(type(self), "_stands_for") or not info.type_name:
            return info.text
        return f"{info.type_name}: {info.text}" if info.text else info.type_name

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        head, nodes, buffers = _encode(self._info, _own_notes(self))
        in_band = protocol < 5
        return _decode, (head, nodes, [bytearray(buffer.raw()) if in_band else buffer for buffer in buffers])

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__reduce_ex__(4)

    def __copy__(self) -> RemoteException:
        return _wrap(self._info, _own_notes(self))

    def __deepcopy__(self, memo: Any) -> RemoteException:
        return _wrap(self._info, _own_notes(self))


def remote_exception(
    original: BaseException, pid: int, traceback_text: str, host: str | None = None
) -> RemoteException:
    """Makes the exception to raise for one that was raised in a call.

    Parameters:
        original: the exception, as rebuilt in this process.
        pid: the process where it was raised.
        traceback_text: the traceback there.
        host: the host there.

    Returns:
        An exception of both `RemoteException` and the class of the original, with its attributes; a plain
        `RemoteException` for what is no `Exception`. A `RemoteException` comes back as it is.

    >>> e = remote_exception(KeyError("x"), 3, "")
    >>> isinstance(e, KeyError), str(e), type(e).__name__
    (True, "'x'", 'KeyError')
    """
    if isinstance(original, RemoteException):
        return original
    remote = _Remote(pid, host, name_of(original), text_of(original), traceback_text, original)
    return _wrap(remote, _own_notes(original))


def as_it_is(exc: Exception) -> Exception:
    """Marks an exception of pydist's own, that a call to this process raises it as it is."""
    exc.__dict__["_as_it_is"] = True
    return exc


def local_exception(exc: BaseException, pid: int) -> Exception:
    """Makes the exception that a call to one's own id raises; it looks like one from elsewhere.

    Parameters:
        exc: what the call raised. It and those in its chain lose their tracebacks, which are kept as text.
        pid: the id of this process.

    Returns:
        What `remote_exception` returns; one that was marked by `as_it_is`, itself.

    >>> local_exception(ValueError("bad"), 1)
    ValueError('bad')
    """
    if isinstance(exc, RemoteException):
        return exc
    if isinstance(exc, Exception) and exc.__dict__.pop("_as_it_is", False):
        return exc.with_traceback(None)
    remote = _Remote(pid, this_host(), name_of(exc), text_of(exc), format_traceback(exc, notes=False), exc)
    chain = _chain(exc, limit=1000)
    remote = remote._replace(traces=_traces(chain[:MAX_CHAIN]))
    for each in chain:
        # Not by the attribute: a class may forbid to set any.
        BaseException.__setattr__(each, "__traceback__", None)
    return _wrap(remote, _own_notes(exc))


def _traces(chain: list[BaseException]) -> list[tuple[BaseException, _frames.Trace]]:
    """Describes the tracebacks of the exceptions of a chain."""
    trace_of = _imports.load("_frames").trace_of
    described = ((exc, trace_of(exc)) for exc in chain if exc.__traceback__ is not None or _is_group(exc))
    return [(exc, trace) for exc, trace in described if trace is not None]


def _is_group(exc: BaseException) -> bool:
    return isinstance(exc, BaseExceptionGroup)


_classes: weakref.WeakValueDictionary[type[BaseException], type[RemoteException]] = (
    weakref.WeakValueDictionary()
)


def _class_for(original: type[BaseException]) -> type[RemoteException]:
    """Returns the class that stands for an exception class; raises where Python allows none."""
    cls = _classes.get(original)
    if cls is None:
        namespace = {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "_stands_for": original,
        }
        cls = types.new_class(
            original.__name__, (RemoteException, original), {}, lambda ns: ns.update(namespace)
        )
        _classes[original] = cls
    return cls


def _wrap(remote: _Remote, notes: list[str]) -> RemoteException:
    original = remote.captured
    if isinstance(original, Exception):
        try:
            return _typed(original, remote, notes)
        except BaseException:  # a layout conflict, or the user's metaclass
            pass
    exc = RemoteException.__new__(RemoteException)
    exc._become(remote, notes)
    exc.args = (str(exc),)
    return exc


def _typed(original: Exception, remote: _Remote, notes: list[str]) -> RemoteException:
    cls = _class_for(type(original))
    arguments: tuple[Any, ...] = ()
    if isinstance(original, BaseExceptionGroup):
        arguments = (original.message, original.exceptions)
    exc: Any = solid_base(cls).__new__(cls, *arguments)
    # None means not set, and is not the same as set to None: str(OSError) would print it
    native = {name: value for name, value in native_attributes(original).items() if value is not None}
    restore_exception(exc, (original.args, native, slot_values(original), dict(original.__dict__)))
    RemoteException._become(exc, remote, notes)
    made: RemoteException = exc
    return made


def _own_notes(exc: BaseException) -> list[str]:
    """Returns the notes that users have added."""
    try:
        notes = exc.__dict__.get("__notes__")
        if not isinstance(notes, list | tuple):
            return []
        printed = exc._info.note() if isinstance(exc, RemoteException) else None
        return [note for note in notes if isinstance(note, str) and note != printed]
    except BaseException:
        return []


_Head: TypeAlias = tuple[int, str | None, str, str, str, list[str]]
_Node: TypeAlias = tuple[bytes | None, int, str, str, int, int, bool, "_frames.Trace | None"]


def _neighbours(exc: BaseException) -> Iterator[BaseException]:
    cause = _cause_of(exc)
    if cause is not None and not (isinstance(exc, RemoteException) and cause is exc._info.captured):
        yield cause
    if exc.__context__ is not None:
        yield exc.__context__


def _chain(exc: BaseException, limit: int = MAX_CHAIN) -> list[BaseException]:
    """Lists an exception and those that it came from, each once, the nearest first."""
    found, seen = [exc], {id(exc)}
    for each in found:
        for other in _neighbours(each):
            if id(other) not in seen and len(found) < limit:
                seen.add(id(other))
                found.append(other)
    return found


def _dump_original(exc: BaseException) -> tuple[bytes, list[pickle.PickleBuffer]] | None:
    """Pickles an exception; in a group, puts a text in place of a member that cannot be pickled."""
    dumped = _serialize.dump_if_possible(exc)
    if dumped is None and isinstance(exc, BaseExceptionGroup):
        try:
            group = exc.derive([_stand_in(member) for member in exc.exceptions])
            if type(group) is not type(exc):
                return None
            group.__dict__.update(exc.__dict__)
            dumped = _serialize.dump_if_possible(group)
        except BaseException:
            return None
    return dumped


def _stand_in(exc: BaseException) -> BaseException:
    with _serialize.collect_refs():
        if _serialize.dump_if_possible(exc) is not None:
            return exc
    return _wrap(_Remote(0, None, name_of(exc), text_of(exc), ""), [])


def _encode(remote: _Remote, notes: list[str]) -> tuple[_Head, list[_Node], list[Any]]:
    """Makes the parts that are sent; the references in them go to the dumps that is under way."""
    head: _Head = (remote.pid, remote.host, remote.type_name, remote.text, remote.traceback, notes)
    nodes: list[_Node] = []
    buffers: list[Any] = []
    chain = _chain(remote.captured) if remote.captured is not None else []
    index = {id(exc): i for i, exc in enumerate(chain)}
    traces = {id(exc): trace for exc, trace in [*remote.traces, *_traces(chain)]}
    for exc in chain:
        data, own = _dump_original(exc) or (None, [])
        buffers.extend(own)
        cause, context = (index.get(id(other), -1) for other in (_cause_of(exc), exc.__context__))
        suppress, trace = exc.__suppress_context__, traces.get(id(exc))
        nodes.append((data, len(own), name_of(exc), text_of(exc), cause, context, suppress, trace))
    return head, nodes, buffers


def _decode(head: _Head, nodes: list[_Node], buffers: list[Any]) -> RemoteException:
    """Makes the exception to raise of what `_encode` made."""
    pid, host, type_name, text, traceback_text, notes = head
    loaded: list[BaseException | None] = []
    first = 0
    for data, count, *_ in nodes:
        loaded.append(None if data is None else _load_original(data, buffers[first : first + count]))
        first += count
    captured = loaded[0] if loaded else None
    traces = []
    if captured is not None:
        chain = [
            exc if exc is not None else _wrap(_Remote(pid, host, node[2], node[3], ""), [])
            for exc, node in zip(loaded, nodes, strict=True)
        ]
        for exc, (*_, cause, context, suppress, trace) in zip(chain, nodes, strict=True):
            if cause >= 0:
                object.__setattr__(exc, "__cause__", chain[cause])
            if context >= 0:
                object.__setattr__(exc, "__context__", chain[context])
            object.__setattr__(exc, "__suppress_context__", suppress)
            if trace is not None:
                traces.append((exc, trace))
    return _wrap(_Remote(pid, host, type_name, text, traceback_text, captured, traces), notes)


def _load_original(data: bytes, buffers: list[Any]) -> BaseException | None:
    try:
        exc = _serialize.loads(data, buffers)
    except BaseException:
        return None
    return exc if isinstance(exc, BaseException) else None


def _note_missing_module(exc: BaseException, pid: int) -> None:
    """Adds to an error of an import where the module is missing, and how it gets there."""
    if not isinstance(exc, ModuleNotFoundError) or not isinstance(exc.name, str):
        return
    who, host = "process" if pid == 1 else "worker", this_host()
    note = f"{who} {pid}{f' (host {host})' if host else ''} has no module {exc.name!r}"
    if pid != 1:
        note += f"; install it there, or send yours: pydist.upload({exc.name.partition('.')[0]!r}, {pid})"
    if note not in getattr(exc, "__notes__", ()):
        exc.add_note(note)


def dump_exception(
    exc: BaseException, pid: int
) -> tuple[bytes, list[pickle.PickleBuffer], list[_serialize.Ref]]:
    """Pickles an exception for another process; never raises, whatever the exception is.

    Parameters:
        exc: the exception.
        pid: the id of this process. A `RemoteException` keeps the one where it was first raised.

    Returns:
        What `_serialize.dumps` returns.

    Distributed.jl: `serialize` of a `CapturedException`.

    >>> data, buffers, refs = dump_exception(ValueError("bad"), 2)
    >>> load_exception(data, buffers)
    ValueError('bad')
    """
    try:
        with _serialize.collect_refs() as refs:
            if isinstance(exc, RemoteException):
                remote = exc._info
                if remote.traceback:
                    remote = remote._replace(
                        traceback=shorten(remote.traceback.rstrip() + "\n" + passage(exc, pid))
                    )
            else:
                _note_missing_module(exc, pid)
                remote = _Remote(
                    pid, this_host(), name_of(exc), text_of(exc), format_traceback(exc, notes=False), exc
                )
            head, nodes, buffers = _encode(remote, _own_notes(exc))
            return pickle.dumps((head, nodes), 5), buffers, refs
    except BaseException as error:
        name, why = (
            type.__getattribute__(type(exc), "__name__"),
            type.__getattribute__(type(error), "__name__"),
        )
        text = f"<it could not be described: {why}>"
        if type.__getattribute__(type(exc), "__module__") == "builtins":
            # Such as the error of a process without descriptors, which cannot import what else is needed.
            text = text_of(exc)
        return pickle.dumps(((pid, None, name, text, f"{name}: {text}\n", []), []), 5), [], []


def load_exception(data: Any, buffers: Any = ()) -> BaseException:
    """Makes the exception to raise of what `dump_exception` made; never raises.

    Parameters:
        data: the pickle, bytes-like.
        buffers: the buffers beside it.

    Returns:
        What `remote_exception` returns for the original; where that cannot be rebuilt here, a plain
        `RemoteException` with the name of its type, its text and its traceback.

    >>> load_exception(b"broken").type_name
    '_pickle.UnpicklingError'
    """
    try:
        head, nodes = pickle.loads(data)
        return _decode(head, nodes, list(buffers))
    except BaseException as error:
        return _wrap(
            _Remote(0, None, name_of(error), f"an error could not be read: {text_of(error)}", ""), []
        )
