"""What travels: arrays, bytes, frames; what cannot be pickled; errors of calls."""

import asyncio
import collections
import datetime
import os
import pickle
import sys
import threading
import traceback
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pydist as d
from support import run_script, sends_nothing, wait_until

MB = 1_000_000


def echo(x: Any) -> Any:
    return x


def describe(array: np.ndarray) -> tuple[Any, ...]:
    return array.shape, array.dtype.str, array.flags.writeable, array.flags.aligned, type(array).__name__


def overwrite(array: np.ndarray) -> np.ndarray:
    array[...] = array.flat[-1]
    return array


def call_through(f: Any, path: list[int], *args: Any) -> Any:
    """Call a function on the last process of a path, each process calling the next."""
    if not path:
        return f(*args)
    return d.remotecall_fetch(call_through, path[0], f, path[1:], *args)


# --- arrays -------------------------------------------------------------------------------------------------

base = np.arange(60.0).reshape(3, 4, 5)
frozen = np.arange(10)
frozen.flags.writeable = False

ARRAYS = {
    "int": np.arange(10),
    "large": np.arange(200_000.0),
    "two-dimensional": np.arange(12, dtype=np.int16).reshape(3, 4),
    "Fortran": np.asfortranarray(base),
    "large Fortran": np.asfortranarray(np.arange(1_000_000.0).reshape(1000, 1000)),
    "non-contiguous": base[::2, 1:, ::-2],
    "transposed": base.transpose(2, 0, 1),
    "negative strides": np.arange(10)[::-1],
    "read-only": frozen,
    "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
    "zero-length": np.empty(0),
    "no rows": np.empty((0, 3), dtype=np.float32),
    "no columns": np.empty((3, 0, 2), order="F"),
    "zero-dimensional": np.array(42.5),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j, 3j]),
    "half": np.array([1.5, np.inf, -0.0], dtype=np.float16),
    "big-endian": np.arange(5, dtype=">i4"),
    "bytes": np.array([b"a", b"bcd"]),
    "text": np.array(["a", "ünïcödé"]),
    "times": np.array(["2020-01-01", "NaT"], dtype="M8[ns]"),
    "records": np.array([(1, 2.5, "x")], dtype=[("a", "i4"), ("b", "f8"), ("c", "U3")]),
    "recarray": np.rec.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
    "masked": np.ma.masked_array([1.0, 2.0, 3.0], mask=[False, True, False]),
    "objects": np.array([1, "two", [3], None, {"four": 4}], dtype=object),
    "objects in columns": np.asfortranarray(np.array([[1, "a"], [None, (2,)]], dtype=object)),
    "no objects": np.empty((0, 2), dtype=object),
    "nested objects": np.array([np.arange(3), None], dtype=object),
}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape or type(a) is not type(b):
        return False
    if a.dtype.hasobject:
        return all(
            np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
            for x, y in zip(a.flat, b.flat, strict=True)
        )
    if isinstance(a, np.ma.MaskedArray):
        return bool((a.mask == b.mask).all() and (a.filled(0) == b.filled(0)).all())
    return a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_arrives_equal_and_writable_there_and_here(workers, name):
    array = ARRAYS[name]
    there = d.remotecall_fetch(describe, workers[0], array)
    assert there == (array.shape, array.dtype.str, True, True, type(array).__name__)
    back = d.remotecall_fetch(echo, workers[0], array)
    assert same(back, array)
    assert back.flags.writeable
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        assert back.flags.f_contiguous


@pytest.mark.parametrize("name", [name for name, array in ARRAYS.items() if array.size > 1])
def test_an_array_is_private_to_the_receiver(workers, name):
    array = ARRAYS[name]
    before = array.copy()
    changed = d.remotecall_fetch(overwrite, workers[0], array)
    assert same(array, before)
    assert same(d.remotecall_fetch(echo, workers[0], array), before)
    changed[...] = changed.flat[0]
    assert same(d.remotecall_fetch(echo, workers[1], array), before)


