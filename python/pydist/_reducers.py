"""How objects are taken apart that plain pickle sends badly or not at all, and put together again.

A reducer gets the pickler and the object; it returns what `__reduce_ex__` would, or `NotImplemented` to leave
the object to pickle. The functions that rebuild (`build_*`) are called by name while unpickling: they are a
part of the wire.
"""

from __future__ import annotations

import copyreg
import functools
import pickle
import struct
import sys
import types
import typing
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pydist._source_lines import Source

MAIN_MODULES = ("__main__", "__mp_main__")
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE


class PicklerLike(Protocol):
    """What a reducer needs of the pickler."""

    nested_codes: set[int]

    def reduce_by_value(self, obj: Any) -> Any:
        """Reduces a function or a class that does not go by name."""

    def keep_in_band(self, nbytes: int) -> bool:
        """Says whether a buffer of this size goes into the stream, because there are very many."""


Reducer = Callable[[PicklerLike, Any], Any]


def by_name(obj: Any) -> bool:
    """Says whether another process finds this function or class under its module and qualified name."""
    module = getattr(obj, "__module__", None)
    name = getattr(obj, "__qualname__", None)
    if type(module) is not str or type(name) is not str or module == "__main__":
        return False
    found: Any = sys.modules.get(module)
    if found is None:
        return False
    if module == "__mp_main__":  # a child of multiprocessing runs the user's script under this name
        _cloudpickle().register_pickle_by_value(found)
        return False
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError:
        return False
    return found is obj and not registered_by_value(module)


def _cloudpickle() -> Any:
    import cloudpickle.cloudpickle  # type: ignore[import-untyped, unused-ignore]

    return cloudpickle


def modules_by_value() -> set[str]:
    """Returns the names of the modules that are registered to be sent by value."""
    # Where cloudpickle has not been imported, or is just being, nothing is registered.
    list_registry = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    found: set[str] = set() if list_registry is None else list_registry()
    return found


def registered_by_value(module: str) -> bool:
    """Says whether this module, or a package that it is in, is sent by value."""
    registry = modules_by_value()
    if not registry:
        return False
    parts = module.split(".")
    return any(".".join(parts[:n]) in registry for n in range(1, len(parts) + 1))


def global_names(code: types.CodeType) -> Iterator[str]:
    """Yields the names of the globals that a code object, or one nested in it, uses."""
    import dis

    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from global_names(constant)


def reducer_for(cls: type) -> Reducer | None:
    """Returns the reducer for instances of a type, None where pickle itself does it well."""
    if cls is types.FunctionType:
        return reduce_function
    if issubclass(cls, type):
        return reduce_class
    if cls is Raw:
        return reduce_raw
    if issubclass(cls, BaseException) and not _is_registered(cls):
        return reduce_exception if has_default_reduce(cls) else None
    if cls in copyreg.dispatch_table:
        return None
    if cls in _BY_TYPE:
        return _BY_TYPE[cls]
    if cls in _cloudpickle().Pickler.dispatch_table:
        return None
    numpy = sys.modules.get("numpy")
    ndarray = getattr(numpy, "ndarray", None)
    if ndarray is not None and issubclass(cls, ndarray):
        same = all(
            getattr(cls, name) is getattr(ndarray, name)
            for name in ("__reduce__", "__reduce_ex__", "__setstate__")
        )
        return reduce_array if same else None
    if cls.__module__ in MAIN_MODULES and defines_reduce(cls):
        return reduce_main_instance
    return None


def defines_reduce(cls: Any) -> bool:
    """Says whether a class defines how it is pickled."""
    return cls.__reduce_ex__ is not object.__reduce_ex__ or cls.__reduce__ is not object.__reduce__


def reduce_function(pickler: PicklerLike, function: Any) -> Any:
    """Leaves an importable function to its name; sends any other by value."""
    return NotImplemented if by_name(function) else pickler.reduce_by_value(function)


def reduce_class(pickler: PicklerLike, cls: Any) -> Any:
    """Leaves an importable class to its name; sends any other by value."""
    if by_name(cls):
        return NotImplemented
    from pydist import _classes

    return _classes.reduce_by_value(cls, pickler.reduce_by_value(cls))


def reduce_code(pickler: PicklerLike, code: types.CodeType) -> Any:
    """Sends the file name and lines along with code, for tracebacks; nested code has its lines from it."""
    from pydist._source_lines import nested, source_of

    source = None
    if id(code) not in pickler.nested_codes and (source := source_of(code)) is not None:
        pickler.nested_codes.update(map(id, nested(code)))
    make, arguments = _cloudpickle().Pickler.dispatch_table[types.CodeType](code)
    return build_code, (code.co_filename, source, make, arguments)


