"""Pickling: what arrives, how it travels, and what is said about what cannot be pickled."""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import enum
import functools
import io
import math
import operator
import os.path
import pickle
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydist import _captures, _pickler, _plain, _serialize
from pydist._serialize import dumps, dumps_call, loads, note_ref

PACKAGES = Path(_serialize.__file__).parent.parent


def received(dumped: _serialize.Dumped) -> Any:
    """What arrives, in buffers of its own."""
    data, buffers, _ = dumped
    return loads(data, [bytearray(buffer.raw()) for buffer in buffers])


def round_trip(value: Any) -> Any:
    return received(dumps(value))


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


class Thing:
    """An importable class."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    @classmethod
    def make(cls) -> str:
        return cls.__name__

    @staticmethod
    def static() -> int:
        return 5

    def method(self) -> Any:
        return self.value


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
        assert received(dumps_call(print, (Thing.static,), {}))[1][0] is not Thing.static
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


# __main__, as seen from another process

MAIN = """
import sys, enum, functools, collections, dataclasses, typing
from pydist import _serialize as s

GREETING = "hello"
@dataclasses.dataclass
class Point:
    x: int
    y: int = 2
    @property
    def norm(self): return self.x + self.y
    @staticmethod
    def origin(): return Point(0, 0)
    @classmethod
    def make(cls, x): return cls(x)
    class Inner:
        z = 3
        def where(self): return type(self).__name__
class Slotted:
    __slots__ = ("a",)
    def __init__(self, a): self.a = a
class Colour(enum.Enum):
    RED = 1
    def shout(self): return self.name + "!"
class Flag(enum.IntFlag):
    A = 1
    B = 2
Pair = collections.namedtuple("Pair", "left right")
class Typed(typing.NamedTuple):
    n: int = 4
UserId = typing.NewType("UserId", int)
T = typing.TypeVar("T")
P = typing.ParamSpec("P")
class Box(typing.Generic[T]):
    def __init__(self, item): self.item = item
@functools.lru_cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def plain(x): return GREETING, x
def deco(f):
    @functools.wraps(f)
    def inner(*a): return "deco", f(*a)
    return inner
@deco
def decorated(x): return x
def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else even(n - 1)
class Base:
    def who(self): return "base"
class Derived(Base):
    def who(self): return "derived " + super().who()
class MyError(Exception):
    def __init__(self, a, b): super().__init__(f"{a}-{b}"); self.a = a; self.b = b
class Meta(type):
    def __len__(cls): return 6