def test_one_array_twice_in_a_call(workers):
    array = np.zeros(100_000)

    def change(a: np.ndarray, b: np.ndarray) -> tuple[float, float, bool]:
        a[0] = 1
        return a[0], b[0], a is b

    first, second, identical = d.remotecall_fetch(change, workers[0], array, array)
    assert first == 1
    assert second == (1 if identical else 0)
    assert array[0] == 0


def test_a_kept_result_of_a_call_is_not_changed_by_its_receivers(workers):
    future = d.remotecall(np.zeros, workers[0], 300_000)
    for pid in (*workers, 1):
        value = d.remotecall_fetch(lambda f: overwrite(f.fetch() + 1).sum(), pid, future)
        assert value == 300_000
    mine = future.fetch()
    assert mine.sum() == 0
    mine += 1


def test_many_arrays_in_one_message(workers):
    arrays = {i: np.full(i * 100, i, dtype=np.int32) for i in range(200)}
    back = d.remotecall_fetch(echo, workers[0], arrays)
    assert all(same(back[i], array) and back[i].flags.writeable for i, array in arrays.items())
    back[7][:] = 1
    assert (back[8] == 8).all()


@pytest.mark.timeout(60)
def test_an_argument_of_200_megabytes(workers):
    array = np.arange(25_000_000, dtype=np.int64)
    before = d.stats()["bytes_sent"]
    there = d.remotecall_fetch(lambda a: (int(a.sum()), a.flags.writeable, a.nbytes), workers[0], array)
    assert there == (int(array.sum()), True, 200_000_000)
    assert d.stats()["bytes_sent"] - before < 210 * MB


@pytest.mark.timeout(60)
def test_a_result_of_200_megabytes(workers):
    array = d.remotecall_fetch(np.arange, workers[0], 25_000_000)
    assert array.nbytes == 200_000_000
    assert array[-1] == 24_999_999
    assert array.flags.writeable
    (from_worker,) = d.remotecall_fetch(lambda pid: [d.remotecall_fetch(len, pid, bytes(50 * MB))], *workers)
    assert from_worker == 50 * MB


def test_scalars_and_types_of_numpy(workers):
    for value in (np.float32(1.5), np.int8(-3), np.datetime64("2020-01-01"), np.str_("x"), np.bool_(True)):
        back = d.remotecall_fetch(echo, workers[0], value)
        assert back == value
        assert type(back) is type(value)
    assert d.remotecall_fetch(echo, workers[0], np.dtype("f4")) == np.dtype("f4")
    assert d.remotecall_fetch(np.sum, workers[0], np.arange(10), axis=0) == 45


# --- bytes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 1000, 3 * MB])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_of_all_sizes(workers, kind, n):
    value = kind(os.urandom(n))
    back = d.remotecall_fetch(echo, workers[0], value)
    assert type(back) is kind
    assert back == value


@pytest.mark.parametrize("n", [10, 3 * MB])
def test_a_bytearray_is_mutable_and_private(workers, n):
    value = bytearray(n)

    def change(b: bytearray) -> bytearray:
        b[0] = 7
        b.extend(b"more")
        return b

    back = d.remotecall_fetch(change, workers[0], value)
    assert back == b"\7" + bytes(n - 1) + b"more"
    back.append(1)
    assert value == bytes(n)


@pytest.mark.parametrize(
    "view",
    [
        memoryview(b"abcdef"),
        memoryview(bytearray(b"abcdef"))[1:4],
        memoryview(b"abcdef")[::2],
        memoryview(bytes(2 * MB)),
        memoryview(b""),
        memoryview(np.arange(6, dtype=np.int32)),
    ],
)
def test_a_memoryview_arrives_with_its_bytes(workers, view):
    there = d.remotecall_fetch(lambda v: (bytes(v), type(v).__name__), workers[0], view)
    assert there == (bytes(view), "memoryview")
    assert bytes(d.remotecall_fetch(echo, workers[0], view)) == bytes(view)


