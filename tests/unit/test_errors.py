"""Exceptions that cross between processes: what is raised, and what it knows."""

from __future__ import annotations

import concurrent.futures
import copy
import errno
import pickle
import subprocess
import threading
from typing import Any

import pytest

from pydist import _reducers, _serialize
from pydist._errors import (
    AuthenticationError,
    CallLimitError,
    CancelledError,
    ChannelClosedError,
    ConnectionLostError,
    FrameTooLargeError,
    FutureAlreadySetError,
    LaunchWorkerError,
    NotConnectedError,
    NoWorkersError,
    ProcessExitedException,
    RemoteException,
    ThreadLimitError,
    VersionMismatchError,
    dump_exception,
    load_exception,
    local_exception,
    remote_exception,
)
from support_errors import caught, sent, throw


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code, self.text = code, text


class KeywordOnly(ValueError):
    def __init__(self, *, name: str) -> None:
        super().__init__()
        self.name = name

    def __str__(self) -> str:
        return f"bad {self.name}"


class Slotted(Exception):
    __slots__ = ("a",)

    def __init__(self, a: int) -> None:
        self.a = a


class OwnNew(Exception):
    def __new__(cls, required: int) -> OwnNew:
        made = super().__new__(cls, required)
        made.made = True  # type: ignore[attr-defined]
        return made


