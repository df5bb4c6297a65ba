"""Code in `__main__` of all processes: text, functions, classes, later workers, errors, tracebacks."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

import pydist as d
from support import nap, run_script, wait_until

Workers = list[int]


@pytest.fixture(autouse=True)
def clean_main() -> Iterator[None]:
    """Leave `__main__` of this process as it was."""
    import __main__

    before = dict(__main__.__dict__)
    yield
    __main__.__dict__.clear()
    __main__.__dict__.update(before)


@pytest.fixture
def persistent() -> Iterator[None]:
    """Have nothing persist beyond a test."""
    from pydist import _everywhere

    yield
    _everywhere._persistent.clear()


def main_value(name: str, pid: int) -> Any:
    return d.remotecall_eval(name, pid)


def test_text_runs_in_main_of_all_processes(workers):
    assert d.everywhere("import math\nwhere_am_i = __import__('pydist').myid()") is None
    for pid in [1, *workers]:
        assert main_value("where_am_i", pid) == pid
        assert main_value("math.floor(2.5)", pid) == 2


def test_text_from_a_worker_runs_on_all_processes(workers):
    d.remotecall_fetch(lambda: d.everywhere("from_worker = 5"), workers[0])
    assert [main_value("from_worker", pid) for pid in [1, *workers]] == [5, 5, 5]


@pytest.mark.parametrize("kind", ["id", "list", "pool"])
def test_pids(workers, kind):
    some = {"id": workers[0], "list": [workers[0], 1], "pool": d.WorkerPool(workers[:1])}[kind]
    d.everywhere(f"only_some_{kind} = 1", some)
    assert main_value(f"only_some_{kind}", workers[0]) == 1
    there = {pid: main_value(f"'only_some_{kind}' in globals()", pid) for pid in [1, workers[1]]}
    assert there == {1: kind == "list", workers[1]: False}


def test_names_are_sent_along_as_values(workers):
    d.everywhere("total = sum(code) + pids", code=[1, 2, 3], pids=4)
    assert [main_value("total", pid) for pid in [1, *workers]] == [10, 10, 10]
    d.remotecall_eval("assert x == 2", workers, x=2)


def test_text_may_be_indented_and_keeps_its_annotations(workers):
    d.everywhere("""
        def annotated(x: int) -> str:
            return str(x)
    """)
    assert main_value("annotated.__annotations__", workers[0]) == {"x": int, "return": str}


@pytest.mark.parametrize("how", ["plain", "pids", "keyword", "call"])
def test_a_function(workers, how):
    def triple(x: int) -> int:
        return 3 * x

    match how:
        case "plain":
            defined = d.everywhere(triple)
        case "pids":
            defined = d.everywhere(workers)(triple)
        case "keyword":
            defined = d.everywhere(persist=False)(triple)
        case _:
            defined = d.everywhere(triple, workers)
    assert defined is triple
    assert [main_value("triple(4)", pid) for pid in workers] == [12, 12]
    import __main__

    assert hasattr(__main__, "triple") == (how in ("plain", "keyword"))


def test_a_class_and_its_redefinition(workers):
    for value in (1, 2):

        @d.everywhere
        class Thing:
            number = value

        made = main_value("Thing()", workers[0])
        assert type(made) is Thing
        assert made.number == value


def test_what_is_neither_text_nor_function(workers):
    with pytest.raises(TypeError, match="float"):
        d.everywhere(1.5, workers)
    with pytest.raises(TypeError, match="needs a function or class with a name"):
        d.everywhere(lambda: 1)
    with pytest.raises(TypeError, match="names for source text only, not x"):
        d.everywhere(nap, x=1)
    with pytest.raises(ValueError, match="99999"):
        d.everywhere("1", [99_999])
    with pytest.raises(TypeError, match="str"):
        d.everywhere("1", ["a"])
    with pytest.raises(TypeError, match="code must be a str"):
        d.remotecall_eval(1, workers)
    with pytest.raises(pickle.PicklingError):
        d.everywhere("1", x=threading.Lock())


def test_text_that_is_no_python_runs_nowhere(workers):
    with pytest.raises(SyntaxError) as caught:
        d.everywhere("ran = 1\nthis is no Python")
    assert "this is no Python" in "".join(traceback.format_exception(caught.value))
    assert not any(main_value("'ran' in globals()", pid) for pid in [1, *workers])


# --- errors -------------------------------------------------------------------------------------------------


def test_a_single_error_is_a_group_too(workers):
    text = f"""
        import pydist
        if pydist.myid() == {workers[1]}:
            raise KeyError("only here")
        fine = 1
    """
    for attempt in (lambda: d.everywhere(text), lambda: d.remotecall_eval(text, workers)):
        with pytest.raises(ExceptionGroup, match=f"failed on process {workers[1]}") as caught:
            attempt()
        (error,) = caught.value.exceptions
        assert isinstance(error, KeyError)
        assert error.pid == workers[1]
    assert [main_value("fine", pid) for pid in [1, workers[0]]] == [1, 1]


def test_the_errors_of_several_are_in_one_group(workers):
    with pytest.raises(ExceptionGroup, match=f"failed on processes 1, {workers[0]}, {workers[1]}") as caught:
        d.everywhere("int('eighty')")
    assert [error.pid for error in caught.value.exceptions] == [1, *workers]
    assert all(isinstance(error, ValueError) for error in caught.value.exceptions)
    assert type(caught.value) is ExceptionGroup


def test_sys_exit_in_a_text_ends_no_process(workers):
    with pytest.raises(ExceptionGroup) as caught:
        d.everywhere("import sys; sys.exit(3)")
    assert [error.type_name for error in caught.value.exceptions] == ["SystemExit"] * 3


def test_tracebacks_show_the_lines_of_texts(workers):
    d.everywhere("""
        def divide(a, b):
            return a / b  # this line
    """)
    with pytest.raises(ExceptionGroup) as caught:
        d.everywhere("divide(1, 0)  # that line")
    for error in caught.value.exceptions:
        text = "".join(traceback.format_exception(error))
        assert "return a / b  # this line" in text
        assert "divide(1, 0)  # that line" in text
        assert "pydist/_everywhere.py" not in text
    with pytest.raises(ZeroDivisionError) as single:
        d.remotecall_eval("2 + 2\ndivide(1, 0)  # in eval", workers[0])
    assert "divide(1, 0)  # in eval" in "".join(traceback.format_exception(single.value))


@pytest.mark.timeout(60)
def test_f10_kill_during_everywhere(fresh_workers, tmp_path):
    """F10: composite error naming each failed worker; others complete."""
    pids = fresh_workers(3)
    ospids = [d.remotecall_fetch(os.getpid, pid) for pid in pids]
    text = """
        import pydist, support
        support.touch(f"{folder}/{pydist.myid()}")
        while pydist.myid() in doomed:
            support.nap(0.05)
        done = True
    """
    caught = []

    def run() -> None:
        try:
            d.everywhere(text, pids, folder=str(tmp_path), doomed=pids[:2])
        except BaseException as error:
            caught.append(error)

    running = threading.Thread(target=run)
    running.start()
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3)
    for ospid in ospids[:2]:
        os.kill(ospid, signal.SIGKILL)
    running.join(2)
    assert not running.is_alive()
    (group,) = caught
    assert type(group) is ExceptionGroup
    assert str(group).startswith(f"everywhere failed on processes {pids[0]}, {pids[1]}")
    assert [type(error) for error in group.exceptions] == [d.ProcessExitedException] * 2
    assert sorted(error.pid for error in group.exceptions) == pids[:2]
    assert main_value("done", pids[2]) is True
    with pytest.raises(ExceptionGroup) as gone:
        d.everywhere("late = 1", pids)
    assert [error.pid for error in gone.value.exceptions] == pids[:2]
    assert main_value("late", pids[2]) == 1


# --- workers that come later --------------------------------------------------------------------------------


def test_what_persists_runs_on_workers_that_come_later(workers, fresh_workers, persistent):
    d.everywhere("import math; runs = globals().get('runs', 0) + 1; offset = o", persist=True, o=5)

    @d.everywhere(persist=True)
    def shift(x: int) -> int:
        import __main__

        return x + __main__.offset

    d.everywhere("passing = 1")
    new = fresh_workers(2)
    for pid in [1, *workers, *new]:
        assert main_value("shift(math.floor(1.5)), runs", pid) == (6, 1)
    assert not any(main_value("'passing' in globals()", pid) for pid in new)

    def later(x: int) -> str:
        return "the later one"

    later.__name__ = "shift"
    d.everywhere(persist=True)(later)

    assert main_value("shift(1)", fresh_workers(1)[0]) == "the later one"


def test_a_worker_can_have_things_persist(workers, fresh_workers, persistent):
    d.remotecall_fetch(lambda: d.everywhere("persisted = 7", persist=True), workers[0])
    assert main_value("persisted", fresh_workers(1)[0]) == 7


def test_what_failed_does_not_persist(workers, fresh_workers, persistent):
    with pytest.raises(ExceptionGroup):
        d.everywhere("1 / 0", persist=True)
    fresh_workers(1)


def test_a_worker_that_cannot_run_it_does_not_start(workers, fresh_workers, persistent):
    d.everywhere(
        "import pydist\nif pydist.myid() > limit: raise OSError('no licence')",
        persist=True,
        limit=max(workers),
    )
    with pytest.raises(d.LaunchWorkerError, match="no licence") as caught:
        fresh_workers(1)
    assert caught.value.started == []
    assert d.workers() == workers


# --- scripts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_definitions_of_a_script(how):
    done = run_script(
        """
        import pydist as d

        pids = d.addprocs(2)
        scale = 10

        @d.everywhere
        def is_even(n):
            return n == 0 or is_odd(n - 1)

        @d.everywhere
        def is_odd(n):
            return n != 0 and is_even(n - 1)

        @d.everywhere
        class Point:
            def __init__(self, x):
                self.x = x * scale

            def twice(self):
                return Point(self.x)

        print(d.remotecall_eval("is_even(10), is_even(11)", pids[0]))
        point = d.remotecall_eval("Point(3)", pids[0])
        print(type(point) is Point, point.x, type(d.remotecall_fetch(point.twice, pids[1])) is Point)

        d.everywhere('''
            class Text:
                def __init__(self, x):
                    self.x = x
        ''')
        print(all(type(d.remotecall_eval("Text(1)", pid)) is Text for pid in pids))
        d.everywhere("scale = 100")
        print(d.remotecall_eval("Point(3).x", pids[0]))
        """,
        how=how,
    )
    assert (done.stdout, done.stderr) == (
        "(True, False)\nTrue 30 True\nTrue\n300\n",
        "",
    )