class WithMeta(metaclass=Meta): pass
async def coro(): return 8
p = Point(1)
values = {
    "plain": plain, "lambda": lambda x: x + 1, "point": [p, {"again": p}], "point_class": Point,
    "inner": Point.Inner(), "slotted": Slotted(7), "colour": Colour.RED, "flag": Flag.A | Flag.B,
    "pair": Pair(1, 2), "typed": Typed(), "user_id": UserId, "box": Box(3), "fib": fib,
    "decorated": decorated,
    "even": even, "derived": Derived(), "error": MyError(1, 2), "method": p.make,
    "partial": functools.partial(plain, 5),
    "origin": Point.origin, "with_meta": WithMeta, "coro": coro, "param": P, "static": staticmethod(plain),
}
"""

DUMP = MAIN + "data, buffers, refs = s.dumps(values)\nassert not buffers\nsys.stdout.buffer.write(data)\n"

LOAD = """
import sys, asyncio
from pydist import _serialize as s
data = sys.stdin.buffer.read()
v, w = s.loads(data), s.loads(data)
import __main__
assert not hasattr(__main__, "Point")
assert v["plain"](1) == ("hello", 1)
assert v["lambda"](1) == 2
p, again = v["point"][0], v["point"][1]["again"]
assert p is again and p.x == 1 and p.norm == 3 and p == v["point_class"](1), p
assert type(p) is type(w["point"][0]) is v["point_class"]
assert v["inner"].where() == "Inner" and v["inner"].z == 3
assert v["slotted"].a == 7
assert v["colour"].shout() == "RED!" and v["colour"] is w["colour"]
assert v["flag"] == 3 and v["flag"].name == "A|B"
assert v["pair"].left == 1 and v["pair"]._replace(right=5) == (1, 5)
assert v["typed"].n == 4
assert v["user_id"](4) == 4 and v["user_id"].__name__ == "UserId"
assert v["box"].item == 3
assert v["fib"](20) == 6765 and v["fib"].cache_info().hits > 0
assert v["decorated"](3) == ("deco", 3) and v["decorated"].__name__ == "decorated"
assert v["even"](10) is True
assert v["derived"].who() == "derived base"
e = v["error"]
assert (e.a, e.b, str(e), e.args) == (1, 2, "1-2", ("1-2",))
assert v["method"](4).x == 4
assert v["partial"]() == ("hello", 5)
assert v["origin"]().x == 0
assert len(v["with_meta"]) == 6
assert asyncio.run(v["coro"]()) == 8
assert v["param"].__name__ == "P"
assert v["static"](2) == ("hello", 2)
back = s.dumps([p, v["point_class"], v["lambda"]])[0]
sys.stdout.buffer.write(back)
"""


def run(code: str, stdin: bytes = b"", *flags: str) -> bytes:
    done = subprocess.run(
        [sys.executable, *(flags or ("-c", code))],
        input=stdin if flags[:1] != ("-",) else code.encode(),
        capture_output=True,
        env={"PYTHONPATH": str(PACKAGES)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("how", ["-c", "-", "script"])
def test_what_main_defines_arrives_where_main_is_another(how: str, tmp_path: Path) -> None:
    if how == "script":
        (tmp_path / "script.py").write_text(DUMP)
        data = run("", b"", str(tmp_path / "script.py"))
    else:
        data = run(DUMP, b"", *(("-",) if how == "-" else ()))
    assert run(LOAD, data)


def test_main_classes_come_back_as_themselves() -> None:
    code = MAIN + textwrap.dedent("""
        data, _, _ = s.dumps(values)
        import subprocess
        loader = sys.argv[1]
        command = [sys.executable, "-c", loader]
        back = subprocess.run(command, input=data, capture_output=True, check=True).stdout
        q, cls, f = s.loads(back)
        assert cls is Point and type(q) is Point and q == p
        print("same")
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, LOAD],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(PACKAGES)},
        timeout=60,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr


def test_modules_beside_the_script_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def f(x): return x + 1\nclass C: pass\n")
    (tmp_path / "script.py").write_text(
        "import sys, helper\nfrom pydist import _serialize as s\n"
        "data, _, _ = s.dumps_call(helper.f, (1, helper.C()), {})\n"
        "assert b'helper' in data and len(data) < 150, data\n"
        "sys.stdout.buffer.write(data)"
    )
    data = run("", b"", str(tmp_path / "script.py"))
    with pytest.raises(ModuleNotFoundError) as caught:
        loads(data)
    assert "'helper' could not be imported" in caught.value.__notes__[0]
    assert str(sys.path) in caught.value.__notes__[0]


def test_a_global_of_main_by_name_is_refused() -> None:
    assert (
        run("""
from pydist import _serialize as s
class Missing:
    def __reduce__(self): return "MISSING"
MISSING = Missing()
try:
    s.dumps_call(print, ([MISSING],), {})
except s.PicklingError as e:
    assert "args[0][0]" in str(e) and "__main__.MISSING" in str(e), e
    print("refused")
""")
        == b"refused\n"
    )


# arrays and other buffers

ARRAYS = [
    np.arange(6.0),
    np.arange(24).reshape(2, 3, 4),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.arange(20)[::2],
    np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
    np.array(3.5),
    np.zeros(0),
    np.zeros((0, 3)),
    np.zeros(3, dtype=[("a", "i4"), ("b", "f8", (2,))]),
    np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
    np.array([1, 2], dtype="m8[s]"),
    np.array(["ab", "c"]),
    np.array([b"ab", b"c"]),
    np.arange(3, dtype=">f8"),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.arange(3, dtype="f2"),
    np.broadcast_to(np.arange(3), (4, 3)),
    np.zeros(4, dtype=np.dtype("f8", metadata={"unit": "m"})),
]