def build_code(
    filename: str, source: Source | None, make: Callable[..., types.CodeType], arguments: tuple[Any, ...]
) -> types.CodeType:
    """Makes the code object, and lets tracebacks find its lines."""
    if source is not None:
        from pydist._source_lines import register

        register(filename, source)
    code = make(*arguments)
    # Some versions of cloudpickle leave the name of the file out.
    return code if code.co_filename == filename else code.replace(co_filename=filename)


def reduce_method(pickler: PicklerLike, method: Any) -> Any:
    """Sends a class method of an importable class by name: its function cannot be found under its own."""
    owner, name = method.__self__, getattr(method.__func__, "__name__", None)
    if (
        isinstance(owner, type)
        and type(name) is str
        and by_name(owner)
        and getattr(owner, name, None) == method
    ):
        return getattr, (owner, name)
    return NotImplemented


def reduce_cached_function(pickler: PicklerLike, function: Any) -> Any:
    """Sends an `lru_cache` function that is not importable as the function in it, with an empty cache."""
    if by_name(function):
        return NotImplemented
    parameters = function.cache_parameters()
    return build_cached_function, (function.__wrapped__, parameters["maxsize"], parameters["typed"])


def build_cached_function(function: Callable[..., Any], maxsize: int | None, typed: bool) -> Any:
    """Puts a function back into an `lru_cache`."""
    return functools.lru_cache(maxsize=maxsize, typed=typed)(function)


def reduce_new_type(pickler: PicklerLike, new_type: Any) -> Any:
    """Sends a `NewType` of `__main__` by value."""
    if new_type.__module__ not in MAIN_MODULES:
        return NotImplemented
    return typing.NewType, (new_type.__name__, new_type.__supertype__)


def reduce_type_parameter(pickler: PicklerLike, parameter: Any) -> Any:
    """Sends a `ParamSpec` or `TypeVarTuple` of `__main__` by value."""
    if parameter.__module__ not in MAIN_MODULES:
        return NotImplemented
    return type(parameter), (parameter.__name__,)


def reduce_main_instance(pickler: PicklerLike, obj: Any) -> Any:
    """Refuses an instance whose `__reduce__` says that it is a global of `__main__`, unknown elsewhere."""
    reduced = obj.__reduce_ex__(5)
    if isinstance(reduced, str):
        raise pickle.PicklingError(
            f"its __reduce__ refers to {type(obj).__module__}.{reduced} by name, "
            "which other processes do not have: define it in a module"
        )
    return reduced


class Raw:
    """Large bytes or a bytearray that travels as a buffer instead of in the stream."""

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = value


def reduce_raw(pickler: PicklerLike, raw: Raw) -> Any:
    """Sends the bytes out of band; the receiver copies them into an object of the same type."""
    return type(raw.value), (pickle.PickleBuffer(raw.value),)


class _Lent:
    """Shows the memory of a read-only array as writable, so that it arrives so. Nothing writes to it here."""

    def __init__(self, array: Any) -> None:
        self.owner = array
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (array.nbytes,),
            "data": (array.__array_interface__["data"][0], False),
        }

    def view(self) -> Any:
        """Returns the array that seems writable."""
        import numpy as np

        return np.asarray(self)


def reduce_array(pickler: PicklerLike, array: Any) -> Any:
    """Sends the memory of a NumPy array out of band, unless it holds objects."""
    import numpy as np

    dtype, cls = array.dtype, type(array)
    if dtype.hasobject or not dtype.itemsize or dtype.char == "T":
        return NotImplemented
    if cls is not np.ndarray:
        array = array.view(np.ndarray)
    flags = array.flags
    if not flags.forc:
        array = np.ascontiguousarray(array)
        flags = array.flags
    order = "C" if flags.c_contiguous else "F"
    memory: Any
    if pickler.keep_in_band(array.nbytes):
        memory = bytearray(array.tobytes("A"))
    elif not flags.writeable:
        memory = pickle.PickleBuffer(_Lent(array).view())
    elif dtype.isbuiltin == 1:
        memory = pickle.PickleBuffer(array)
    else:  # datetime64 and others that the buffer protocol does not know
        memory = pickle.PickleBuffer(array.reshape(-1, order="A").view(np.uint8))
    arguments = (memory, dtype, array.shape, order)
    return build_array, arguments if cls is np.ndarray else (*arguments, cls)


def build_array(memory: Any, dtype: Any, shape: tuple[int, ...], order: Any, cls: Any = None) -> Any:
    """Makes the array over the buffer that arrived."""
    import numpy as np

    if cls is None:
        return np.ndarray(shape, dtype, memory, order=order)
    return np.ndarray.__new__(cls, shape, dtype, memory, order=order)


def _native_format(view: memoryview) -> str | None:
    """Returns the one-letter native format that means the same as a view's, None where there is none."""
    letter = view.format.lstrip("@=<" if sys.byteorder == "little" else "@=>!")
    if len(letter) == 1 and letter in "bBhHiIlLqQnNfd?cP" and struct.calcsize(letter) == view.itemsize:
        return letter
    return None


