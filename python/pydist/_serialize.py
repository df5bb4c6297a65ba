"""Pickling of calls and values: what can go by name does, the rest goes by value, buffers go out of band.

Calls and values that consist of importable functions and plain data take a short way through the C pickler.
All others go through a subclass of cloudpickle's. Either way the result is a protocol 5 pickle, the buffers
that travel beside it, and the references to futures and channels in it.
"""

from __future__ import annotations

import contextlib
import importlib
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from pydist import _imports, _interrupts
from pydist._plain import (
    ARRAYS,
    ATOMS,
    LARGE_BYTES,
    learn_numpy,
    load_named,
    name_opcodes,
    number_opcodes,
    plainness,
    remember_named,
)
from pydist._reducers import Raw

if TYPE_CHECKING:
    from pydist._pickler import Pickler

Ref: TypeAlias = tuple[int, int, int]
Dumped: TypeAlias = tuple[bytes, list[pickle.PickleBuffer], list[Ref]]


class PicklingError(pickle.PicklingError, TypeError):
    """Something cannot be pickled; the message names the path to it, such as `args[0]['lock']`.

    It is a `TypeError` too, as that is what pickle raises for many objects.

    Attributes:
        path: where the culprit is, as in the message.
    """

    path: str = ""


class ByValueError(BaseException):
    """A function or class among the arguments of a call goes by value, where that was not wanted."""


class Refs(list[Ref]):
    """The references that a pickle names; as long as it lives, their owners keep them for this process."""

    __slots__ = ("pins",)

    def __init__(self) -> None:
        super().__init__()
        self.pins: list[Any] = []


class _State(threading.local):
    """What is under way on this thread: the references of the innermost dumps, and whether it is a loads."""

    refs: Refs | None = None
    loading: bool = False


_state = _State()
_run: Callable[[Any, bool], tuple[bytes, Pickler]] | None = None


def note_ref(owner: int, whence: int, id: int, pin: Any = None) -> bool:
    """Records a reference met while pickling.

    Parameters:
        owner: the process that keeps the value.
        whence: the process that made the reference.
        id: its number there.
        pin: what keeps the value until the pickle has been sent.

    Returns:
        Whether a dumps of pydist is under way on this thread; if not, the reference leaves the cluster.

    >>> note_ref(1, 1, 7)
    False
    """
    refs = _state.refs
    if refs is None:
        return False
    refs.append((owner, whence, id))
    if pin is not None:
        refs.pins.append(pin)
    return True


def dumping() -> bool:
    """Says whether a dumps of pydist is under way on this thread.

    >>> dumping()
    False
    """
    return _state.refs is not None


def loading() -> bool:
    """Says whether a loads of pydist is under way on this thread.

    >>> loading()
    False
    """
    return _state.loading


def register_by_value(module: types.ModuleType | str) -> None:
    """Sends the functions and classes of a module by value, so that workers need not have it.

    Parameters:
        module: the module, or its name.

    Raises:
        TypeError: it is neither.
        ImportError: there is no module of that name.

    >>> import json
    >>> register_by_value(json); unregister_by_value("json")
    """
    import cloudpickle.cloudpickle  # type: ignore[import-untyped, unused-ignore]

    cloudpickle.register_pickle_by_value(_module(module))


def unregister_by_value(module: types.ModuleType | str) -> None:
    """Takes `register_by_value` back.

    Parameters:
        module: the module, or its name.

    Raises:
        TypeError: it is neither.
        ValueError: it is not registered.
    """
    import cloudpickle.cloudpickle

    cloudpickle.unregister_pickle_by_value(_module(module))


def _module(module: types.ModuleType | str) -> types.ModuleType:
    if isinstance(module, types.ModuleType):
        return module
    if isinstance(module, str):
        return importlib.import_module(module)
    raise TypeError(f"expected a module or its name, got {type(module).__name__}")