def same_array(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
@pytest.mark.parametrize("readonly", [False, True])
def test_arrays_travel_out_of_band_and_arrive_writable(array: Any, readonly: bool) -> None:
    if readonly:
        array = array.view()
        array.flags.writeable = False
    for dumped, pick in (
        (dumps(array), lambda v: v),
        (dumps([array, {1}]), lambda v: v[0]),
        (dumps_call(os.path.join, (array,), {}), lambda v: v[1][0]),
        (dumps_call(os.path.join, (), {"a": array}), lambda v: v[2]["a"]),
    ):
        assert len(dumped[1]) == 1
        assert dumped[1][0].raw().nbytes == array.nbytes
        arrived = pick(received(dumped))
        assert type(arrived) is np.ndarray
        assert same_array(arrived, array)
        assert arrived.flags.writeable
        assert not np.shares_memory(arrived, array)


def test_buffers_are_the_memory_of_the_array() -> None:
    for array in (np.arange(5.0), np.arange(5).view("M8[s]")):
        for locked in (False, True):
            array.flags.writeable = not locked
            _, (buffer,), _ = dumps(array)
            assert np.shares_memory(np.frombuffer(buffer, "u1"), array)


def test_a_buffer_keeps_a_readonly_array_alive() -> None:
    array = np.full(1000, 7, dtype="u1")
    array.flags.writeable = False
    _, (buffer,), _ = dumps(array)
    before = bytes(buffer)
    del array
    assert bytes(buffer) == before == b"\x07" * 1000


def test_arrays_lie_in_the_buffers_given_and_follow_their_flags() -> None:
    data, buffers, _ = dumps(np.arange(3, dtype="i8"))
    own = bytearray(buffers[0].raw())
    arrived = loads(data, [own])
    arrived[0] = 9
    assert own[0] == 9
    assert not loads(data, [bytes(own)]).flags.writeable


def test_object_and_string_arrays_arrive() -> None:
    objects = np.array([1, "a", None, [1]], dtype=object)
    arrived = round_trip(objects)
    assert arrived.dtype == object
    assert arrived.tolist() == objects.tolist()
    mixed = np.zeros(2, dtype=[("a", "i4"), ("b", "O")])
    assert round_trip(mixed).tolist() == mixed.tolist()
    strings = np.array(["a", "longer than fifteen bytes"], dtype=np.dtypes.StringDType())
    assert round_trip(strings).tolist() == strings.tolist()


class Matrix(np.ndarray):
    """A subclass that leaves pickling to NumPy."""


def test_subclasses_of_arrays_travel_out_of_band(tmp_path: Path) -> None:
    records = np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")])
    mapped = np.memmap(tmp_path / "data", dtype="f8", mode="w+", shape=(4,))
    mapped[:] = 3
    for array in (
        np.arange(4).reshape(2, 2).view(Matrix),
        records,
        mapped,
        np.memmap(tmp_path / "data", mode="r"),
    ):
        dumped = dumps(array)
        assert len(dumped[1]) == 1
        arrived = received(dumped)
        assert type(arrived) is type(array)
        assert same_array(arrived, array)
        assert arrived.flags.writeable
    masked = np.ma.array([1, 2, 3], mask=[0, 1, 0])
    assert round_trip(masked).tolist() == [1, None, 3]


def test_many_small_arrays_do_not_make_many_buffers() -> None:
    arrays = [np.full(3, i) for i in range(1000)]
    dumped = dumps(arrays)
    assert len(dumped[1]) == _pickler.MANY_BUFFERS
    arrived = received(dumped)
    assert all(same_array(a, b) and a.flags.writeable for a, b in zip(arrived, arrays, strict=True))
    locked = [array.view() for array in arrays]
    for array in locked:
        array.flags.writeable = False
    assert all(array.flags.writeable for array in round_trip(locked))


def test_frames_arrive() -> None:
    frame = pd.DataFrame({"a": range(1000), "b": np.linspace(0, 1, 1000), "s": ["x"] * 1000})
    frame["t"] = pd.date_range("2020", periods=1000)
    dumped = dumps_call(len, (frame,), {})
    assert sum(buffer.raw().nbytes for buffer in dumped[1]) >= 24_000
    arrived = received(dumped)[1][0]
    pd.testing.assert_frame_equal(arrived, frame)
    arrived.loc[0, "a"] = 5
    assert frame.loc[0, "a"] == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["u1", "<i4", ">i8", "f8", "c16", "M8[s]", "U3", "?"]),
            st.lists(st.integers(0, 4), max_size=3),
            st.booleans(),
            st.booleans(),
        ),
        max_size=4,
    )
)
def test_nested_arrays_arrive_equal(specs: list[tuple[str, list[int], bool, bool]]) -> None:
    arrays = []
    for dtype, shape, transposed, locked in specs:
        array = np.arange(math.prod(shape)).astype(dtype).reshape(shape)
        array = array.T if transposed else array
        array.flags.writeable = not locked
        arrays.append(array)
    nested = {"list": arrays, "tuple": (arrays[:2], {"last": arrays[-1:]})}
    arrived = round_trip(nested)
    assert all(same_array(a, b) and a.flags.writeable for a, b in zip(arrived["list"], arrays, strict=True))
    assert all(a is b for a, b in zip(arrived["list"], arrived["tuple"][0], strict=False))


