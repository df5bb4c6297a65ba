"""What is said about what cannot be pickled, and about captured variables that are large."""

from __future__ import annotations

import collections
import dataclasses
import functools
import pickle
import threading
import types
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pydist import _captures, _serialize
from pydist._serialize import dumps, dumps_call, loads
from support_pickling import Thing


class Slots:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = threading.Lock()


class Base:
    """Defines how it is pickled, with the lock in it."""

    def __init__(self) -> None:
        self.a, self.b = 1, threading.Lock()

    def __getstate__(self) -> Any:
        return {"renamed": self.b}


class Reduced:
    def __reduce__(self) -> Any:
        return (Thing, (1, threading.Lock()))


@dataclasses.dataclass
class Data:
    good: int
    bad: Any


Named = collections.namedtuple("Named", "first second")


def bad_paths() -> list[tuple[Any, str]]:
    lock = threading.Lock()
    generator = (x for x in ())
    error = ValueError("a", lock)
    objects = np.empty((2, 2), dtype=object)
    objects[1, 0] = lock
    return [
        (lock, ""),
        (generator, ""),
        ([1, [2, {"lock": lock}]], "[1][1]['lock']"),
        ({"a": {3: [lock]}}, "['a'][3][0]"),
        ({lock: 1}, ".<key <lock>>"),
        ({(1, "b"): lock}, "[(1, 'b')]"),
        ({lock}, ".<item <lock>>"),
        (Thing(Thing(lock)), ".value.value"),
        (Data(1, [lock]), ".bad[0]"),
        (Slots(), ".lock"),
        (Base(), ".renamed"),
        (Reduced(), ".<reduce argument 1>"),
        (Named(1, lock), ".second"),
        (functools.partial(print, 1, lock), ".args[1]"),
        (functools.partial(print, a=lock), ".keywords['a']"),
        (Thing(lock).method, ".__self__.value"),
        (lambda: lock, ".<closure 'lock'>"),
        (lambda x=lock: x, ".__defaults__[0]"),
        (error, ".args[1]"),
        (objects, "[1, 0]"),
        (collections.OrderedDict(a=lock), "['a']"),
        (collections.deque([1, lock]), "[1]"),
        (types.SimpleNamespace(a=lock), ".a"),
        (pd.DataFrame({"a": [1], "b": pd.Series([lock], dtype=object)}), "['b'][0]"),
    ]


@pytest.mark.parametrize("case", range(24))
def test_errors_name_the_path_to_the_culprit(case: int) -> None:
    value, path = bad_paths()[case]
    for call, root in (
        (lambda: dumps(value, root="result"), "result"),
        (lambda: dumps_call(print, (1, value), {}), "args[1]"),
        (lambda: dumps_call(print, (), {"key": value}), "kwargs['key']"),
    ):
        with pytest.raises(pickle.PicklingError) as caught:
            call()
        assert caught.value.path == root + path
        assert str(caught.value).startswith(f"cannot pickle {root}{path}: a ")
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value, TypeError)


def test_the_message_says_what_and_why() -> None:
    with pytest.raises(pickle.PicklingError) as caught:
        dumps_call(print, ({"lock": threading.Lock()},), {})
    assert str(caught.value) == (
        "cannot pickle args[0]['lock']: a _thread.lock object "
        "(TypeError: cannot pickle '_thread.lock' object)"
    )
    assert isinstance(caught.value.__cause__, TypeError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.path) == (str(caught.value), "args[0]['lock']")


def test_functions_name_their_globals() -> None:
    namespace: dict[str, Any] = {"lock": threading.Lock(), "__name__": "nowhere"}
    exec("def inner(): return lock\ndef outer(): return inner()", namespace)
    with pytest.raises(pickle.PicklingError) as caught:
        dumps_call(namespace["outer"], (), {})
    assert caught.value.path == "f.<global 'inner'>.<global 'lock'>"