class OwnReduce(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.sum = a + b
        self.parts = (a, b)

    def __reduce__(self) -> Any:
        return OwnReduce, self.parts


class WithSetstate(Exception):
    def __setstate__(self, state: Any) -> None:
        self.restored = state


class WithPid(Exception):
    @property
    def pid(self) -> int:
        raise AssertionError("never asked")

    @property
    def captured(self) -> int:
        raise AssertionError("never asked")


class Registering(Exception):
    seen: list[str] = []  # noqa: RUF012

    def __init_subclass__(cls, **kwargs: Any) -> None:
        Registering.seen.append(cls.__name__)


class NeedsKeyword(Exception):
    def __init_subclass__(cls, *, keyword: int) -> None: ...


class DirError(OSError):
    def __init__(self, path: str) -> None:
        super().__init__(errno.ENOENT, "no directory", path)
        self.path = path


class Group(ExceptionGroup[Exception]):
    def derive(self, excs: Any) -> Group:
        return Group(self.message, excs)


def stop() -> BaseException:
    error = StopIteration(5)
    assert error.value == 5
    return error


ORIGINALS: list[Any] = [
    lambda: ValueError("bad"),
    lambda: KeyError("key"),
    lambda: caught(lambda: {}["x"]),  # type: ignore[index]
    lambda: ZeroDivisionError(),
    lambda: FileNotFoundError(errno.ENOENT, "gone", "/a"),
    lambda: OSError(errno.EXDEV, "across", "/a", None, "/b"),
    lambda: OSError("text only"),
    lambda: BlockingIOError(errno.EAGAIN, "later", 5),
    lambda: caught(open, "/does/not/exist"),
    lambda: caught(lambda: b"\xff".decode()),
    lambda: caught(lambda: "é".encode("ascii")),
    lambda: caught(compile, "a b", "file.py", "exec"),
    lambda: caught(__import__, "no.such.module"),
    lambda: ImportError("no", name="a", path="/b"),
    lambda: caught(lambda: undefined_name),  # type: ignore[name-defined]  # noqa: F821
    stop,
    lambda: StopAsyncIteration(),
    lambda: AssertionError(),
    lambda: RecursionError("deep"),
    lambda: MemoryError(),
    lambda: TimeoutError("late"),
    lambda: UserWarning("w"),
    lambda: subprocess.CalledProcessError(3, ["cmd"], b"out", b"err"),
    lambda: concurrent.futures.CancelledError(),
    lambda: TwoArguments(1, "a"),
    lambda: KeywordOnly(name="n"),
    lambda: Slotted(7),
    lambda: OwnNew(1),
    lambda: OwnReduce(1, 2),
    lambda: WithSetstate("a"),
    lambda: DirError("/x"),
    lambda: ExceptionGroup("several", [ValueError(1), TwoArguments(1, "a")]),
    lambda: Group("own", [ValueError(1), ExceptionGroup("inner", [KeyError(2)])]),
    lambda: ProcessExitedException(3, "signal 9", "host", "out"),
    lambda: ConnectionLostError(3, "reset"),
    lambda: NotConnectedError(2, 3),
    lambda: LaunchWorkerError("no", failures=[ValueError(1)], started=[2], host="h", status=1, output="o"),
    lambda: ChannelClosedError("closed"),
]
ATTRIBUTES = {name for make in ORIGINALS for name in vars(make())}
ATTRIBUTES |= {name for make in ORIGINALS for name in _reducers.native_attributes(make())}
ATTRIBUTES -= {"obj"}  # stays where it is


def comparable(value: Any) -> Any:
    if isinstance(value, BaseException):
        return type(value), str(value)
    return [comparable(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("make", ORIGINALS)
@pytest.mark.parametrize("how", ["sent", "local", "made", "sent twice", "copied", "pickled"])
def test_exceptions_come_as_both_classes(make: Any, how: str) -> None:
    original = make()
    error: Any
    if how == "sent":
        error = sent(original)
    elif how == "local":
        error = local_exception(caught(throw, original), 2)
        assert error.captured is original
    elif how == "made":
        error = remote_exception(original, 2, "Traceback")
        assert error.captured is original
    elif how == "sent twice":
        error = sent(sent(original), 3)
    elif how == "copied":
        error = copy.deepcopy(copy.copy(sent(original)))
    else:
        error = pickle.loads(pickle.dumps(sent(original), 4))
    assert isinstance(error, RemoteException)
    assert isinstance(error, type(original))
    assert type(error).__name__ == type(original).__name__
    assert type(error).__module__ == type(original).__module__
    assert str(error) == str(original)
    assert comparable(error.args) == comparable(original.args)
    assert error.__cause__ is error.captured
    assert type(error.captured) is type(original)
    assert str(error.captured) == str(original)
    if not isinstance(original, ProcessExitedException):
        assert error.pid == 2
    for name in ATTRIBUTES:
        if hasattr(original, name):
            assert comparable(getattr(error, name)) == comparable(getattr(original, name)), name
            assert comparable(getattr(error.captured, name)) == comparable(getattr(original, name)), name
    with pytest.raises(type(original)):
        raise error


def test_exceptions_as_values_arrive_as_themselves() -> None:
    for make in ORIGINALS:
        original = make()
        data, buffers, _ = _serialize.dumps([original])
        (arrived,) = _serialize.loads(data, buffers)
        assert type(arrived) is type(original)
        assert str(arrived) == str(original)
    remote = sent(ValueError("bad"))
    data, buffers, _ = _serialize.dumps({"a": [remote]})
    arrived = _serialize.loads(data, buffers)["a"][0]
    assert isinstance(arrived, ValueError)
    assert (arrived.pid, str(arrived), arrived.remote_traceback) == (2, "bad", remote.remote_traceback)


def test_the_class_is_made_once() -> None:
    a, b = sent(ValueError(1)), sent(ValueError(2))
    assert type(a) is type(b)
    assert type(sent(TwoArguments(1, ""))) is not type(a)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit(), "GeneratorExit"),
        (
            BaseExceptionGroup("many", [KeyboardInterrupt()]),
            "BaseExceptionGroup: many (1 sub-exception)",
        ),
    ],
)
@pytest.mark.parametrize("how", ["sent", "local", "sent twice", "pickled", "copied"])
def test_what_is_no_exception_comes_as_a_plain_one(error: BaseException, text: str, how: str) -> None:
    if how == "local":
        arrived: Any = local_exception(caught(throw, error), 2)
    else:
        arrived = sent(error)
        if how == "sent twice":
            arrived = sent(arrived, 3)
        elif how == "pickled":
            arrived = pickle.loads(pickle.dumps(arrived))
        elif how == "copied":
            arrived = copy.copy(arrived)
    assert type(arrived) is RemoteException
    assert str(arrived) == text
    assert arrived.args == (text,)
    assert type(arrived.captured) is type(error)
    assert comparable(arrived.captured.args) == comparable(error.args)
    assert arrived.type_name == type(error).__name__
    assert arrived.pid == 2
    assert "Traceback" in arrived.remote_traceback


