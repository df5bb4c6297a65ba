"""Exceptions that cannot be sent, printed or loaded as they are: one comes all the same."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydist import _remote_error
from pydist._errors import (
    RemoteException,
    dump_exception,
    load_exception,
)
from support_errors import caught, output_of, sent


class BadStr(Exception):
    def __str__(self) -> str:
        raise SystemExit("in str")

    __repr__ = __str__


class BadReduce(Exception):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error("in reduce")


class BadState(Exception):
    def __setstate__(self, state: Any) -> None:
        raise state["error"]("in setstate")


class NotAnException(Exception):
    def __reduce__(self) -> Any:
        return int, ()


class Hostile(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


class OwnInitAndReduce(Exception):
    """What an exception with two arguments did before: its reduce gives one."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(a)

    def __reduce__(self) -> Any:
        return type(self), self.args


def plain(error: BaseException, name: str, text: str | None = None) -> RemoteException:
    arrived: Any = sent(error)
    assert type(arrived) is RemoteException
    assert arrived.captured is None
    assert name in arrived.type_name
    assert name in str(arrived)
    assert name in arrived.remote_traceback
    assert arrived.pid == 2
    if text is not None:
        assert text in str(arrived)
        assert text in arrived.remote_traceback
    assert type(pickle.loads(pickle.dumps(arrived))) is RemoteException
    return arrived  # type: ignore[no-any-return]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, MemoryError, RecursionError])
def test_what_cannot_be_sent_comes_as_a_plain_one(error: type[BaseException]) -> None:
    plain(BadReduce(error), "BadReduce")
    state = BadState("text")
    state.error = error  # type: ignore[attr-defined]
    plain(state, "BadState", "text")


def test_other_exceptions_that_do_not_arrive() -> None:
    plain(ValueError("text", threading.Lock()), "ValueError", "text")
    plain(OwnInitAndReduce(1, 2), "OwnInitAndReduce")
    plain(NotAnException("text"), "NotAnException", "text")
    error = ValueError("text")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    plain(error, "ValueError", "text")


def test_str_and_getattribute_that_raise() -> None:
    arrived = sent(BadStr("a"))
    assert isinstance(arrived, BadStr)
    assert "__str__ raised SystemExit" in str(arrived)
    hostile: Any = load_exception(*dump_exception(Hostile(), 2)[:2])
    assert type(hostile) is RemoteException
    assert "Hostile" in str(hostile)


def test_odd_notes_and_attributes() -> None:
    error = ValueError("a")
    error.__notes__ = 5  # type: ignore[assignment]
    assert str(sent(error)) == "a"
    error.__notes__ = ["a", 5, BadStr()]  # type: ignore[list-item]
    assert str(sent(error)) == "a"
    assert str(sent(ValueError("\udcff"))) == "\udcff"
    assert len(str(sent(ValueError("x" * 10**6)))) == 10**6
    assert len(sent(ValueError("x" * 10**6)).remote_traceback) < 70_000


def test_cyclic_and_deep_chains() -> None:
    a, b = ValueError("a"), KeyError("b")
    a.__cause__, b.__cause__ = b, a
    a.__context__ = a.__cause__
    arrived = sent(a)
    assert arrived.captured.__cause__.__cause__ is arrived.captured
    selfish = ValueError("me")
    selfish.args = (selfish,)
    arrived = sent(selfish)
    assert arrived.captured.args[0] is arrived.captured
    deep: BaseException = ValueError(0)
    for i in range(5_000):
        above = ValueError(i + 1)
        above.__context__ = deep
        deep = above
    arrived = sent(deep)
    assert str(arrived) == "5000"
    depth, link = 0, arrived.captured
    while link is not None:
        depth, link = depth + 1, link.__context__
    assert depth == _remote_error.MAX_CHAIN


def test_recursion_errors_arrive() -> None:
    def forever() -> None:
        forever()

    error = caught(forever)
    arrived: Any = load_exception(*dump_exception(error, 2)[:2])
    assert isinstance(arrived, RecursionError)
    assert len(arrived.remote_traceback) < 5_000
    nested: Any = []
    for _ in range(5_000):
        nested = [nested]
    plain(ValueError("text", nested), "ValueError")


def test_near_the_recursion_limit_nothing_is_raised() -> None:
    results: list[Any] = []

    def down() -> None:
        try:
            down()
        except RecursionError:
            data, buffers, _ = dump_exception(ValueError("a"), 2)
            results.append(load_exception(data, buffers))
            raise

    with pytest.raises(RecursionError):
        down()
    assert results
    assert all(isinstance(result, RemoteException) for result in results)


def without_large_memos(data: bytes) -> bytes:
    """Drop the opcodes that number a value: by these a few bytes have pickle fill gigabytes of memory."""
    return data.translate(None, b"pr")


@given(st.binary(max_size=200).map(without_large_memos))
def test_whatever_is_loaded_an_exception_comes(data: bytes) -> None:
    assert isinstance(load_exception(data, []), RemoteException)


def test_a_shortened_message_gives_an_exception() -> None:
    data, _, _ = dump_exception(ValueError("a"), 2)
    for end in range(len(data)):
        assert isinstance(load_exception(data[:end], []), RemoteException)


def test_a_missing_module_leaves_the_text() -> None:
    code = """
import sys, types
from pydist import _errors
module = types.ModuleType("vanished")
sys.modules["vanished"] = module
exec("class Error(Exception): pass", module.__dict__)
module.Error.__module__ = "vanished"
sys.stdout.buffer.write(_errors.dump_exception(module.Error("text"), 2)[0])
"""
    arrived: Any = load_exception(output_of(code))
    assert type(arrived) is RemoteException
    assert str(arrived) == "vanished.Error: text"
    assert arrived.type_name == "vanished.Error"


def test_errors_of_main_arrive_by_value() -> None:
    code = """
import sys
from pydist import _errors
class MainError(ValueError):
    def __init__(self, a, b): super().__init__(a); self.b = b
sys.stdout.buffer.write(_errors.dump_exception(MainError(1, 2), 2)[0])
"""
    arrived: Any = load_exception(output_of(code))
    assert isinstance(arrived, ValueError)
    assert type(arrived.captured).__name__ == "MainError"
    assert (arrived.b, arrived.args, str(arrived)) == (2, (1,), "1")
