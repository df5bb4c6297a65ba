"""Errors of other processes in debuggers and in what prints tracebacks: frames, lines, notes and chains."""

import gc
import io
import linecache
import logging
import pdb
import subprocess
import sys
import traceback
import types
import weakref
from typing import Any

import pytest

import pydist as d
from pydist import _errors, _frames
from support import TESTS

REMOTE = "/only/on/the/worker.py"
TEXT = """\
class Counter:
    def step(self, n):
        left = [10, 20]
        return left[n]  # the line that fails


def count(n):
    try:
        return Counter().step(n)
    except IndexError as error:
        error.add_note("a note at the worker")
        raise ValueError("cannot count") from error


def descend(n):
    if n == 0:
        raise RecursionError("deep")
    descend(n - 1)
"""


def define(text: str = TEXT, name: str = REMOTE) -> None:
    """Defines functions of a file that other processes do not have."""
    lines = text.splitlines(keepends=True)
    linecache.cache[name] = (len(text), None, lines, name)
    module = types.ModuleType("only_there")
    sys.modules["only_there"] = module
    exec(compile(text, name, "exec"), module.__dict__)


def call(name: str, *args: Any) -> Any:
    return getattr(sys.modules["only_there"], name)(*args)


@pytest.fixture
def worker(workers: list[int]) -> Any:
    d.remotecall_fetch(define, workers[0])
    linecache.cache.pop(REMOTE, None)
    yield workers[0]
    for name in [name for name in linecache.cache if name.startswith(REMOTE)]:
        del linecache.cache[name]


def caught(where: int, name: str, *args: Any) -> Any:
    with pytest.raises(d.RemoteException) as info:
        d.remotecall_fetch(call, where, name, *args)
    return info.value


def frames(error: BaseException | None) -> list[tuple[str, str, int | None, str | None]]:
    assert error is not None
    return [
        (each.filename, each.name, each.lineno, each.line)
        for each in traceback.extract_tb(error.__traceback__)
    ]


def test_the_frames_come_as_a_traceback_with_lines(worker):
    error = caught(worker, "count", 5)
    assert error.__cause__ is error.captured
    (_, outer, _, _), inner = frames(error.captured)
    assert outer == "call"
    assert inner == (REMOTE, "count", 12, 'raise ValueError("cannot count") from error')
    first = error.captured.__cause__
    assert isinstance(first, IndexError)
    assert first.__notes__ == ["a note at the worker"]
    assert frames(first) == [
        (REMOTE, "count", 9, "return Counter().step(n)"),
        (REMOTE, "step", 4, "return left[n]  # the line that fails"),
    ]
    text = "".join(traceback.format_tb(first.__traceback__))
    assert "           ~~~~^^^\n" in text
    frame = first.__traceback__.tb_next.tb_frame
    assert (frame.f_code.co_qualname, frame.f_code.co_firstlineno, frame.f_lineno) == ("Counter.step", 2, 4)
    assert (frame.f_globals["__name__"], frame.f_locals, frame.f_back) == ("only_there", {}, None)


def test_what_is_printed_shows_the_lines_once(worker):
    error = caught(worker, "count", 5)
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.handle(logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), (type(error), error, None)))
    again = "".join(traceback.format_exception(error))
    assert error.captured is not None  # its traceback is made
    for text in (log.getvalue(), again, "".join(traceback.format_exception(error))):
        assert text.count("# the line that fails") == 1
        assert "a note at the worker" in text
        assert text.count(f"On worker {worker} (") == 1


