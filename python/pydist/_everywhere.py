"""`everywhere`: code in `__main__` of all processes, those included that come later if it is to persist."""

from __future__ import annotations

import contextlib
import itertools
import threading
import types
from collections.abc import Callable, Iterable
from typing import Any

from . import _calls, _core, _groups, _session
from ._cluster import procs
from ._errors import local_exception
from ._macros import check_text, run_text

HEAD = 1

Key = tuple[int, int]
"""The process that wanted something everywhere, and its number there."""

Step = tuple[Callable[..., None], tuple[Any, ...]]
"""What to call on every process, and with which arguments."""

_numbers = itertools.count(1)
_persistent: dict[Key, Step] = {}
_names: dict[str, Key] = {}
_done: set[Key] = set()
_lock = threading.RLock()


def everywhere(code: Any = None, pids: Any = None, /, *, persist: bool = False, **names: Any) -> Any:
    """Runs source text in `__main__` of all processes, and waits; or defines a function or class there.

    Parameters:
        code: Python statements; or a function or class, which is then defined by its name. Left out, or the
            ids of processes, in the decorator: `@everywhere`, `@everywhere(pids)`,
            `@everywhere(persist=True)`.
        pids: an id, several, or a pool; all processes, this one too, by default.
        persist: run it also on each worker that is added later, before `addprocs` returns; a function or
            class replaces an earlier one of that name.
        names: values that are set in `__main__` there first, for source text.

    Returns:
        None for source text; a function or class as it is. It sees the variables of `__main__` of the process
        where it runs; those of its own that are missing there are sent along.

    Raises:
        SyntaxError: the text is no Python.
        ExceptionGroup: what processes raised, also where it is a single one, once all have ended. It names
            each process that failed.
        ValueError: there is no such process.
        pickle.PicklingError: one of `names`, or the function or class, cannot be pickled.

    Distributed.jl: `@everywhere`.

    >>> import pydist as d
    >>> d.everywhere("import math; radius = r * 2", r=1.5)
    >>> d.remotecall_eval("math.floor(radius)", d.workers()[0])
    3
    >>> @d.everywhere
    ... def area(radius):
    ...     return radius ** 2
    >>> d.remotecall_eval("area(radius)", d.workers()[0])
    9.0
    """
    if isinstance(code, str):
        text, filename = check_text(code)
        key = _new_key()
        _spread(key, (_run_text, (key, persist, text, filename, names)), pids, persist)
        return None
    if names:
        raise TypeError(f"everywhere() takes names for source text only, not {', '.join(names)}")
    if callable(code):
        _define_everywhere(code, pids, persist)
        return code
    if code is not None and pids is not None:
        raise TypeError(f"everywhere() runs source text, functions and classes, not {type(code).__name__}")
    chosen = pids if code is None else _groups.as_pids(code)

    def define(definition: Any) -> Any:
        _define_everywhere(definition, chosen, persist)
        return definition

    return define


def _define_everywhere(definition: Any, pids: Any, persist: bool) -> None:
    name = getattr(definition, "__name__", None)
    if not callable(definition):
        raise TypeError(f"everywhere() defines functions and classes, not {type(definition).__name__}")
    if not isinstance(name, str) or not name.isidentifier():
        raise TypeError(f"everywhere() needs a function or class with a name, not {definition!r}")
    key = _new_key()
    _spread(key, (_define, (key, persist, name, definition)), pids, persist, name)


def _new_key() -> Key:
    _session.ensure_started()
    return _core.me(), next(_numbers)


def _spread(key: Key, step: Step, pids: Any, persist: bool, name: str | None = None) -> None:
    """Does something on processes, here last, and raises what they raise."""
    if persist:
        _calls.remotecall_fetch(_keep, HEAD, key, step, name)
    try:
        chosen = procs() if pids is None else _groups.as_pids(pids)
        _do_all(step, chosen)
    except BaseException:
        if persist:
            _calls.remotecall_fetch(_unkeep, HEAD, key)
        raise


