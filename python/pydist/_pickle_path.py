"""The search for the object that keeps a value from being pickled, and the path to it.

It runs only after a failure, so that the usual way pays nothing for it. It goes down from the value through
whatever the pickler would go through, always into the first part that fails by itself, and stops where no
part does.
"""

from __future__ import annotations

import copyreg
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydist._reducers import by_name, defines_reduce, global_names

Probe: TypeAlias = Callable[[Any], BaseException | None]
Child: TypeAlias = tuple[str, Any]

MAX_DEPTH = 50
MAX_PROBES = 10_000


@dataclass
class Found:
    """The culprit: where it is, what it is, and the error that pickling it alone gives."""

    path: str
    value: Any
    error: BaseException


def find(roots: list[Child], probe: Probe) -> Found | None:
    """Searches the culprit.

    Parameters:
        roots: the paths and values to begin with.
        probe: returns the error that pickling an object gives, or None.

    Returns:
        The deepest failing object on the first failing path, None where each root can be pickled by itself.
    """
    search = _Search(probe)
    found = search.first(roots)
    if found is None:
        return None
    seen = {id(found.value)}
    for _ in range(MAX_DEPTH):
        try:
            deeper = next((f for group in _groups(found.value) if (f := search.first(group))), None)
        except KeyboardInterrupt:
            raise
        except BaseException:  # a user's __reduce__ or __getattr__, called here once more
            break
        if deeper is None or id(deeper.value) in seen:
            break
        seen.add(id(deeper.value))
        found = Found(found.path + deeper.path, deeper.value, deeper.error)
    return found


def message(found: Found | None, error: BaseException, roots: list[Child]) -> str:
    """Returns the text of the error: path, object and reason."""
    if found is None:
        names = ", ".join(path for path, _ in roots[:3])
        return f"cannot pickle {names}: {_reason(error)}"
    return f"cannot pickle {found.path}: {describe(found.value)} ({_reason(found.error)})"


def describe(value: Any) -> str:
    """Returns what an object is, without calling its own `__repr__`."""
    cls = type(value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        kind = "class" if isinstance(value, type) else "function"
        return f"the {kind} {_qualified(value)}"
    if isinstance(value, types.ModuleType):
        return f"the module {value.__name__}"
    name = _qualified(cls)
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name} object"


def _qualified(obj: Any) -> str:
    module = getattr(obj, "__module__", None)
    name = getattr(obj, "__qualname__", None) or type(obj).__qualname__
    return name if module in (None, "builtins") else f"{module}.{name}"


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    name = type(error).__name__
    return f"{name}: {text}" if text else name


