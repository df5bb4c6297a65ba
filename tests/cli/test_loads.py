"""`-L`: files that run in `__main__` of every process before the program."""

import textwrap
from pathlib import Path

import pytest

from support import run_script

PYDIST = ("-m", "pydist")


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def test_files_run_everywhere_in_order_also_on_workers_that_come_later(tmp_path):
    first = write(tmp_path, "first.py", "from __future__ import annotations\nbase: Missing = 10\n")
    second = write(
        tmp_path,
        "second.py",
        """
        import os
        name = os.path.basename(__file__)

        def helper(x):
            return base + x

        class Point:
            def __init__(self, x):
                self.x = x
        """,
    )
    done = run_script(
        """
        import os
        import pydist as d

        pids = d.workers() + d.addprocs(1)
        print([d.remotecall_eval("helper(1), name", pid) for pid in (1, *pids)])
        print(all(isinstance(d.remotecall_eval("Point(3)", pid), Point) for pid in pids))
        print(os.path.basename(__file__), "__file__" in globals())
        """,
        flags=(*PYDIST, "-p", "1", "-L", first, f"--load={second}"),
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == [str([(11, "second.py")] * 3), "True", "script.py True"]


@pytest.mark.parametrize("how", ["-c", "-"])
def test_a_program_without_a_file_does_not_get_that_of_a_load(how, tmp_path):
    path = write(tmp_path, "setup.py", "x = 1\n")
    text = "print(x, globals().get('__file__'))"
    done = run_script(text, how=how, flags=(*PYDIST, "-L", path))
    assert done.stdout == ("1 None\n" if how == "-c" else "1 <stdin>\n")


def test_an_error_here_is_printed_as_that_of_a_script(tmp_path):
    path = write(tmp_path, "setup.py", "def f():\n    raise LookupError('here')\n\nf()\n")
    done = run_script("print('never')", flags=(*PYDIST, "-p", "1", "-L", path))
    assert (done.stdout, done.returncode) == ("", 1)
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{path}", line 4, in <module>'
    assert lines[-1] == "LookupError: here"
    assert "_program.py" not in done.stderr


def test_errors_elsewhere_are_printed_together_with_their_lines(tmp_path):
    path = write(
        tmp_path,
        "setup.py",
        """\
        import pydist as d

        if d.myid() > 1:
            raise LookupError(f"on {d.myid()}")  # the culprit
        """,
    )
    done = run_script("print('never')", how="-c", flags=(*PYDIST, "-p", "2", "-i", "-L", path))
    assert (done.stdout, done.returncode) == ("", 1)
    assert "ExceptionGroup" in done.stderr
    assert "LookupError: on 2" in done.stderr
    assert "LookupError: on 3" in done.stderr
    assert done.stderr.count("# the culprit") == 2
    assert f'File "{path}", line 4' in done.stderr
    assert ">>>" not in done.stderr


def test_a_load_that_is_no_python(tmp_path):
    path = write(tmp_path, "setup.py", "x = 1\ny = (\n")
    done = run_script("print('never')", how="-c", flags=(*PYDIST, "-L", path))
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.splitlines()[0] == f'  File "{path}", line 2'
    assert done.stderr.splitlines()[-1] == "SyntaxError: '(' was never closed"


def test_a_load_may_end_the_program(tmp_path):
    path = write(tmp_path, "setup.py", "import sys, pydist as d\nif d.myid() == 1: sys.exit(6)\n")
    done = run_script("print('never')", how="-c", flags=(*PYDIST, "-p", "1", "-L", path))
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 6)