def dump(obj: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickles an object the general way, into the dumps that is under way on this thread, if any.

    Parameters:
        obj: what to pickle.

    Returns:
        The pickle and its buffers. Errors come as pickle raises them.
    """
    data, pickler = _run_pickler(obj)
    return data, pickler.buffers


def _run_pickler(obj: Any, by_value: bool = True) -> tuple[bytes, Pickler]:
    # With it comes cloudpickle, which a process that makes calls by name alone has no use for.
    global _run
    if _run is None:
        _run = _imports.load("_pickler").run
    return _run(obj, by_value)


@contextlib.contextmanager
def collect_refs() -> Iterator[list[Ref]]:
    """Makes a dumps be under way on this thread, and gives the list of the references met in it."""
    saved = _state.refs, _state.loading
    refs = Refs()
    _state.refs, _state.loading = refs, False
    try:
        yield refs
    finally:
        _state.refs, _state.loading = saved


def dump_if_possible(obj: Any) -> tuple[bytes, list[pickle.PickleBuffer]] | None:
    """Does what `dump` does, or returns None; then it leaves no references behind."""
    refs = _state.refs
    before = len(refs) if refs is not None else 0
    try:
        return dump(obj)
    except BaseException:
        if refs is not None:
            del refs[before:]
        return None


def _probe(obj: Any) -> BaseException | None:
    """Returns the error that pickling an object gives, None where it succeeds."""
    try:
        with collect_refs():
            dump(obj)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


def _explain(error: BaseException, roots: list[tuple[str, Any]]) -> BaseException:
    """Returns the error to raise instead of one that pickling gave, with the path to the culprit."""
    if isinstance(error, RecursionError):
        failing = (path for path, value in roots if isinstance(_probe(value), RecursionError))
        return RecursionError(f"cannot pickle {next(failing, 'the call')}: it is nested too deeply ({error})")
    from pydist import _pickle_path

    found = _pickle_path.find(roots, _probe)
    explained = PicklingError(_pickle_path.message(found, error, roots))
    explained.path = found.path if found is not None else ""
    return explained


def outer(value: Any) -> Any:
    """Returns what to pickle in place of an argument or result that pickle would copy, or refuse."""
    cls = type(value)
    if cls is bytes or cls is bytearray:
        return Raw(value) if len(value) >= LARGE_BYTES else value
    if cls is pickle.PickleBuffer and not memoryview(value).contiguous:
        return pickle.PickleBuffer(bytearray(value))
    return value


def in_buffer(data: bytes) -> Any:
    """Returns what to put for a pickle within another one: a long one travels as a buffer."""
    return pickle.PickleBuffer(data) if len(data) >= LARGE_BYTES else data


def _dump_rooted(
    obj: Any, roots: Callable[[], list[tuple[str, Any]]], *, warn: bool = True, by_value: bool = True
) -> Dumped:
    """Pickles the general way; `roots` gives the names of the parts, for an error."""
    state = _state
    saved = state.refs, state.loading
    refs = Refs()
    state.refs, state.loading = refs, False
    try:
        data, pickler = _run_pickler(obj, by_value)
    except (KeyboardInterrupt, MemoryError, ByValueError):
        raise
    except BaseException as error:
        if _interrupts.leaving() and isinstance(error, SystemExit):
            raise
        raise _explain(error, roots()) from error
    finally:
        state.refs, state.loading = saved
    learn_numpy()
    if pickler.captures and warn:
        from pydist._captures import warn_large_captures

        warn_large_captures(pickler.captures)
    return data, pickler.buffers, refs


def dumps_call(
    f: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    opcodes: bytes | None = None,
    *,
    by_value: bool = True,
) -> Dumped:
    """Pickles a call, as the tuple `(f, args, kwargs)`.

    A bytearray of 64 KiB or more that is itself an argument travels as a buffer; one that is also inside
    another argument arrives twice.

    Parameters:
        f: the function; by name where it is importable, else by value.
        args: its positional arguments.
        kwargs: its keyword arguments.
        opcodes: what loads `f`, where the caller knows.
        by_value: whether functions and classes may go by value.

    Returns:
        The pickle, the buffers beside it, and the references to futures and channels in it.

    Raises:
        pickle.PicklingError: something in it cannot be pickled; the message names the path to it.
        RecursionError: it is nested too deeply.
        ByValueError: a function or class would go by value, and may not.

    Distributed.jl: `serialize` of a `CallMsg`.

    >>> import operator
    >>> data, buffers, refs = dumps_call(operator.add, (1, 2), {})
    >>> f, args, kwargs = loads(data, buffers)
    >>> f(*args, **kwargs)
    3
    """
    kind = plainness(args)
    if kind and (not kwargs or plainness(kwargs)):
        opcodes = opcodes or name_opcodes(f)
        if opcodes is not None:
            if kind == ATOMS and not kwargs:
                data = pickle.dumps(args, 5)
                if len(data) < LARGE_BYTES:
                    return with_function(opcodes, data), [], []
            buffers: list[pickle.PickleBuffer] = []
            return pickle.dumps((f, args, kwargs), 5, buffer_callback=buffers.append), buffers, []
    call = (f, tuple(map(outer, args)), {name: outer(value) for name, value in kwargs.items()})
    return _dump_rooted(
        call,
        lambda: [
            ("f", f),
            *((f"args[{i}]", value) for i, value in enumerate(args)),
            *((f"kwargs[{name!r}]", value) for name, value in kwargs.items()),
        ],
        by_value=by_value,
    )


def with_function(opcodes: bytes, data: bytes) -> bytes:
    """Makes the pickle of a call of the opcodes of its function and the pickle of its arguments."""
    # PROTO, and FRAME with its length, at the front; STOP at the end
    body = data[11:-1] if data[2] == 0x95 else data[2:-1]
    return b"\x80\x05" + opcodes + body + b"}\x87."


def open_call(opcodes: bytes, *args: int) -> bytes:
    """Begins the pickle of a call with its first arguments: more, and the end of the call, are to follow."""
    return b"\x80\x05" + opcodes + b"(" + b"".join(map(number_opcodes, args))


def dumps(value: Any, *, root: str = "value", warn: bool = True) -> Dumped:
    """Pickles a value.

    Parameters:
        value: what to pickle.
        root: what it is called in the path of an error, such as "result".
        warn: whether to warn about functions that take large variables along.

    Returns:
        The pickle, the buffers beside it, and the references to futures and channels in it.

    Raises:
        pickle.PicklingError: something in it cannot be pickled; the message names the path to it.
        RecursionError: it is nested too deeply.

    >>> data, buffers, refs = dumps({"a": [1, 2]})
    >>> loads(data, buffers)
    {'a': [1, 2]}
    """
    kind = plainness(value)
    if kind == ATOMS:
        return pickle.dumps(value, 5), [], []
    if kind == ARRAYS:
        buffers: list[pickle.PickleBuffer] = []
        return pickle.dumps(value, 5, buffer_callback=buffers.append), buffers, []
    return _dump_rooted(outer(value), lambda: [(root, value)], warn=warn)


def loads(data: Any, buffers: Iterable[Any] = ()) -> Any:
    """Unpickles what `dumps` or `dumps_call` made.

    Parameters:
        data: the pickle, bytes-like.
        buffers: the buffers beside it; arrays lie in them, and are writable where they are.

    Returns:
        The value; for a call the tuple `(f, args, kwargs)`.

    Raises:
        BaseException: whatever unpickling raises. A missing module is named, with the `sys.path` here.

    >>> loads(dumps(7)[0])
    7
    """
    state = _state
    saved = state.refs, state.loading
    state.refs, state.loading = None, True
    try:
        return pickle.loads(data, buffers=buffers)
    except ModuleNotFoundError as error:
        error.add_note(
            f"the module {error.name!r} could not be imported on this process; its sys.path is {sys.path}"
        )
        raise
    finally:
        state.refs, state.loading = saved


def loads_call(data: Any, buffers: Iterable[Any] = ()) -> tuple[Any, Any, Any]:
    """Unpickles what `dumps_call` made, quickly where the function has come by its name before.

    Parameters:
        data: the pickle, bytes-like.
        buffers: the buffers beside it.

    Returns:
        The tuple `(f, args, kwargs)`.

    Raises:
        BaseException: what `loads` raises.

    >>> loads_call(dumps_call(len, ("ab",), {})[0])
    (<built-in function len>, ('ab',), {})
    """
    call: tuple[Any, Any, Any] | None = load_named(data)
    if call is None:
        call = loads(data, buffers)
        remember_named(data, call[0])
    return call
