"""Exceptions that cross between processes: what is raised, what it knows, and what is printed."""

from __future__ import annotations

import concurrent.futures
import copy
import errno
import pickle
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydist import _errors, _reducers, _remote_error, _serialize, _traceback_text
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

PACKAGES = Path(_errors.__file__).parent.parent


def caught(f: Any, *args: Any) -> BaseException:
    try:
        f(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def output_of(code: str) -> bytes:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={"PYTHONPATH": str(PACKAGES)},
        timeout=60,
        check=True,
    ).stdout


def throw(error: BaseException) -> None:
    raise error


def sent(error: BaseException, pid: int = 2) -> Any:
    """What arrives of an exception that was raised on another process."""
    data, buffers, _ = dump_exception(caught(throw, error), pid)
    return load_exception(data, [bytearray(buffer.raw()) for buffer in buffers])


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(caught(throw, error)))


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


# what is printed


def fails(x: int) -> None:
    raise ValueError("bad")  # the line to be seen


def test_the_remote_traceback_is_printed_once() -> None:
    for error in (
        load_exception(*dump_exception(caught(fails, 1), 7)[:2]),
        local_exception(caught(fails, 1), 7),
    ):
        text = printed(error)
        assert text.count("the line to be seen") == 1
        assert text.count("in fails") == 1
        assert text.count("On worker 7") == 1
        assert text.index("On worker 7") < text.index("the line to be seen")
        assert "in fails" in error.remote_traceback  # type: ignore[attr-defined]


def test_frames_of_pydist_and_the_pickler_are_left_out() -> None:
    class Bad:
        def __reduce__(self) -> Any:
            return broken, ()

    data, _, _ = _serialize.dumps([Bad()])
    error = caught(_serialize.loads, data)
    assert error.__traceback__ is not None
    error.__traceback__ = error.__traceback__.tb_next  # a worker calls `loads` from inside pydist
    text = _traceback_text.format_traceback(error)
    assert "_serialize.py" not in text
    assert "in broken" in text


def broken() -> None:
    raise OSError("broken")


def test_notes_and_chains_are_kept() -> None:
    def inner() -> None:
        try:
            {}["k"]  # type: ignore[index]
        except KeyError as error:
            error.add_note("inner note")
            raise ValueError("bad") from error

    def outer() -> None:
        try:
            inner()
        except ValueError as error:
            error.add_note("own note")
            raise RuntimeError("outer")  # noqa: B904

    error = caught(outer)
    error.add_note("first")
    error.add_note("second")
    arrived: Any = load_exception(*dump_exception(error, 2)[:2])
    assert arrived.captured.__notes__ == ["first", "second"]
    assert arrived.__notes__[:2] == ["first", "second"]
    context = arrived.captured.__context__
    assert (type(context), context.__notes__) == (ValueError, ["own note"])
    assert context.__suppress_context__
    assert arrived.captured.__cause__ is None
    cause = context.__cause__
    assert (type(cause), cause.args, cause.__notes__) == (KeyError, ("k",), ["inner note"])
    assert context.__context__ is cause
    again: Any = pickle.loads(pickle.dumps(arrived))
    assert again.__notes__ == arrived.__notes__
    assert again.captured.__context__.__cause__.args == ("k",)


def test_a_member_of_a_chain_that_cannot_be_pickled_is_told_of() -> None:
    error = ValueError("bad")
    error.__cause__ = KeyError(threading.Lock())
    arrived = sent(error)
    assert isinstance(arrived, ValueError)
    assert arrived.captured.__cause__.type_name == "KeyError"


def test_local_exceptions_look_like_those_from_elsewhere() -> None:
    def chained() -> None:
        try:
            fails(1)
        except ValueError as error:
            raise RuntimeError("outer") from error

    here = printed(local_exception(caught(chained), 2))
    there = printed(load_exception(*dump_exception(caught(chained), 2)[:2]))
    assert here == there


def test_attribute_errors_send_the_name_only() -> None:
    error: Any = caught(lambda: threading.Lock().nothing)  # type: ignore[attr-defined]
    arrived = sent(error)
    assert arrived.name == "nothing"
    assert str(arrived) == str(error)
    assert local_exception(error, 1).obj is error.obj  # type: ignore[attr-defined]


# several processes


def test_an_error_keeps_the_process_where_it_was_first_raised() -> None:
    def relay(error: BaseException) -> None:
        raise error

    arrived: Any = load_exception(*dump_exception(caught(fails, 1), 4)[:2])
    for pid in (3, 2):
        arrived = load_exception(*dump_exception(caught(relay, arrived), pid)[:2])
    assert arrived.pid == 4
    assert type(arrived).__mro__.count(RemoteException) == 1
    assert type(arrived.captured) is ValueError
    text = printed(arrived)
    assert text.count("On worker 4") == text.count("the line to be seen") == 1
    assert text.index("through worker 3") < text.index("through worker 2")
    assert "in relay" in text


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


# what must not raise


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