@pytest.mark.parametrize("size", [0, 100, _plain.LARGE_BYTES - 1, _plain.LARGE_BYTES, 300_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_large_bytes_travel_out_of_band(kind: Any, size: int) -> None:
    value = kind(os.urandom(size))
    out = size >= _plain.LARGE_BYTES
    for dumped, pick in (
        (dumps(value), lambda v: v),
        (dumps_call(len, (1, value), {}), lambda v: v[1][1]),
        (dumps_call(len, (), {"a": value}), lambda v: v[2]["a"]),
    ):
        assert len(dumped[1]) == out
        assert len(dumped[0]) < 500 or not out
        arrived = pick(received(dumped))
        assert type(arrived) is kind
        assert arrived == value


VIEWS = [
    memoryview(b"abcdef"),
    memoryview(bytearray(b"abcdef")),
    memoryview(bytearray(b"abcdef"))[::2],
    memoryview(bytearray(range(24))).cast("B", (2, 3, 4)),
    memoryview(bytearray(range(24))).cast("i", (2, 3)),
    memoryview(np.arange(6.0).reshape(2, 3)),
    memoryview(np.arange(6.0).reshape(2, 3).T),
    memoryview(np.arange(3, dtype=">f8")),
    memoryview(np.zeros(2, dtype=[("a", "i4"), ("b", "f8")])),
    memoryview(np.array(2.0)),
    memoryview(b""),
    memoryview(np.zeros((0, 3))),
]


@pytest.mark.parametrize("view", VIEWS, ids=lambda v: f"{v.format}{v.shape}{v.contiguous}")
def test_memoryviews_arrive_as_writable_views(view: memoryview) -> None:
    dumped = dumps_call(len, (view,), {})
    assert len(dumped[1]) == 1
    arrived = received(dumped)[1][0]
    assert type(arrived) is memoryview
    assert arrived.tobytes() == view.tobytes()
    assert (arrived.format.lstrip("@<="), arrived.shape) == (view.format.lstrip("@<="), view.shape)
    assert not arrived.readonly


def test_a_view_of_part_of_a_larger_buffer_arrives() -> None:
    data, _, _ = dumps(memoryview(b"abcd"))
    whole = memoryview(bytearray(b"..abcd.."))
    arrived = loads(data, [whole[2:6]])
    assert arrived.tobytes() == b"abcd"
    assert not arrived.readonly


def test_pickle_buffers_arrive() -> None:
    assert bytes(round_trip(pickle.PickleBuffer(b"abc"))) == b"abc"
    _, (strided,), _ = received(dumps_call(len, (pickle.PickleBuffer(memoryview(b"abcdef")[::2]),), {}))
    assert bytes(strided) == b"ace"


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


# errors


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


class Colour(enum.Enum):
    RED = 1


def test_importable_enums_and_files() -> None:
    assert round_trip([Colour.RED])[0] is Colour.RED
    with pytest.raises(pickle.PicklingError, match=r"args\[0\]: a[n]? _io\."):
        dumps_call(print, (io.BufferedReader(io.BytesIO()),), {})  # type: ignore[arg-type]


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