# --- frames and other things --------------------------------------------------------------------------------


FRAME = pd.DataFrame(
    {
        "int": [1, 2, 3],
        "float": [1.5, None, 3],
        "text": ["a", None, "ünïcödé"],
        "category": pd.Categorical(["x", "y", "x"]),
        "time": pd.date_range("2020-01-01", periods=3, tz="Europe/Berlin"),
        "nullable": pd.array([1, None, 3], dtype="Int64"),
        "object": [[1], {"b": 2}, None],
    },
    index=pd.Index([10, 20, 30], name="key"),
)


@pytest.mark.parametrize(
    "frame",
    [
        FRAME,
        FRAME.iloc[:0],
        FRAME[["int", "float"]].T,
        pd.DataFrame(),
        pd.DataFrame(np.arange(400_000.0).reshape(-1, 4), columns=list("abcd")),
        FRAME.set_index(["category", "int"]),
    ],
    ids=["mixed", "empty", "transposed", "nothing", "large", "multi-index"],
)
def test_frames(workers, frame):
    pd.testing.assert_frame_equal(d.remotecall_fetch(echo, workers[0], frame), frame)


def test_a_frame_is_private_and_can_be_changed(workers):
    frame = pd.DataFrame({"a": np.zeros(200_000), "b": np.zeros(200_000)})

    def change(f: pd.DataFrame) -> pd.DataFrame:
        f.loc[:, "a"] = 1.0
        f.iloc[0, 1] = 2.0
        f["c"] = f["a"] + f["b"]
        return f

    changed = d.remotecall_fetch(change, workers[0], frame)
    assert (frame["a"].sum(), list(frame)) == (0, ["a", "b"])
    assert changed["c"].sum() == 200_002
    changed.loc[:, "b"] = 0.0
    pd.testing.assert_series_equal(d.remotecall_fetch(echo, workers[0], frame["a"]), frame["a"])


Pair = collections.namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    "value",
    [
        (1, 2.5, "x", None, True, ...),
        {"nested": [{"a": (1, [2, {3}])}]},
        Pair(1, Pair(2, 3)),
        collections.OrderedDict(b=1, a=2),
        collections.deque([1, 2], maxlen=2),
        datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC),
        2**1000,
        float("inf"),
        "\ud800",
        range(10),
        slice(1, None, 2),
        int,
        Pair,
    ],
    ids=str,
)
def test_values_of_all_kinds(workers, value):
    back = d.remotecall_fetch(echo, workers[0], value)
    assert back == value
    assert type(back) is type(value)


def test_cycles_and_shared_parts(workers):
    cycle: list[Any] = [1]
    cycle.append(cycle)
    back = d.remotecall_fetch(echo, workers[0], cycle)
    assert back[1] is back
    shared = [1]
    one, two = d.remotecall_fetch(echo, workers[0], (shared, shared))
    assert one is two


ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_any_value_comes_back(workers, value):
    assert d.remotecall_fetch(echo, workers[0], value) == value


# --- what cannot be pickled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["remotecall", "remotecall_fetch", "remotecall_wait", "remote_do"])
def test_an_argument_that_cannot_be_pickled_raises_here_with_its_path(workers, call):
    def attempt():
        with pytest.raises(pickle.PicklingError, match=r"args\[0\]\['lock'\].*lock"):
            getattr(d, call)(echo, workers[0], {"fine": [1], "lock": threading.Lock()})

    sends_nothing(attempt)
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


class Holder:
    def __init__(self, content: object) -> None:
        self.content = content