@pytest.mark.parametrize("look", ["pass", "error.__cause__", "error.captured.__cause__"])
def test_python_prints_an_uncaught_error_once(run_script, look):
    done = run_script(f"""
        import pydist as d

        def fail(x):
            try:
                [][x]
            except IndexError as error:
                raise ValueError("cannot") from error  # the culprit

        (worker,) = d.addprocs(1)
        try:
            {{}}["here"]
        except KeyError:
            try:
                d.remotecall_fetch(fail, worker, 3)
            except ValueError as error:
                {look}
                raise
        """)
    lines = done.stderr.splitlines()
    assert sum("# the culprit" in line for line in lines) == 1
    assert sum("[][x]" in line for line in lines) == 1
    assert lines.count("ValueError: cannot") == 2  # of the error, and of the text in its note
    assert lines.count("IndexError: list index out of range") == 1
    assert lines[0] == "Traceback (most recent call last):"


@pytest.mark.parametrize("kind", ["from other", "from error.captured", "from None", ""])
def test_an_error_that_is_raised_from_another_one(worker, kind):
    error = caught(worker, "count", 5)
    other = LookupError("other")
    with pytest.raises(ValueError, match="cannot count") as info:
        exec(f"raise error {kind}", {"error": error, "other": other})
    assert info.value.__cause__ is (other if kind == "from other" else error.captured)
    text = "".join(traceback.format_exception(info.value))
    assert text.count("# the line that fails") == 1
    assert ("LookupError: other\n\nThe above" in text) == (kind == "from other")


def test_post_mortem_shows_the_lines_of_the_worker(worker):
    error = caught(worker, "count", 5)
    out = io.StringIO()
    debugger = pdb.Pdb(stdin=io.StringIO("where\nlist\nup\nlonglist\np n\nq\n"), stdout=out, nosigint=True)
    debugger.use_rawinput = False
    debugger.reset()
    debugger.interaction(None, error.__cause__.__cause__.__traceback__)
    text = out.getvalue()
    assert f"> {REMOTE}(4)step()\n-> return left[n]" in text
    assert "  4  ->\t" in text
    assert f"> {REMOTE}(9)count()\n-> return Counter().step(n)" in text
    assert "  7  \tdef count(n):" in text
    assert "  9  ->\t        return Counter().step(n)" in text
    assert "NameError: name 'n' is not defined" in text


def test_a_script_at_its_end_can_be_debugged(run_script):
    done = run_script("""
        import io, pdb, sys
        import pydist as d

        (worker,) = d.addprocs(1)

        def divide(a, b):
            return a / b  # here

        try:
            d.pmap(divide, [1], [0])
        except ZeroDivisionError as error:
            pdb.sys.stdin = io.StringIO("q\\n")
            pdb.post_mortem(error.__cause__.__traceback__)
        """)
    assert done.returncode == 0, done.stderr
    assert "divide()\n-> return a / b  # here" in done.stdout


def test_rich_shows_the_frames_of_the_worker(worker):
    console = pytest.importorskip("rich.console")
    tracebacks = pytest.importorskip("rich.traceback")
    error = caught(worker, "count", 5)
    out = io.StringIO()
    shown = tracebacks.Traceback.from_exception(type(error), error, error.__traceback__, show_locals=True)
    console.Console(file=out, width=120, no_color=True).print(shown)
    text = out.getvalue()
    assert "❱  4 │   │   return left[n]  # the line that fails" in text
    assert "❱ 12 │   │   raise ValueError" in text
    assert "a note at the worker" in text


def test_ipython_shows_and_debugs_the_frames_of_the_worker(worker):
    ultratb = pytest.importorskip("IPython.core.ultratb")
    error = caught(worker, "count", 5)
    text = ultratb.FormattedTB(mode="Context", theme_name="nocolor").text(
        type(error), error, error.__traceback__
    )
    assert "----> 4         return left[n]  # the line that fails" in text
    assert f"File {REMOTE}:12, in count()" in text
    code = f"""
import sys
sys.path.insert(0, {str(TESTS / "ecosystem")!r})
sys.path.insert(0, {str(TESTS)!r})
import pydist as d, test_debugging
(worker,) = d.addprocs(1)
d.remotecall_fetch(test_debugging.define, worker)
ip = get_ipython()
ip.run_cell("d.remotecall_fetch(test_debugging.call, worker, 'count', 5)")
ip.run_cell("%debug")
"""
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--simple-prompt", "--colors=NoColor", "--no-banner", "-c", code],
        input="exceptions 0\nlist\nq\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"> {REMOTE}(4)step()" in done.stdout, done.stdout + done.stderr
    assert "----> 4         return left[n]  # the line that fails" in done.stdout.rpartition("exceptions")[2]


