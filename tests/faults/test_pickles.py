"""Rows F26 to F29 and F31 of the fault table: what fails while it is pickled, unpickled or printed."""

import gc
import os
import pickle
import socket
import sys
import threading
import traceback
from typing import Any

import pytest

import pydist as d
from support import sends_nothing, wait_until


def echo(x: Any) -> Any:
    return x


def swallow(*args: object, **kwargs: object) -> None:
    return None


def blow_up(error: BaseException, where: str) -> str:
    if (d.myid() == 1) == (where == "here"):
        raise error
    return "whole"


class Rebuilt:
    """Is rebuilt by a function that fails here or there."""

    def __init__(self, error: BaseException, where: str) -> None:
        self.parts = error, where

    def __reduce__(self) -> Any:
        return blow_up, self.parts


class State:
    def __init__(self, where: str) -> None:
        self.where = where

    def __setstate__(self, state: dict[str, Any]) -> None:
        blow_up(ArithmeticError("bad state"), state["where"])


class Reducing:
    """Fails while it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def make(cls: type, *args: Any) -> Any:
    return cls(*args)


def resting() -> tuple[int, int, int]:
    gc.collect()
    stats = d.stats()
    return stats["refs_owned"], stats["refs_held"], stats["calls_outstanding"]


def test_f26_unpicklable_argument(workers):
    """F26: PicklingError at the call site; nothing sent, no ref leaked."""
    wait_until(lambda: resting() == (0, 0, 0))
    future = d.Future()

    def attempt(future=future):
        for call in (d.remotecall, d.remotecall_fetch, d.remotecall_wait, d.remote_do):
            with pytest.raises(pickle.PicklingError, match="lock"):
                call(swallow, workers[0], future, {"lock": threading.Lock()})
            with pytest.raises(pickle.PicklingError, match="no good"):
                call(swallow, workers[0], future, Reducing(ValueError("no good")))

    sends_nothing(attempt)
    del attempt, future
    wait_until(lambda: resting() == (0, 0, 0))
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_f26_exits_while_an_argument_is_pickled(workers, error):
    """F26: what pickling an argument raises comes out of the call, and nothing is left of it."""
    with pytest.raises((type(error), pickle.PicklingError)):
        d.remotecall(swallow, workers[0], Reducing(error))
    wait_until(lambda: resting() == (0, 0, 0))
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


@pytest.mark.parametrize(
    ("f", "args", "texts"),
    [
        (threading.Lock, (), ["lock", "pickle"]),
        (make, (Reducing, ValueError("no good")), ["Reducing", "no good"]),
        (make, (Reducing, SystemExit("leaving")), ["SystemExit", "leaving"]),
        (sys._getframe, (), ["frame", "pickle"]),
        (iter, ((x for x in ()),), ["generator"]),
    ],
    ids=["lock", "raises", "exits", "frame", "generator"],
)
def test_f27_unpicklable_result(workers, f, args, texts):
    """F27: unpicklable result; `__reduce__` raising or exiting: RemoteException(PicklingError, type named).

    The worker lives.
    """
    ospid = d.remotecall_fetch(os.getpid, workers[0])
    if f is iter:
        f, args = (lambda: (x for x in ())), ()
    with pytest.raises(d.RemoteException) as caught:
        d.remotecall(f, workers[0], *args).fetch(timeout=20)
    for text in texts:
        assert text in str(caught.value)
    if "pickle" in texts:
        assert isinstance(caught.value, pickle.PicklingError)
    with pytest.raises(d.RemoteException):
        d.remotecall_fetch(f, workers[0], *args)
    assert d.remotecall_fetch(os.getpid, workers[0]) == ospid


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        (Rebuilt(ValueError("no good"), "there"), "no good"),
        (Rebuilt(SystemExit("leaving"), "there"), "leaving"),
        (Rebuilt(KeyboardInterrupt("by hand"), "there"), "by hand"),
        (State("there"), "bad state"),
    ],
    ids=["raises", "exits", "interrupts", "setstate"],
)
def test_f28_argument_that_cannot_be_unpickled(workers, argument, text):
    """F28: argument unpickle fails in the worker: RemoteException for that call; worker lives."""
    ospid = d.remotecall_fetch(os.getpid, workers[0])
    for call in (d.remotecall_wait, d.remotecall_fetch):
        with pytest.raises(d.RemoteException, match=text) as caught:
            call(swallow, workers[0], [argument])
        assert caught.value.pid == workers[0]
    d.remote_do(swallow, workers[0], argument)
    assert d.remotecall_fetch(os.getpid, workers[0]) == ospid


def test_f28_missing_module_is_named(workers, tmp_path, monkeypatch):
    """F28: missing module: RemoteException for that call; the message names the module."""
    (tmp_path / "pydist_test_missing.py").write_text("class Thing:\n    pass\n\ndef f(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import pydist_test_missing

    for f, argument in ((swallow, pydist_test_missing.Thing()), (pydist_test_missing.f, 1)):
        with pytest.raises(d.RemoteException, match="pydist_test_missing") as caught:
            d.remotecall_fetch(f, workers[0], argument)
        assert isinstance(caught.value, ModuleNotFoundError)
        assert lacks(workers[0], "pydist_test_missing") in caught.value.__notes__
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


def lacks(pid, module):
    advice = f"install it there, or send yours: pydist.upload({module.partition('.')[0]!r}, {pid})"
    return f"worker {pid} (host {socket.gethostname()}) has no module {module!r}; {advice}"


def import_missing():
    import pydist_test_missing_too.part  # noqa: F401


def test_f28_a_module_that_a_call_imports_is_named_with_host_and_id(workers):
    """F28: missing module: the error names the module, the host and the worker, however far it goes."""
    for call in (
        d.remotecall_fetch,
        lambda f, pid: d.remotecall_fetch(d.remotecall_fetch, workers[1], f, pid),
    ):
        with pytest.raises(ModuleNotFoundError) as caught:
            call(import_missing, workers[0])
        assert caught.value.__notes__.count(lacks(workers[0], "pydist_test_missing_too")) == 1
    with pytest.raises(ModuleNotFoundError) as caught:
        d.remotecall_fetch(d.remotecall_fetch, workers[0], import_missing, 1)
    assert f"process 1 (host {socket.gethostname()}) has no module 'pydist_test_missing_too'" in "".join(
        caught.value.__notes__
    )


class TwoArguments(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


class Locked(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class NotHere(Exception):
    def __reduce__(self) -> Any:
        return blow_up, (ValueError("cannot be rebuilt"), "here")


class ExitsHere(Exception):
    def __reduce__(self) -> Any:
        return blow_up, (SystemExit("cannot be rebuilt"), "here")


class NoText(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class NoRepr(NoText):
    __repr__ = NoText.__str__


def fail_with(cls: type[Exception], *args: Any) -> None:
    raise cls(*args)


@pytest.mark.parametrize(
    ("cls", "args", "text"),
    [
        (TwoArguments, (1, 2), "1 and 2"),
        (Locked, ("with a lock",), "with a lock"),
        (NotHere, ("not here",), "not here"),
        (ExitsHere, ("not here",), "not here"),
        (NoText, (), ""),
        (NoRepr, (), ""),
    ],
)
def test_f29_errors_that_cannot_travel(workers, cls, args, text):
    """F29: exception unpicklable, its unpickle fails at the head, or `__str__` raises.

    RemoteException with type name and traceback text; IO thread lives.
    """
    with pytest.raises(d.RemoteException) as caught:
        d.remotecall(fail_with, workers[0], cls, *args).fetch(timeout=20)
    error = caught.value
    printed = "".join(traceback.format_exception(error))
    assert cls.__name__ in printed
    assert text in printed
    assert "in fail_with" in printed
    assert error.pid == workers[0]
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


# --- F31 ----------------------------------------------------------------------------------------------------


def recurse(n: int = 0) -> int:
    return recurse(n + 1) + 1


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def nested_there(depth: int) -> list[Any]:
    return nested(depth)


def cyclic_chain() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    first.__context__, second.__context__ = second, first
    raise first


def long_chain() -> None:
    error: Exception = ValueError("the innermost")
    for i in range(3000):
        outer = ValueError(f"level {i}")
        outer.__cause__ = error
        error = outer
    raise error


def test_f31_recursion_in_a_call(workers):
    """F31: deep recursion in a call: RemoteException(RecursionError)."""
    with pytest.raises(RecursionError) as caught:
        d.remotecall(recurse, workers[0]).fetch(timeout=20)
    assert isinstance(caught.value, d.RemoteException)
    assert len("".join(traceback.format_exception(caught.value))) < 100_000
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


def test_f31_recursion_in_an_argument(workers):
    """F31: deep recursion in an argument: RecursionError at the side that pickles."""
    value = nested(100_000)
    with pytest.raises((RecursionError, pickle.PicklingError), match=r"(?i)recursion"):
        d.remotecall(swallow, workers[0], value)
    assert d.remotecall_fetch(echo, workers[0], 1) == 1
    while value:
        value = value.pop()


def test_f31_recursion_in_a_result(workers):
    """F31: deep recursion in a result: RemoteException(RecursionError)."""
    with pytest.raises(d.RemoteException, match=r"(?i)recursion") as caught:
        d.remotecall(nested_there, workers[0], 100_000).fetch(timeout=20)
    assert isinstance(caught.value, RecursionError | pickle.PicklingError)
    assert d.remotecall_fetch(echo, workers[0], 1) == 1


@pytest.mark.parametrize("f", [cyclic_chain, long_chain])
def test_f31_chains_of_exceptions(workers, f):
    """F31: cyclic exception chain: an error as any other; the worker lives."""
    with pytest.raises(d.RemoteException) as caught:
        d.remotecall(f, workers[0]).fetch(timeout=20)
    assert isinstance(caught.value, ValueError)
    assert f"in {f.__name__}" in "".join(traceback.format_exception(caught.value))
    assert d.remotecall_fetch(echo, workers[0], 1) == 1