def test_the_path_leads_through_containers_attributes_keywords_and_closures(workers):
    lock = threading.Lock()
    cases: list[tuple[Any, Any, str]] = [
        (lambda f, pid: d.remotecall(f, pid, 1, [0, (lock,)]), echo, r"args\[1\]\[1\]\[0\]"),
        (lambda f, pid: d.remotecall(f, pid, x=[lock]), echo, r"kwargs\['x'\]\[0\]"),
        (lambda f, pid: d.remotecall(f, pid, Holder({"a": lock})), echo, r"args\[0\]\.content\['a'\]"),
        (lambda f, pid: d.remotecall(f, pid), lambda: lock, r"lock"),
    ]
    for call, f, path in cases:
        with pytest.raises(pickle.PicklingError, match=path):
            call(f, workers[0])
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


def test_a_value_that_cannot_be_pickled_raises_from_put(workers):
    future = d.Future(workers[0])
    with pytest.raises(pickle.PicklingError, match="lock"):
        future.put([threading.Lock()])
    assert not future.isready()
    future.put(1)
    assert future.fetch() == 1


def test_a_result_that_cannot_be_pickled_raises_from_fetch(workers):
    future = d.remotecall(threading.Lock, workers[0])
    with pytest.raises(d.RemoteException, match="lock") as caught:
        future.fetch(timeout=10)
    assert caught.value.pid == workers[0]
    assert "pickle" in str(caught.value)
    with pytest.raises(d.RemoteException, match=r"\['lock'\].*lock"):
        d.remotecall_fetch(lambda: {"lock": threading.Lock()}, workers[0])
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


def explode_here(error: BaseException) -> str:
    if d.myid() == 1:
        raise error
    return "whole"


def explode_elsewhere(error: BaseException) -> str:
    if d.myid() != 1:
        raise error
    return "whole"


class Mine:
    """Cannot be unpickled in some process."""

    def __init__(self, f: Any, *args: Any) -> None:
        self.parts = f, args

    def __reduce__(self) -> Any:
        return self.parts


def test_an_argument_that_cannot_be_unpickled_there_raises_from_fetch(workers):
    mine = Mine(explode_elsewhere, ValueError("in pieces"))
    future = d.remotecall(echo, workers[0], mine)
    with pytest.raises(d.RemoteException, match="in pieces") as caught:
        future.fetch(timeout=10)
    assert caught.value.pid == workers[0]
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


def test_a_result_that_cannot_be_unpickled_here_raises_from_fetch(workers):
    def make() -> Mine:
        return Mine(explode_here, ValueError("in pieces"))

    for _ in range(2):
        with pytest.raises(Exception, match="in pieces"):
            d.remotecall_fetch(make, workers[0])
    future = d.remotecall(make, workers[0])
    with pytest.raises(Exception, match="in pieces"):
        future.fetch(timeout=10)
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


def test_many_failures_at_once_spoil_nothing(workers):
    futures = []
    for i in range(200):
        if i % 4 == 0:
            futures.append(d.remotecall(threading.Lock, workers[0]))
        elif i % 4 == 1:
            mine = Mine(explode_elsewhere, ValueError("in pieces"))
            futures.append(d.remotecall(echo, workers[0], mine))
        else:
            futures.append(d.remotecall(echo, workers[0], i))
    for i, future in enumerate(futures):
        if i % 4 < 2:
            with pytest.raises(d.RemoteException):
                future.fetch(timeout=20)
        else:
            assert future.fetch(timeout=20) == i
    del futures, future
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)


# --- errors of calls ----------------------------------------------------------------------------------------


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text


class KeywordOnly(ValueError):
    def __init__(self, *, code: int) -> None:
        super().__init__("by keyword")
        self.code = code


class Attributes(Exception):
    pass


class Unpicklable(RuntimeError):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Rebuilt(RuntimeError):
    def __reduce__(self) -> Any:
        return explode_here, (ValueError("cannot be rebuilt"),)


class BadText(RuntimeError):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def fail(error: BaseException) -> None:
    raise error


def fail_new(cls: type[BaseException], *args: Any, **kwargs: Any) -> None:
    raise cls(*args, **kwargs)


def divide(a: int, b: int) -> float:
    return a / b  # the line that fails


