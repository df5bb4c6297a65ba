"""Pickling: what arrives, and what goes by name."""

from __future__ import annotations

import copyreg
import enum
import functools
import io
import math
import operator
import os.path
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydist import _serialize
from pydist._serialize import dumps, dumps_call, loads, note_ref
from support_pickling import Thing, received, round_trip

# plain data and calls

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=5)
        | st.frozensets(st.integers())
    ),
    max_leaves=30,
)


@given(plain)
def test_plain_values_arrive_equal(value: Any) -> None:
    arrived = round_trip(value)
    assert arrived == value
    assert type(arrived) is type(value)


@given(st.lists(plain, max_size=4), st.dictionaries(st.text(), plain, max_size=3))
def test_calls_arrive_equal(args: list[Any], kwargs: dict[str, Any]) -> None:
    for f in (operator.add, os.path.join, dict, functools.partial(operator.add, 1).func):
        assert received(dumps_call(f, tuple(args), kwargs)) == (f, tuple(args), kwargs)


@given(st.integers(0, 300))
def test_calls_of_any_length_of_arguments_arrive(n: int) -> None:
    assert received(dumps_call(operator.add, ("x" * n, n), {})) == (operator.add, ("x" * n, n), {})


@pytest.mark.parametrize("size", [10, 255, 256, 65_000, 65_536, 200_000])
def test_long_strings_take_either_way(size: int) -> None:
    for args in (("é" * size,), ("x" * size, "y" * size)):
        assert received(dumps_call(len, args, {})) == (len, args, {})


def test_pure_python_pickle_reads_the_short_form() -> None:
    data, _, _ = dumps_call(operator.add, ("abc", [1, 2, "abc"], {"k": "abc"}), {})
    assert pickle._loads(data) == (operator.add, ("abc", [1, 2, "abc"], {"k": "abc"}), {})  # type: ignore[attr-defined]


def test_sharing_and_cycles_are_kept() -> None:
    shared: list[Any] = [1]
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    _, (a, b, c), kwargs = received(dumps_call(print, (shared, shared, cyclic), {"d": shared}))
    assert a is b is kwargs["d"]
    assert c[0] is c
    array = np.arange(3)
    _, (x, y), _ = received(dumps_call(print, (array, array), {}))
    assert x is y


@pytest.mark.parametrize(
    "value",
    [
        ...,
        NotImplemented,
        type(None),
        range(3),
        slice(1, 2),
        1 << 200,
        math.nan,
        np.float64(2.5),
        np.int8(3),
        int,
        len,
        [].append,
    ],
)
def test_other_builtin_values_arrive(value: Any) -> None:
    arrived = round_trip(value)
    assert type(arrived) is type(value)
    assert repr(arrived) == repr(value) or callable(value)


# names


def module_function() -> None: ...


class OfModule:
    @staticmethod
    def static() -> None: ...


def test_importable_functions_go_by_name() -> None:
    for f in (module_function, Thing, Thing.static, Thing.make, operator.add):
        data, _, _ = dumps_call(f, (), {})
        assert b"co_" not in data
        assert len(data) < 150
        assert loads(data)[0] == f


def test_a_function_whose_name_leads_elsewhere_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    original = module_function
    assert received(dumps_call(original, (), {}))[0] is original
    monkeypatch.setattr(sys.modules[__name__], "module_function", len)
    arrived = received(dumps_call(original, (), {}))[0]
    assert arrived is not original
    assert arrived.__name__ == "module_function"


def test_registered_modules_go_by_value() -> None:
    dumps_call(module_function, (), {})  # its name is known now
    name = module_function.__module__
    _serialize.register_by_value(name)
    try:
        arrived = received(dumps_call(module_function, (), {}))[0]
        assert arrived is not module_function
        assert received(dumps_call(print, (OfModule.static,), {}))[1][0] is not OfModule.static
    finally:
        _serialize.unregister_by_value(sys.modules[name])
    assert received(dumps_call(module_function, (), {}))[0] is module_function


@pytest.mark.parametrize("wrong", [3, None, ["json"], Thing])
def test_only_modules_can_be_registered(wrong: Any) -> None:
    with pytest.raises(TypeError, match=type(wrong).__name__):
        _serialize.register_by_value(wrong)
    with pytest.raises(TypeError):
        _serialize.unregister_by_value(wrong)


def test_lambdas_closures_and_methods() -> None:
    factor = 3

    def closure(x: int, *, y: int = 1) -> int:
        return x * factor + y

    @functools.wraps(closure)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return closure(*args, **kwargs)

    @functools.lru_cache(maxsize=7)
    def cached(n: int) -> int:
        return n if n < 2 else cached(n - 1) + cached(n - 2)

    assert round_trip(closure)(2, y=5) == 11
    assert round_trip(wrapped)(2) == 7
    assert round_trip(functools.partial(closure, 4))() == 13
    assert round_trip(Thing(9).method)() == 9
    assert round_trip(Thing.make)() == "Thing"
    arrived = round_trip(cached)
    assert arrived(30) == 832040
    assert arrived.cache_parameters() == {"maxsize": 7, "typed": False}