def test_an_error_passed_on_keeps_its_frames(workers, worker):
    def relay() -> Any:
        return d.remotecall_fetch(call, worker, "count", 5)

    with pytest.raises(ValueError, match="cannot count") as info:
        d.remotecall_fetch(relay, workers[1])
    error: Any = info.value
    assert error.pid == worker
    assert [name for _, name, _, _ in frames(error.captured)] == ["call", "count"]
    assert frames(error.captured.__cause__)[-1][3] == "return left[n]  # the line that fails"


def test_calls_to_this_process_and_maps_have_frames_too(worker):
    define()
    with pytest.raises(ValueError, match="cannot count") as here:
        d.remotecall_fetch(call, 1, "count", 5)
    with pytest.raises(ValueError, match="cannot count") as mapped:
        d.pmap(call, ["count"] * 3, [0, 1, 2], pool=d.WorkerPool([worker]))
    for error in (here.value, mapped.value):
        assert frames(error.__cause__)[-1][:3] == (REMOTE, "count", 12)


def test_members_of_a_group_have_frames(worker):
    def several() -> None:
        errors = []
        for name, n in (("count", 7), ("descend", 2)):
            try:
                call(name, n)
            except Exception as error:
                errors.append(error)
        raise ExceptionGroup("several", errors)

    with pytest.raises(ExceptionGroup) as info:
        d.remotecall_fetch(several, worker)
    group: Any = info.value.__cause__
    assert [frames(each)[-1][1] for each in group.exceptions] == ["count", "descend"]
    assert len(frames(group.exceptions[1])) == 5


def test_a_deep_traceback_loses_its_middle(worker):
    error = caught(worker, "descend", 500)
    found = frames(error.__cause__)
    assert len(found) == _frames.FRAMES_MAX
    assert found[0][1] == "call"
    assert found[-1][3] == 'raise RecursionError("deep")'


def test_a_file_that_is_different_here_keeps_its_lines(workers, tmp_path):
    path = tmp_path / "module.py"
    path.write_text("mine = 1\n" * 30)
    d.remotecall_fetch(define, workers[0], TEXT, str(path))
    error = caught(workers[0], "count", 5)
    ((name, _, _, line), _) = frames(error.__cause__.__cause__)
    assert line == "return Counter().step(n)"
    assert name.startswith(f"{path} on worker {workers[0]}")
    linecache.checkcache()
    assert linecache.getline(str(path), 9) == "mine = 1\n"


def test_no_traceback_is_made_that_nobody_asks_for(worker):
    error = caught(worker, "count", 5)
    original = error._info.captured
    str(error), repr(error), error.pid, traceback.format_exception(error)
    assert original.__traceback__ is None
    assert error.__cause__ is original
    assert original.__traceback__ is not None


def test_tracebacks_keep_nothing_alive(worker):
    class Big:
        pass

    big = Big()
    gone = weakref.ref(big)
    kept = (lambda held: caught(worker, "count", 5))(big).with_traceback(None)
    assert kept.captured.__traceback__ is not None
    del big
    gc.collect()
    assert gone() is None


def test_frames_that_make_no_sense_are_left_out():
    error = ValueError("bad")
    broken = _frames.Frame("x.py", "f", "f", "m", 1, (5, 2, -3, 4), (1, ["a\n"]))
    _frames.rebuild(error, ([broken], []), "worker 2")
    _frames.rebuild(error, ([("too", "short")], []), "worker 2")
    assert str(_errors.remote_exception(error, 2, "")) == "bad"
