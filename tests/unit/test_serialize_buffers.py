"""Pickling of arrays and other buffers: what travels beside the pickle, and how it arrives."""

from __future__ import annotations

import math
import os.path
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydist import _pickler, _plain
from pydist._serialize import dumps, dumps_call, loads
from support_pickling import received, round_trip

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