def test_a_group_works_in_except_star() -> None:
    seen: list[Any] = []
    try:
        raise sent(ExceptionGroup("several", [ValueError(1), KeyError(2), ProcessExitedException(3)]))
    except* ValueError as group:
        seen.append([str(e) for e in group.exceptions])
    except* (KeyError, ProcessExitedException) as group:
        seen.append(len(group.exceptions))
    assert seen == [["1"], 2]


def test_a_group_with_a_member_that_cannot_be_pickled() -> None:
    bad = ValueError(threading.Lock())
    arrived = sent(ExceptionGroup("several", [KeyError("k"), bad]))
    assert isinstance(arrived, ExceptionGroup)
    first, second = arrived.exceptions
    assert type(first) is KeyError
    assert type(second) is RemoteException
    assert second.type_name == "ValueError"


def test_names_of_the_original_do_not_hide_our_own() -> None:
    arrived = sent(WithPid("a"))
    assert isinstance(arrived, WithPid)
    assert arrived.pid == 2
    assert type(arrived.captured) is WithPid
    error = ValueError("a")
    error.pid = 77  # type: ignore[attr-defined]
    arrived = sent(error)
    assert (arrived.pid, arrived.captured.pid) == (2, 77)


def test_the_pid_of_a_process_that_exited_is_kept() -> None:
    arrived = sent(ProcessExitedException(5, "signal 9", "h", "bye"))
    assert arrived.pid == arrived.captured.pid == 5
    assert str(arrived) == "worker 5 (h) exited: signal 9\nits last output:\nbye"


def test_subclass_hooks_of_users_do_not_run() -> None:
    arrived = sent(Registering("a"))
    assert isinstance(arrived, Registering)
    assert Registering.seen == []
    assert isinstance(sent(NeedsKeyword("a")), NeedsKeyword)


def test_where_no_class_of_both_is_possible_a_plain_one_comes() -> None:
    class Meta(type):
        def __new__(cls, name: str, bases: Any, namespace: Any, **kwargs: Any) -> Any:
            if namespace.get("_stands_for"):
                raise SystemExit
            return super().__new__(cls, name, bases, namespace)

    class Error(Exception, metaclass=Meta): ...

    error = Error("a")
    arrived = remote_exception(error, 2, "")
    assert type(arrived) is RemoteException
    assert arrived.captured is error
    assert str(arrived).endswith("Error: a")


# several processes


def test_nothing_is_wrapped_twice() -> None:
    arrived = sent(ValueError("bad"))
    assert remote_exception(arrived, 9, "other") is arrived
    assert local_exception(arrived, 9) is arrived


def test_an_error_raised_from_a_remote_one_keeps_it() -> None:
    def wrap() -> None:
        try:
            raise sent(ValueError("bad"), 3)
        except ValueError as error:
            raise RuntimeError("worse") from error

    arrived: Any = load_exception(*dump_exception(caught(wrap), 2)[:2])
    assert (arrived.pid, type(arrived.captured)) == (2, RuntimeError)
    cause = arrived.captured.__cause__
    assert isinstance(cause, RemoteException)
    assert isinstance(cause, ValueError)
    assert cause.pid == 3
    assert arrived.remote_traceback.count("On worker 3") == 1


# references and buffers in exceptions


class Reference:
    def __reduce__(self) -> Any:
        return str, (str(_serialize.note_ref(1, 2, 3)),)


class Refusing:
    def __reduce__(self) -> Any:
        raise ValueError("no")