class _Search:
    """Probes objects, at most `MAX_PROBES` times."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.left = MAX_PROBES

    def _error(self, value: Any) -> BaseException | None:
        if self.left <= 0:
            return None
        self.left -= 1
        return self.probe(value)

    def first(self, children: list[Child]) -> Found | None:
        """Returns the first of the children that fails by itself, found by halving."""
        low, high = 0, len(children)
        if high == 0:
            return None
        if high > 1 and self._error([value for _, value in children]) is None:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._error([value for _, value in children[low:middle]]) is not None:
                high = middle
            else:
                low = middle
        path, value = children[low]
        error = self._error(value)
        return None if error is None else Found(path, value, error)


def _groups(value: Any) -> Iterator[list[Child]]:
    """Yields lists of the parts of an object, those with the best names first."""
    if isinstance(value, types.FunctionType):
        if not by_name(value):
            yield list(_function_parts(value))
        return
    if isinstance(value, type):
        if not by_name(value):
            yield [
                (f".{name}", part)
                for name, part in vars(value).items()
                if name not in ("__dict__", "__weakref__")
            ]
            yield [(".__bases__", base) for base in value.__bases__]
        return
    yield list(_known_parts(value))
    if _refuses(value):
        return
    yield list(_attributes(value))
    yield list(_reduced_parts(value))


def _refuses(value: Any) -> bool:
    """Says whether an object itself raises when it is asked how it is pickled, whatever it consists of."""
    if not defines_reduce(type(value)):
        return False
    try:
        value.__reduce_ex__(5)
    except Exception:
        return True
    return False


def _function_parts(f: types.FunctionType) -> Iterator[Child]:
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=False):
        try:
            yield f".<closure {name!r}>", cell.cell_contents
        except ValueError:
            continue
    for name in dict.fromkeys(global_names(f.__code__)):
        if name in f.__globals__:
            yield f".<global {name!r}>", f.__globals__[name]
    for i, default in enumerate(f.__defaults__ or ()):
        yield f".__defaults__[{i}]", default
    for name, default in (f.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", default
    for name, annotation in f.__annotations__.items():
        yield f".__annotations__[{name!r}]", annotation
    for name, attribute in f.__dict__.items():
        yield f".{name}", attribute


def _known_parts(value: Any) -> Iterator[Child]:
    """The items of containers and the parts of the usual wrappers of functions."""
    if isinstance(value, tuple) and isinstance(fields := getattr(value, "_fields", None), tuple):
        yield from ((f".{name}", item) for name, item in zip(fields, value, strict=False))
    elif isinstance(value, list | tuple):
        yield from ((f"[{i}]", item) for i, item in enumerate(value))
    elif isinstance(value, dict | types.MappingProxyType):
        yield from ((f"[{_key(key)}]", item) for key, item in dict.items(dict(value)))
        yield from ((f".<key {_key(key)}>", key) for key in dict(value))
    elif isinstance(value, set | frozenset):
        yield from ((f".<item {_key(item)}>", item) for item in value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from ((f".args[{i}]", item) for i, item in enumerate(value.args))
        yield from ((f".keywords[{name!r}]", item) for name, item in value.keywords.items())
    elif isinstance(value, staticmethod | classmethod):
        yield ".__func__", value.__func__
    elif isinstance(value, property):
        yield from ((f".{name}", getattr(value, name)) for name in ("fget", "fset", "fdel"))
    elif isinstance(value, BaseException):
        yield from ((f".args[{i}]", item) for i, item in enumerate(value.args))
        if isinstance(value, BaseExceptionGroup):
            yield from ((f".exceptions[{i}]", item) for i, item in enumerate(value.exceptions))
    elif type(value).__module__ == "numpy" and type(value).__name__ == "ndarray" and value.dtype.hasobject:
        import numpy as np

        yield from ((f"[{', '.join(map(str, index))}]", item) for index, item in np.ndenumerate(value))
    elif type(value).__module__.partition(".")[0] == "pandas" and type(value).__name__ in (
        "DataFrame",
        "Series",
    ):
        yield from ((f"[{_key(key)}]", item) for key, item in value.items())


def _attributes(value: Any) -> Iterator[Child]:
    if "__getstate__" in vars(type(value)):
        state = value.__getstate__()
        yield from _state_parts(state)
        return
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from ((f".{name}", item) for name, item in attributes.items())
    slots: list[str] = copyreg._slotnames(type(value))  # type: ignore[attr-defined]
    yield from ((f".{name}", getattr(value, name)) for name in slots if hasattr(value, name))


def _state_parts(state: Any) -> Iterator[Child]:
    if isinstance(state, tuple) and len(state) == 2 and all(isinstance(part, dict | None) for part in state):
        for part in state:
            yield from _state_parts(part)
    elif isinstance(state, dict):
        yield from (
            (f".{name}" if isinstance(name, str) else f".<state [{_key(name)}]>", item)
            for name, item in state.items()
        )
    elif state is not None:
        yield ".<state>", state


def _reduced_parts(value: Any) -> Iterator[Child]:
    """What `__reduce_ex__` gives, for objects that define it."""
    cls = type(value)
    registered = copyreg.dispatch_table.get(cls)
    if registered is None and not defines_reduce(cls):
        return
    reduced: Any = registered(value) if registered is not None else value.__reduce_ex__(5)
    if not isinstance(reduced, tuple):
        return
    function, arguments, state, items, pairs = (*reduced[:5], None, None, None)[:5]
    yield ".<reduce function>", function
    yield from ((f".<reduce argument {i}>", item) for i, item in enumerate(arguments or ()))
    yield from _state_parts(state)
    yield from ((f"[{i}]", item) for i, item in enumerate(items or ()))
    yield from ((f"[{_key(key)}]", item) for key, item in pairs or ())


def _key(key: Any) -> str:
    """Returns a key as one would write it, where that is short and calls none of the user's code."""
    if type(key) in (str, int, float, bool, bytes, type(None)):
        text = repr(key)
        return text if len(text) <= 60 else text[:57] + "..."
    if type(key) is tuple and len(key) <= 4:
        return "(" + ", ".join(map(_key, key)) + ("," if len(key) == 1 else "") + ")"
    return f"<{type(key).__qualname__}>"