def _do_all(step: Step, pids: list[int]) -> None:
    me = _core.me()
    function, args = step
    calls = _groups.call_each((pid for pid in pids if pid != me), _calls.same_call(function, args))
    here: list[tuple[int, Exception]] = []
    if me in pids:
        try:
            function(*args)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            here.append((me, local_exception(error, me)))
    _, errors = _groups.values_of(calls)
    if errors or here:
        raise _groups.group_of("everywhere", [*here, *errors])


def _keep(key: Key, step: Step, name: str | None) -> None:
    """Runs on process 1: workers that come from now on do this too."""
    with _lock:
        if name is not None:
            _persistent.pop(_names.pop(name, key), None)
            _names[name] = key
        _persistent[key] = step


def _unkeep(key: Key) -> None:
    with _lock:
        _persistent.pop(key, None)


def catch_up(pids: Iterable[int]) -> list[tuple[int, Exception]]:
    """Has new workers do what is to persist, in order; returns the errors, one for each that has failed."""
    with _lock:
        steps = list(_persistent.values())
    failed: dict[int, Exception] = {}
    remaining = list(pids)
    for function, args in steps:
        calls = _groups.call_each(remaining, _calls.same_call(function, args))
        failed.update(_groups.values_of(calls)[1])
        remaining = [pid for pid in remaining if pid not in failed]
    return list(failed.items())


def _first_time(key: Key) -> bool:
    """Whether this has not been done here; a worker that has just come may be told of it twice."""
    with _lock:
        new = key not in _done
        _done.add(key)
        return new


def _run_text(key: Key, once: bool, text: str, filename: str, names: dict[str, Any]) -> None:
    if once and not _first_time(key):
        return
    import __main__

    before = dict(__main__.__dict__)
    try:
        run_text(text, filename, names)
    finally:
        _track_classes(key, before, __main__.__dict__)


def _track_classes(key: Key, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Gives the classes of a text one identity on all processes, so that instances arrive as such."""
    for name, value in list(after.items()):
        if isinstance(value, type) and value.__module__ == "__main__" and before.get(name) is not value:
            with contextlib.suppress(TypeError):
                import cloudpickle.cloudpickle as cloudpickle  # type: ignore[import-untyped, unused-ignore]

                cloudpickle._lookup_class_or_track(f"pydist-{key[0]}-{key[1]}-{name}", value)


_MISSING = object()
_brought: dict[str, Any] = {}
"""The variables of `__main__` that came along with functions: a later one replaces them."""


def _define(key: Key, once: bool, name: str, definition: Any) -> None:
    """Defines a function or class in `__main__`, whose variables it sees from then on."""
    import __main__

    if once and not _first_time(key):
        return
    namespace = __main__.__dict__
    if isinstance(definition, type):
        for attribute, value in list(vars(definition).items()):
            adopted = _adopt(value, namespace)
            if adopted is not value:
                setattr(definition, attribute, adopted)
    else:
        definition = _adopt(definition, namespace)
    namespace[name] = definition


def _adopt(value: Any, namespace: dict[str, Any]) -> Any:
    """A function of `__main__` of another process as one of `__main__` here; other things as they are."""
    if isinstance(value, staticmethod | classmethod):
        return type(value)(_adopt(value.__func__, namespace))
    if isinstance(value, property):
        get, set_, delete = (_adopt(f, namespace) for f in (value.fget, value.fset, value.fdel))
        return property(get, set_, delete, value.__doc__)
    if not isinstance(value, types.FunctionType) or value.__module__ != "__main__":
        return value
    if value.__globals__ is namespace:
        return value
    for name, brought in value.__globals__.items():
        if not name.startswith("__") and (
            name not in namespace or namespace[name] is _brought.get(name, _MISSING)
        ):
            namespace[name] = _brought[name] = brought
    made = types.FunctionType(
        value.__code__, namespace, value.__name__, value.__defaults__, value.__closure__
    )
    made.__kwdefaults__ = value.__kwdefaults__
    made.__annotations__ = value.__annotations__
    made.__qualname__ = value.__qualname__
    made.__doc__ = value.__doc__
    made.__dict__.update(value.__dict__)
    return made