def test_reducers_of_users_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Thing, lambda thing: (Thing, ("registered",)))
    assert round_trip([Thing(1)])[0].value == "registered"
    monkeypatch.setitem(copyreg.dispatch_table, np.ndarray, lambda array: (Thing, ("array",)))
    assert round_trip(np.arange(3)).value == "array"
    assert received(dumps_call(len, (np.arange(3),), {}))[1][0].value == "array"
    monkeypatch.setitem(copyreg.dispatch_table, memoryview, lambda view: (Thing, ("view",)))
    assert round_trip(memoryview(b"abc")).value == "view"
    monkeypatch.undo()
    assert round_trip(Thing(1)).value == 1
    assert type(round_trip(memoryview(b"abc"))) is memoryview


class Colour(enum.Enum):
    RED = 1


def test_importable_enums_and_files() -> None:
    assert round_trip([Colour.RED])[0] is Colour.RED
    with pytest.raises(pickle.PicklingError, match=r"args\[0\]: a[n]? _io\."):
        dumps_call(print, (io.BufferedReader(io.BytesIO()),), {})  # type: ignore[arg-type]


# references and nesting


class Reference:
    """Does what a future does when it is pickled."""

    def __init__(self, number: int, inner: Any = None, fail: bool = False) -> None:
        self.number, self.inner, self.fail = number, inner, fail

    def __reduce__(self) -> Any:
        inside = note_ref(1, 2, self.number)
        if self.inner is not None:
            assert dumps([Reference(100), {1}])[2] == [(1, 2, 100)]
            assert loads(dumps(State())[0]).seen == (True, False)
            assert note_ref(1, 2, self.number + 1)
        if self.fail:
            raise ValueError("no")
        return (str, (f"{self.number} {inside}",))


class State:
    """Looks at what is under way while it is unpickled."""

    seen: Any = None

    def __reduce__(self) -> Any:
        return State, (), {}

    def __setstate__(self, state: Any) -> None:
        inside = loads(dumps(Inner())[0]).seen
        assert inside is True
        self.seen = _serialize.loading(), note_ref(9, 9, 9)

    def __getstate__(self) -> Any:
        return {"a": 1}


class Inner:
    seen: Any = None

    def __reduce__(self) -> Any:
        assert not _serialize.loading()
        return Inner, (), {"a": 1}

    def __setstate__(self, state: Any) -> None:
        self.seen = _serialize.loading()


def test_references_are_listed() -> None:
    assert dumps_call(print, (1,), {})[2] == []
    data, _, refs = dumps_call(print, (Reference(3), [Reference(4)]), {"k": Reference(5)})
    assert refs == [(1, 2, 3), (1, 2, 4), (1, 2, 5)]
    assert loads(data)[1][0] == "3 True"
    captured = Reference(6)
    assert dumps_call(lambda: captured, (), {})[2] == [(1, 2, 6)]


def test_outside_of_dumps_references_leave_the_cluster() -> None:
    assert not note_ref(1, 1, 1)
    assert pickle.loads(pickle.dumps(Reference(3))) == "3 False"
    assert not _serialize.dumping()
    assert not _serialize.loading()


def test_nested_dumps_and_loads_stack() -> None:
    assert dumps([Reference(3, inner=True)])[2] == [(1, 2, 3), (1, 2, 4)]
    assert round_trip([State()])[0].seen == (True, False)
    assert not _serialize.dumping()
    assert not _serialize.loading()


def test_a_failure_leaves_nothing_under_way() -> None:
    with pytest.raises(pickle.PicklingError):
        dumps([Reference(3, fail=True)])
    assert not _serialize.dumping()
    with pytest.raises(EOFError):
        loads(b"")
    assert not _serialize.loading()


def test_threads_do_not_see_each_other() -> None:
    seen = []

    class Probe:
        def __reduce__(self) -> Any:
            thread = threading.Thread(target=lambda: seen.append((note_ref(1, 1, 1), _serialize.dumping())))
            thread.start()
            thread.join()
            return (int, ())

    assert dumps([Probe()])[2] == []
    assert seen == [(False, False)]


def test_a_call_by_name_sees_what_the_name_means_now(monkeypatch):
    data = _serialize.dumps_call(os.path.basename, ("a/b",), {})[0]
    for _ in range(3):
        assert _serialize.loads_call(data) == (os.path.basename, ("a/b",), {})
    monkeypatch.setattr(os.path, "basename", str.upper)
    f, _, _ = _serialize.loads_call(data)
    assert f is str.upper


def test_code_keeps_the_name_of_its_file():
    namespace: dict[str, Any] = {}
    exec(
        compile("def outer():\n    def inner(): pass\n    return inner", "/no/such/file.py", "exec"),
        namespace,
    )
    outer = received(dumps(namespace["outer"]))
    assert {outer.__code__.co_filename, outer().__code__.co_filename} == {"/no/such/file.py"}