def caught_from(f: Any, pid: int, *args: Any, **kwargs: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        d.remotecall(f, pid, *args, **kwargs).fetch(timeout=20)
    return caught.value


def text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_an_error_is_of_both_classes(workers):
    error = caught_from(divide, workers[0], 1, 0)
    assert isinstance(error, d.RemoteException)
    assert isinstance(error, ZeroDivisionError)
    assert issubclass(type(error), ZeroDivisionError)
    assert error.pid == workers[0]
    assert type(error.captured) is ZeroDivisionError
    assert str(error.captured) == "division by zero"
    assert error.__cause__ is error.captured
    with pytest.raises(ArithmeticError):
        raise error
    with pytest.raises(ZeroDivisionError):
        raise error.captured


def test_the_remote_traceback_is_printed(workers):
    text = text_of(caught_from(divide, workers[0], 1, 0))
    assert "in divide" in text
    assert "return a / b  # the line that fails" in text
    assert "test_data.py" in text
    assert "ZeroDivisionError: division by zero" in text


def test_pid_is_where_it_was_first_raised(workers):
    one, two = workers
    error = caught_from(call_through, one, divide, [two, one, two], 1, 0)
    assert isinstance(error, ZeroDivisionError)
    assert isinstance(error, d.RemoteException)
    assert error.pid == two
    assert type(error.captured) is ZeroDivisionError
    assert "in divide" in text_of(error)


@pytest.mark.parametrize(
    ("made", "attributes"),
    [
        (KeyError("key"), {"args": ("key",)}),
        (
            FileNotFoundError(2, "No such file", "/x"),
            {"errno": 2, "filename": "/x", "strerror": "No such file"},
        ),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), {"object": b"\xff", "start": 0, "reason": "bad"}),
        (StopIteration(5), {"value": 5}),
        (ImportError("no", name="n", path="p"), {"name": "n", "path": "p"}),
        (TwoArguments(3, "why"), {"code": 3, "text": "why"}),
        (KeywordOnly(code=4), {"code": 4}),
        (OSError("only text"), {"args": ("only text",)}),
        (asyncio.CancelledError("x"), {}),
        (TimeoutError("late"), {"args": ("late",)}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else "",
)
def test_errors_keep_their_class_and_attributes(workers, made, attributes):
    error = caught_from(fail, workers[0], made)
    assert isinstance(error, d.RemoteException)
    assert type(error.captured) is type(made)
    assert str(error.captured) == str(made)
    if isinstance(made, Exception):
        assert isinstance(error, type(made))
        for name, value in attributes.items():
            assert getattr(error, name) == value
    for name, value in attributes.items():
        assert getattr(error.captured, name) == value


def test_an_error_with_a_constructor_of_its_own_raised_there(workers):
    error = caught_from(fail_new, workers[0], TwoArguments, 3, "why")
    assert isinstance(error, d.RemoteException)
    assert "TwoArguments" in text_of(error)
    assert "3: why" in str(error)
    error = caught_from(fail_new, workers[0], KeywordOnly, code=4)
    assert isinstance(error, d.RemoteException)
    assert isinstance(error, ValueError)
    assert "KeywordOnly" in text_of(error)


def test_attributes_notes_and_causes_come_along(workers):
    def stumble() -> None:
        try:
            divide(1, 0)
        except ZeroDivisionError as cause:
            error = Attributes("outer")
            error.extra = [1, 2]
            error.add_note("a note from there")
            raise error from cause

    error = caught_from(stumble, workers[0])
    assert isinstance(error, Attributes)
    assert error.captured.extra == [1, 2]
    assert error.captured.__notes__[0] == "a note from there"
    text = text_of(error)
    assert "a note from there" in text
    assert "in divide" in text
    assert "in stumble" in text


def test_errors_of_local_classes(workers):
    class Local(LookupError):
        pass

    error = caught_from(lambda: fail_new(Local, "by value"), workers[0])
    assert isinstance(error, Local)
    assert isinstance(error, d.RemoteException)
    assert error.captured.args == ("by value",)


def test_groups_of_errors(workers):
    def stumble() -> None:
        raise ExceptionGroup("several", [ValueError("one"), TypeError("two")])

    error = caught_from(stumble, workers[0])
    assert isinstance(error, d.RemoteException)
    assert [str(each) for each in error.captured.exceptions] == ["one", "two"]
    assert "ValueError: one" in text_of(error)


@pytest.mark.parametrize("cls", [Unpicklable, Rebuilt])
def test_an_error_that_cannot_be_rebuilt_here_gives_type_text_and_traceback(workers, cls):
    error = caught_from(fail_new, workers[0], cls, "the text of it")
    assert isinstance(error, d.RemoteException)
    assert cls.__name__ in str(error)
    assert "the text of it" in str(error)
    assert "in fail_new" in text_of(error)
    assert error.pid == workers[0]
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


def test_an_error_without_text(workers):
    error = caught_from(fail_new, workers[0], BadText)
    assert isinstance(error, d.RemoteException)
    assert "BadText" in text_of(error)
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


def test_an_error_that_exists_only_there(workers):
    def stumble() -> None:
        import types

        module = types.ModuleType("pydist_test_only_there")
        sys.modules[module.__name__] = module
        exec("class Foreign(ValueError): pass", module.__dict__)
        raise module.Foreign("from abroad")

    error = caught_from(stumble, workers[0])
    assert isinstance(error, d.RemoteException)
    assert "Foreign" in str(error)
    assert "from abroad" in str(error)
    assert "in stumble" in text_of(error)


def test_a_remote_error_can_be_pickled_and_raised_again(workers):
    error = caught_from(divide, workers[0], 1, 0)
    twin = pickle.loads(pickle.dumps(error))
    assert isinstance(twin, d.RemoteException)
    assert isinstance(twin, ZeroDivisionError)
    assert twin.pid == workers[0]
    assert "in divide" in text_of(twin)
    again = caught_from(fail, workers[1], error)
    assert isinstance(again, ZeroDivisionError)
    assert again.pid == workers[0]


def test_an_error_as_a_value_is_not_raised(workers):
    value = d.remotecall_fetch(ValueError, workers[0], "just a value")
    assert type(value) is ValueError
    assert value.args == ("just a value",)
    assert isinstance(d.remotecall_fetch(lambda: TwoArguments(1, "x"), workers[0]), TwoArguments)


def test_errors_and_values_hold_no_frames_alive_on_the_worker(workers):
    def stumble() -> None:
        ballast = np.ones(30_000_000, dtype=np.uint8)
        raise ValueError(len(ballast))

    def resident() -> int:
        import psutil

        return psutil.Process().memory_info().rss

    caught_from(stumble, workers[0])
    before = d.remotecall_fetch(resident, workers[0])
    for _ in range(10):
        caught_from(stumble, workers[0])
    wait_until(lambda: d.remotecall_fetch(resident, workers[0]) - before < 100 * MB)


def test_what_tblib_registers_for_all_classes_changes_nothing():
    done = run_script("""
        import tblib.pickling_support
        tblib.pickling_support.install()
        import pydist as d
        (pid,) = d.addprocs(1)
        try:
            d.remotecall_fetch(bytes.decode, pid, b"\\xff", "utf-8")
        except UnicodeDecodeError as error:
            print(str(error).startswith("'utf-8' codec"), error.start)
        def stop():
            raise StopIteration(5)
        try:
            d.remotecall_fetch(stop, pid)
        except StopIteration as error:
            print(error.value)
        error = d.remotecall_fetch(lambda x: x, pid, OSError(2, "no"))
        print(type(error), error.errno)
        """)
    assert (done.stdout, done.stderr) == ("True 0\n5\n<class 'FileNotFoundError'> 2\n", "")