def test_the_search_halves_long_lists() -> None:
    rows: list[Any] = [{"n": i} for i in range(50_000)]
    rows[33_333]["n"] = threading.Lock()
    with pytest.raises(pickle.PicklingError) as caught:
        dumps(rows)
    assert caught.value.path == "value[33333]['n']"


def test_the_search_ends_in_cycles_and_at_depth() -> None:
    lock = threading.Lock()
    cyclic: list[Any] = [lock]
    cyclic.insert(0, cyclic)
    thing = Thing()
    thing.value = {"self": thing, "lock": lock}
    deep: Any = lock
    for _ in range(100):
        deep = [deep]
    for value in (cyclic, thing, deep):
        with pytest.raises(pickle.PicklingError, match=r"^cannot pickle value"):
            dumps(value)


class Raising:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("from reduce")


@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, GeneratorExit, OSError, pickle.PicklingError, UserWarning]
)
def test_whatever_reduce_raises_becomes_a_pickling_error(error: type[BaseException]) -> None:
    with pytest.raises(
        pickle.PicklingError, match=rf"args\[0\]\[1\].*Raising.*{error.__name__}: from reduce"
    ) as caught:
        dumps_call(print, ([1, Raising(error)],), {})
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_interrupts_and_memory_errors_pass(error: type[BaseException]) -> None:
    with pytest.raises(error):
        dumps_call(print, ([Raising(error)],), {})
    assert not _serialize.dumping()


def test_too_deep_nesting_is_a_recursion_error() -> None:
    deep: list[Any] = []
    for _ in range(10_000):
        deep = [deep]
    with pytest.raises(RecursionError, match=r"cannot pickle args\[1\]: it is nested too deeply"):
        dumps_call(print, (1, deep), {})
    with pytest.raises(RecursionError, match=r"cannot pickle result: "):
        dumps(deep, root="result")


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, MemoryError])
def test_loads_raises_what_setstate_raises(error: type[BaseException]) -> None:
    data, _, _ = dumps([BadState(error)])
    with pytest.raises(error):
        loads(data)
    assert not _serialize.loading()


class BadState:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __setstate__(self, state: Any) -> None:
        raise state["error"]


# captured variables that are large


def test_large_captures_are_warned_about_once() -> None:
    data = np.zeros(5 * 2**20)
    small = np.zeros(10)

    def f() -> Any:
        return data, small

    with pytest.warns(UserWarning, match=r"function '.*f' captures variable 'data' \(40.0 MB\)") as caught:
        dumps_call(f, (), {})
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dumps_call(f, (), {})
        dumps_call(len, (data,), {})


def test_large_globals_are_warned_about() -> None:
    text = "x" * (11 * 2**20)
    code = "def f(): return table, [len(text) for _ in range(2)]\ndef g(x): return x.text"
    namespace: dict[str, Any] = {
        "table": pd.DataFrame({"a": np.zeros(2 * 2**20)}),
        "text": text,
        "__name__": "nowhere",
    }
    exec(code, namespace)
    with pytest.warns(UserWarning, match="captures global") as caught:
        dumps([namespace["f"]])
    assert sorted(str(w.message).split(":")[0] for w in caught) == [
        "function 'f' captures global 'table' (16.0 MB)",
        "function 'f' captures global 'text' (11.0 MB)",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dumps(namespace["g"])  # an attribute of that name, not the global


def test_a_warning_made_an_error_is_raised_as_itself() -> None:
    data = bytes(11 * 2**20)
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="captures variable 'data'"):
        warnings.simplefilter("error")
        dumps_call(lambda: data, (), {})


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (b"abc", 3),
        (bytearray(4), 4),
        ("abc", 3),
        ([1, 2], 16),
        (memoryview(b"abc"), 3),
        (np.zeros(3), 24),
        (pd.Series([1, 2]), 16),
        (Thing(), 0),
        (None, 0),
        (3, 0),
    ],
)
def test_sizes_are_estimated(value: Any, size: int) -> None:
    assert _captures._size(value) == size
