"""What is printed of an exception that comes from another process."""

from __future__ import annotations

import pickle
import threading
from typing import Any

from pydist import _serialize, _traceback_text
from pydist._errors import (
    RemoteException,
    dump_exception,
    load_exception,
    local_exception,
)
from support_errors import caught, printed, sent


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