def reduce_memoryview(pickler: PicklerLike, view: memoryview) -> Any:
    """Sends the memory out of band; a view of the same format and shape over private memory arrives."""
    letter = _native_format(view)
    if letter is None or not view.nbytes:
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            return memoryview, (numpy.asarray(view),)
        if letter is None:
            raise pickle.PicklingError(f"cannot pickle a memoryview of format {view.format!r} without NumPy")
    memory = view if view.c_contiguous else bytearray(view)
    if pickler.keep_in_band(view.nbytes):
        return build_memoryview, (bytearray(memory), letter, view.shape)
    return build_memoryview, (pickle.PickleBuffer(memory), letter, view.shape)


def build_memoryview(memory: Any, letter: str, shape: tuple[int, ...]) -> memoryview:
    """Makes the view over the buffer that arrived, writable also where the original was not."""
    view = memoryview(memory)
    if view.readonly:
        whole = memoryview(view.obj)
        same = whole.nbytes == view.nbytes and whole.c_contiguous and not whole.readonly
        view = whole if same else memoryview(bytearray(view))
    if view.ndim != 1 or view.format != "B":
        view = view.cast("B")
    if 0 in shape or (letter == "B" and len(shape) == 1):
        return view
    # mypy knows shapes of at most four dimensions
    return typing.cast(memoryview, view.cast(letter, shape=shape))  # type: ignore[call-overload]


def solid_base(cls: type[BaseException]) -> type[BaseException]:
    """Returns the class in C whose memory layout an exception class has, and whose `__new__` makes it."""
    base: Any = cls
    while base.__flags__ & _HEAP_TYPE:
        base = base.__base__
    found: type[BaseException] = base
    return found


def _is_registered(cls: type[BaseException]) -> bool:
    """Whether the user has registered how a class is pickled; tblib does so for all classes there are."""
    reducer = copyreg.dispatch_table.get(cls)
    return reducer is not None and getattr(reducer, "__module__", "") != "tblib.pickling_support"


def has_default_reduce(cls: type[BaseException]) -> bool:
    """Says whether no Python class among an exception's bases defines how it is pickled."""
    names = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    return not any(
        base.__flags__ & _HEAP_TYPE and any(name in base.__dict__ for name in names) for base in cls.__mro__
    )


def native_attributes(exc: BaseException) -> dict[str, Any]:
    """Returns the attributes that an exception keeps in its C structure (`errno`, `name`, `value`, …)."""
    found: dict[str, Any] = {}
    for base in type(exc).__mro__:
        if base.__flags__ & _HEAP_TYPE or base in (BaseException, object):
            continue
        for name, descriptor in base.__dict__.items():
            if isinstance(descriptor, types.GetSetDescriptorType | types.MemberDescriptorType):
                try:
                    found[name] = descriptor.__get__(exc)
                except Exception:
                    continue
    return found


def slot_values(exc: BaseException) -> dict[str, Any]:
    """Returns what an exception keeps in `__slots__`."""
    names: list[str] = copyreg._slotnames(type(exc))  # type: ignore[attr-defined]
    return {name: getattr(exc, name) for name in names if hasattr(exc, name)}


def reduce_exception(pickler: PicklerLike, exc: BaseException) -> Any:
    """Sends an exception as class, arguments and attributes, so that its `__init__` need not be called again.

    `AttributeError.obj` and `NameError.obj` stay here, as in CPython 3.12: they may be anything, of any size.
    """
    native = native_attributes(exc)
    native.pop("obj", None)
    arguments: tuple[Any, ...] = (type(exc),)
    if isinstance(exc, BaseExceptionGroup):
        arguments += (native.pop("message"), native.pop("exceptions"))
    native = {name: value for name, value in native.items() if value is not None}
    state = (exc.args, native, slot_values(exc), dict(exc.__dict__))
    return build_exception, arguments, state, None, None, restore_exception


def build_exception(cls: type[BaseException], *arguments: Any) -> BaseException:
    """Makes an exception without calling its `__init__`, or a `__new__` written in Python."""
    made: BaseException = solid_base(cls).__new__(cls, *arguments)
    return made


def restore_exception(
    exc: BaseException, state: tuple[Any, dict[str, Any], dict[str, Any], dict[str, Any]]
) -> None:
    """Gives a made exception its arguments and attributes."""
    args, native, slots, attributes = state
    exc.args = args
    for name, value in {**native, **slots}.items():
        try:
            object.__setattr__(exc, name, value)
        except (AttributeError, TypeError):  # read-only, like the exceptions of a group
            continue
    exc.__dict__.update(attributes)


_BY_TYPE: dict[type, Reducer] = {
    types.CodeType: reduce_code,
    types.MethodType: reduce_method,
    memoryview: reduce_memoryview,
    type(functools.lru_cache(len)): reduce_cached_function,
    typing.NewType: reduce_new_type,
    typing.ParamSpec: reduce_type_parameter,
    typing.TypeVarTuple: reduce_type_parameter,
}
