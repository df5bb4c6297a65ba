"""Interactive sessions of the command line, with input through a pipe and from a terminal."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from support import run_script

PYDIST = ("-m", "pydist")


def test_a_session_greets_and_binds_d():
    text = "d.workers()\nx = 3\nx * d.remotecall_fetch(abs, 2, -5)\n"
    done = run_script(text, how="stdin", flags=(*PYDIST, "-p", "1", "-i"))
    assert (done.stdout, done.returncode) == ("[2]\n15\n", 0)
    assert "1 worker (2)" in done.stderr.splitlines()[0]
    assert done.stderr.count(">>> ") == 4


def test_errors_end_an_input_and_not_the_session():
    text = "def f(x):\n    return 1 / x  # the line\n\nd.remotecall_fetch(f, 2, 0)\nx = (1,]\nd.myid()\n"
    done = run_script(text, how="stdin", flags=(*PYDIST, "-p", "1", "-i"))
    assert (done.stdout, done.returncode) == ("1\n", 0)
    assert "ZeroDivisionError" in done.stderr
    assert "SyntaxError" in done.stderr
    remote = done.stderr[done.stderr.index("On worker 2") :]
    assert "return 1 / x  # the line" in remote


def test_the_exit_status_of_a_session():
    done = run_script("import sys\nsys.exit(4)\n", how="stdin", flags=(*PYDIST, "-p", "1", "-i"))
    assert done.returncode == 4


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        ("x = 5", ""),
        ("x = 5\n1/0", "ZeroDivisionError: division by zero"),
        ("x = 5\nimport sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_session_after_a_program(program, printed, tmp_path):
    (tmp_path / "script.py").write_text(program)
    done = subprocess.run(
        [sys.executable, *PYDIST, "-i", str(tmp_path / "script.py")],
        input="x + 1\nimport sys; hasattr(sys, 'last_value')\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == (f"6\n{bool(printed)}\n", 0)
    assert printed in done.stderr
    assert "_program.py" not in done.stderr


def test_a_session_after_a_program_that_is_no_python():
    done = run_script("x = (", how="-c", flags=(*PYDIST, "-i"))
    assert (done.stdout, done.returncode) == ("", 0)
    assert "SyntaxError" in done.stderr
    assert ">>> " in done.stderr


def test_what_is_defined_again_is_sent_again():
    text = """
    def f(x):
        return x + 1

    d.remotecall_fetch(f, 2, 1), d.pmap(f, [1, 2])
    def f(x):
        return x * 100

    d.remotecall_fetch(f, 2, 1), d.pmap(f, [1, 2])
    class Point:
        def __init__(self, x):
            self.x = x
        def value(self):
            return self.x

    def make(x):
        return Point(x)

    p = d.remotecall_fetch(make, 2, 7)
    isinstance(p, Point), type(p) is Point, p.value()
    old = p
    class Point:
        def __init__(self, x):
            self.x = x
        def value(self):
            return -self.x

    p = d.remotecall_fetch(make, 2, 7)
    type(p) is Point, p.value(), old.value()
    d.remotecall_fetch(lambda q: (type(q) is Point, q.value()), 2, p)
    offset = 1
    g = lambda x: x + offset
    d.remotecall_fetch(g, 2, 1)
    offset = 10
    d.remotecall_fetch(g, 2, 1)
    """
    done = run_script(text, how="stdin", flags=(*PYDIST, "-p", "1", "-i"))
    assert done.returncode == 0
    assert "Error" not in done.stderr
    assert done.stdout.splitlines() == [
        "(2, [2, 3])",
        "(100, [100, 200])",
        "(True, True, 7)",
        "(True, -7, 7)",
        "(True, -7)",
        "2",
        "11",
    ]


class Terminal:
    """A session of a user at a terminal."""

    def __init__(self, *arguments: str) -> None:
        self.fd, other = pty.openpty()
        command = [sys.executable, *PYDIST, *arguments]
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, start_new_session=True
        )
        os.close(other)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, text: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.seen!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.seen += os.read(self.fd, 4096).decode(errors="replace")
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def close(self) -> None:
        os.close(self.fd)
        self.process.kill()
        self.process.wait()


def test_a_session_at_a_terminal(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "dumb")
    (tmp_path / "startup.py").write_text("started = 41\n")
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "startup.py"))
    with contextlib.closing(Terminal("-p", "2")) as terminal:
        use(terminal)


def use(terminal: Terminal) -> None:
    terminal.expect("2 workers (2, 3)")
    terminal.expect(">>> ")
    terminal.type("started + 1\n")
    terminal.expect("42")
    terminal.expect(">>> ")
    terminal.type("d.remotecall_f\t")
    terminal.expect("d.remotecall_fetch(")
    terminal.type("__import__('time').sleep, 2, 600)\n")
    terminal.expect("\n")
    terminal.process.send_signal(signal.SIGINT)
    terminal.expect("KeyboardInterrupt")
    terminal.expect(">>> ")
    terminal.type("d.remotecall_fetch(d.myid, 3) * 11\n")
    terminal.expect("33")
    terminal.type("exit(5)\n")
    assert terminal.process.wait(20) == 5