def test_references_and_buffers_in_exceptions() -> None:
    import numpy as np

    error = ValueError(Reference(), np.arange(5))
    error.__cause__ = KeyError(np.arange(3), Reference())
    data, buffers, refs = dump_exception(error, 2)
    assert refs == [(1, 2, 3)] * 2
    assert [buffer.raw().nbytes for buffer in buffers] == [40, 24]
    arrived: Any = load_exception(data, [bytearray(buffer.raw()) for buffer in buffers])
    assert arrived.args[0] == "True"
    assert arrived.args[1].tolist() == [0, 1, 2, 3, 4]
    assert arrived.captured.__cause__.args[0].tolist() == [0, 1, 2]
    again = pickle.loads(pickle.dumps(arrived))
    assert again.args[1].tolist() == [0, 1, 2, 3, 4]
    inside, _, refs = _serialize.dumps([remote_exception(ValueError(Reference()), 2, "")])
    assert refs == [(1, 2, 3)]
    assert _serialize.loads(inside)[0].args == ("True",)


def test_a_failure_leaves_no_references() -> None:
    data, buffers, refs = dump_exception(ValueError(Reference(), Refusing()), 2)
    assert refs == []
    assert buffers == []
    assert not _serialize.dumping()
    assert load_exception(data).captured is None  # type: ignore[attr-defined]


# the other exceptions


def test_messages() -> None:
    assert str(ProcessExitedException(2)) == "worker 2 exited"
    assert str(ProcessExitedException(1, "exit code 1")) == "process 1 exited: exit code 1"
    assert str(ConnectionLostError(2, "reset", "h")) == "worker 2 (h) cannot be reached: reset"
    error = ProcessExitedException(2, "signal 9 (SIGKILL)", "node1", "a\nb\n")
    assert str(error) == "worker 2 (node1) exited: signal 9 (SIGKILL)\nits last output:\na\nb"
    assert (error.pid, error.reason, error.host, error.output) == (2, "signal 9 (SIGKILL)", "node1", "a\nb\n")
    connected = NotConnectedError(2, 3, "master_worker")
    assert (connected.here, connected.there) == (2, 3)
    assert str(connected) == "process 2 is not connected to process 3: master_worker"
    launch = LaunchWorkerError("two failed", failures=[ValueError("a")], started=[2, 3], host="h", status=4)
    assert str(launch) == "two failed (host h)\nexit status 4\n- a\nthese have started: 2, 3"
    assert LaunchWorkerError().failures == LaunchWorkerError().started == []


def test_base_classes() -> None:
    bases = {
        ConnectionLostError: ProcessExitedException,
        NotConnectedError: ConnectionError,
        LaunchWorkerError: RuntimeError,
        NoWorkersError: RuntimeError,
        FutureAlreadySetError: RuntimeError,
        ThreadLimitError: RuntimeError,
        CallLimitError: RuntimeError,
        AuthenticationError: ConnectionError,
        VersionMismatchError: ConnectionError,
        FrameTooLargeError: ValueError,
    }
    assert all(issubclass(cls, base) for cls, base in bases.items())
    assert CancelledError is concurrent.futures.CancelledError


@pytest.mark.parametrize(
    "error",
    [
        ProcessExitedException(2, "signal 9", "h", "out"),
        ConnectionLostError(2),
        NotConnectedError(2, 3, "why"),
        LaunchWorkerError(
            "no", failures=[NotConnectedError(1, 2)], started=[2], host="h", status=1, output="o"
        ),
        ChannelClosedError("closed"),
        NoWorkersError("none"),
        VersionMismatchError("0.1 and 0.2"),
        FrameTooLargeError("2 GiB"),
        RemoteException("text", pid=3, type_name="m.Error", remote_traceback="Traceback"),
        RemoteException("text"),
    ],
    ids=lambda e: type(e).__name__,
)
def test_our_own_exceptions_can_be_pickled_and_copied(error: Any) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error), sent(error)):
        assert isinstance(other, type(error))
        assert str(other) == str(error)
        for name in ("pid", "reason", "host", "output", "here", "there", "started", "status", "type_name"):
            if hasattr(error, name) and not (name == "type_name" and type(other) is not type(error)):
                assert getattr(other, name) == getattr(error, name)
