"""Calls by name with small plain arguments, which the core pickles and unpickles itself."""

import math
import operator
import os
import pickle
import sys
import types

import cloudpickle
import pytest

import pydist as d
from pydist import _core

PLAIN = [
    None,
    True,
    False,
    0,
    255,
    256,
    -1,
    65535,
    65536,
    2**31 - 1,
    -(2**31),
    2**31,
    2**63 - 1,
    -(2**63),
    2**63,
    -(10**30),
    0.0,
    -0.0,
    1e308,
    math.inf,
    "",
    "text",
    "ü€😀",
    "x" * 255,
    "x" * 256,
    "\ud800",
    b"",
    b"\0\xff",
    b"x" * 255,
    b"x" * 256,
    (),
    (1,),
    (1, "two", 3.0),
    (1, 2, 3, 4),
    tuple(range(100)),
    [],
    [1],
    [None, [True, (b"x",)]],
    list(range(100)),
    ((((1,),),),),
    {"a": 1},
    {1, 2},
    1j,
    ...,
]


def echo(*args: object) -> object:
    return args


def same_objects(a: object, b: object) -> bool:
    return a is b


def count(items: list[int]) -> int:
    items.append(0)
    return len(items)


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: f"{type(value).__name__} {repr(value)[:20]}")
def test_values_arrive_as_they_are(workers, value):
    for back in (
        d.remotecall_fetch(echo, workers[0], value),
        d.remotecall(echo, workers[0], value).fetch(),
        d.remotecall_fetch(echo, workers[0], value, {}),
    ):
        assert repr(back[0]) == repr(value)
        assert type(back[0]) is type(value)


def test_nan_arrives(workers):
    assert math.isnan(d.remotecall_fetch(echo, workers[0], math.nan)[0])


@pytest.mark.parametrize("item", ["a text of some length", (1, 2), [1, 2], b"some bytes"])
def test_an_object_that_is_there_twice_arrives_as_one(workers, item):
    assert d.remotecall_fetch(same_objects, workers[0], item, item)
    a, b = d.remotecall_fetch(echo, workers[0], item, item)
    assert a is b


def test_subclasses_of_plain_types_keep_their_class(workers):
    import collections

    value = collections.OrderedDict(a=1)
    assert type(d.remotecall_fetch(echo, workers[0], value)[0]) is collections.OrderedDict
    point = d.remotecall_fetch(os.stat, workers[0], "/")
    assert type(point) is os.stat_result


def test_lists_are_copies(workers):
    items = [1, 2]
    assert d.remotecall_fetch(count, workers[0], items) == 3
    assert d.remotecall_fetch(count, workers[0], items) == 3
    assert items == [1, 2]


def test_errors_and_classes(workers):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            d.remotecall_fetch(operator.truediv, workers[0], 1, 0)
        with pytest.raises(TypeError):
            d.remotecall(operator.truediv, workers[0], 1).fetch()
        assert d.remotecall_fetch(int, workers[0], "12") == 12


def test_places_that_are_none(workers):
    for call in (d.remotecall, d.remotecall_fetch, d.remote_do):
        d.remotecall_fetch(abs, workers[0], 1)
        with pytest.raises(TypeError):
            call(abs, True, 1)
        with pytest.raises(ValueError, match="no process"):
            call(abs, 0, 1)
        with pytest.raises(ValueError, match="no process"):
            call(abs, -1, 1)
        with pytest.raises(ValueError, match="no process"):
            call(abs, 2**40, 1)
        with pytest.raises(ValueError, match="no process"):
            call(abs, 9999, 1)


def test_a_name_that_means_something_else_now(workers, monkeypatch):
    module = types.ModuleType("pydist_test_renamed")
    exec("def f(x):\n    return 'old', x", module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    old = module.f
    cloudpickle.register_pickle_by_value(module)
    try:
        assert d.remotecall_fetch(old, workers[0], 1) == ("old", 1)
        exec("def f(x):\n    return 'new', x", module.__dict__)
        assert d.remotecall_fetch(module.f, workers[0], 2) == ("new", 2)
        assert d.remotecall_fetch(old, workers[0], 3) == ("old", 3)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_a_module_that_is_registered_later(workers):
    assert d.remotecall_fetch(echo, workers[0], 1) == (1,)
    assert _core.plain_future(echo, workers[0], (1,)) is not None
    module = sys.modules[echo.__module__]
    cloudpickle.register_pickle_by_value(module)
    try:
        assert _core.plain_future(echo, workers[0], (1,)) is None
        assert d.remotecall_fetch(echo, workers[0], 1) == (1,)
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_what_is_not_plain_is_left_to_pickle(workers):
    d.remotecall_fetch(repr, workers[0], 1)
    for value in ({}, 1j, 2**70, [object], [[[[1]]]], "x" * 256, list(range(40))):
        assert _core.plain_future(repr, workers[0], (value,)) is None
    for value in (None, 1, "text", [1, (2.0, b"x")]):
        assert _core.plain_future(repr, workers[0], (value,)).wait() is not None
    assert _core.plain_future(lambda: 1, workers[0], ()) is None


def test_an_item_that_refers_to_its_list(workers):
    items: list[object] = [1]
    items.append(items)
    back = d.remotecall_fetch(echo, workers[0], items)[0]
    assert back[1] is back


def test_values_that_pickle_wrote_are_read(workers):
    for value in PLAIN:
        data = pickle.dumps(value, 5)
        assert repr(d.remotecall_fetch(pickle.loads, workers[0], data)) == repr(value)
