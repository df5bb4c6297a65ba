"""`pydist top`: what it shows, how it finds a program, and that it leaves the terminal as it was."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

import support
from pydist._dashboard import sampler, terminal

PROGRAM = """
    import sys, time
    import pydist as d

    d.addprocs(2)
    future = d.remotecall(time.sleep, 2, 100)
    print("up", flush=True)
    sys.stdin.read() if len(sys.argv) > 1 else time.sleep(100)
"""


def state(**changes: Any) -> dict[str, Any]:
    """Make a state with one worker that is busy, and one that is gone."""
    process = {
        "host": "node1",
        "since": 0.0,
        "silent_for": 0.0,
        "reason": None,
        "gone_at": None,
        "cpu": 97.4,
        "memory": 123_456_789,
        "threads": 2,
        "running": 2,
        "queued": 3,
        "calls": [{"name": "simulate", "seconds": 75.0}],
        "calls_begun": 5,
        "call_rate": 2.0,
        "sent": 1234,
        "received": 5_600_000,
        "sent_rate": 0.0,
        "received_rate": 0.0,
        "waiting_bytes": 0,
        "shared_bytes": 0,
        "references": 0,
    }
    gone = {"reason": "signal 9 (SIGKILL)", "calls": [], "running": 0}
    return {
        "time": time.time(),
        "number": 0,
        "dropped": 0,
        "cluster": {
            "host": "node1",
            "program": "job.py",
            "ospid": 77,
            "version": "1",
            "python": "3",
            "cpus": 2,
        },
        "processes": [
            {**process, "id": 1, "ospid": 77, "state": "idle", "calls": [], "running": 0, "queued": 0},
            {**process, "id": 2, "ospid": 78, "state": "busy"},
            {**process, **gone, "id": 3, "ospid": 79, "state": "gone"},
            {**process, "id": 4, "ospid": 0, "state": "silent", "silent_for": 12.0},
        ],
        "maps": [
            {
                "name": "train",
                "began": 0.0,
                "done": 30,
                "total": 120,
                "state": "running",
                "elapsed": 10.0,
                "rate": 3.0,
                "eta": 30.0,
            }
        ],
        "channels": [
            {"owner": 2, "id": "1.7", "capacity": 4, "depth": 4, "putters": 2, "takers": 0, "open": True}
        ],
        "calls": [],
        "lines": [{"number": 1, "time": 0.0, "worker": 2, "kind": "stdout", "text": "epoch 1"}],
        "history": [{"time": 0.0, "cpu": 97.4, "memory": 1e8, "calls": 1234.0, "traffic": 5000.0}],
        **changes,
    }


def rendered(told: dict[str, Any], width: int = 120, height: int = 0) -> str:
    console = Console(record=True, width=width, height=height or 50, file=io.StringIO())
    console.print(terminal.render(told, width, height))
    return console.export_text()


def test_all_that_is_known_is_shown() -> None:
    text = rendered(state())
    for part in (
        "job.py on node1, pid 77",
        "2 workers",
        "1,234 calls/s",
        "97 %",
        "123 MB",
        "2 + 3",
        "simulate for 1 min 15 s, 1 more",
        "signal 9 (SIGKILL)",
        "no answer for 12.0 s",
        "30 of 120",
        "30.0 s left",
        "4 of 4",
        "epoch 1",
    ):
        assert part in text, (part, text)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_fit_the_terminal(width: int) -> None:
    told = state(lines=[{"number": 1, "time": 0.0, "worker": 2, "kind": "stdout", "text": "x" * 500}])
    text = rendered(told, width, 24)
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) <= 24
    assert "simulate" in text


def test_without_workers_it_says_how_to_get_some() -> None:
    told = state()
    del told["processes"][1:]
    assert "No workers yet: addprocs(4)" in rendered({**told, "maps": [], "channels": [], "lines": []})


def test_what_workers_print_does_not_steer_the_terminal() -> None:
    hostile = "\x1b]0;taken\x07\x1b[2J\x9b2J [bold]no markup[/bold]"
    text = rendered(state(lines=[{"number": 1, "time": 0.0, "worker": 2, "kind": "stdout", "text": hostile}]))
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "[bold]no markup[/bold]" in text


def test_a_program_shows_its_own_cluster(
    d: ModuleType, workers: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    d.top(interval=0.1)
    out = capsys.readouterr().out
    assert "2 workers" in out
    assert sampler._sampler is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/", "file:///etc/passwd", "https://x/" + "y" * 32, "x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the address of a dashboard is"):
        terminal.ask(url)


def test_an_address_where_nothing_answers_is_named(d: ModuleType) -> None:
    with d.dashboard() as board:
        port = board.port
        with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}: its token is another one"):
            terminal.ask(f"http://127.0.0.1:{port}/{'x' * 32}/")
        assert terminal.ask(board.url)["cluster"]["ospid"] == os.getpid()
    with pytest.raises(ConnectionError, match=f"no dashboard answers at 127.0.0.1:{port}"):
        terminal.ask(board.url)


# --- from another terminal


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Give an environment with a folder for dashboards that nobody else uses."""
    return {"XDG_RUNTIME_DIR": str(tmp_path_factory.mktemp("runtime"))}


@pytest.fixture(scope="module")
def program(runtime: dict[str, str]) -> Iterator[support.Script]:
    """Give a program that runs a dashboard, as it was told from outside."""
    env = {**runtime, "PYDIST_DASHBOARD": "1"}
    with support.Script(PROGRAM, env=env) as script:
        script.wait_for("up")
        yield script


def address(script: support.Script) -> str:
    found = re.search(r"^pydist: dashboard at (http://127\.0\.0\.1:\d+/\S+/)$", script.err, re.MULTILINE)
    assert found, script.err
    return found[1]


def pydist(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pydist", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **env, "COLUMNS": "120"},
    )


def test_programs_are_found_and_shown(program: support.Script, runtime: dict[str, str]) -> None:
    listed = pydist("top", "--list", env=runtime)
    assert listed.returncode == 0
    assert str(program.pid) in listed.stdout
    assert "script.py" in listed.stdout
    assert address(program) in listed.stdout
    shown = pydist("top", env=runtime)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "2 workers" in shown.stdout
    assert "sleep for" in shown.stdout
    assert pydist("top", str(program.pid), env=runtime).returncode == 0
    other = pydist("top", "1", env=runtime)
    assert other.returncode == 1
    assert "Process 1 runs no dashboard" in other.stderr


def test_the_file_goes_with_the_program(runtime: dict[str, str]) -> None:
    folder = Path(runtime["XDG_RUNTIME_DIR"], "pydist-dashboards")
    with support.Script(PROGRAM, env=runtime, flags=("-m", "pydist", "--dashboard", "-p", "1")) as script:
        script.wait_for("up")
        assert terminal.ask(address(script))["cluster"]["program"] == "script.py"
        assert (folder / f"{script.pid}.json").exists()
        os.kill(script.pid, signal.SIGINT)
        script.finish(30)
        assert not (folder / f"{script.pid}.json").exists()
        script.wait_gone(5)


def test_without_a_dashboard_it_says_how_to_get_one(tmp_path: Path) -> None:
    done = pydist("top", env={"XDG_RUNTIME_DIR": str(tmp_path)})
    assert done.returncode == 1
    assert "No dashboard runs for this user" in done.stderr
    assert "pydist --dashboard script.py" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("top", "--what"), "does not know '--what'"),
        (("top", "a", "b"), "does not know 'b'"),
        (("top", "--interval", "0"), "--interval takes seconds"),
        (("top", "--interval"), "--interval takes seconds"),
        (("--dashboard=x", "-c", "1"), "--dashboard takes the number of a port, not 'x'"),
        (("--dashboard=65536", "-c", "1"), "--dashboard takes the number of a port"),
    ],
)
def test_options_that_make_no_sense_are_named(arguments: tuple[str, ...], says: str) -> None:
    done = pydist(*arguments, env={})
    assert done.returncode == 2
    assert says in done.stderr


def test_a_setting_that_makes_no_sense_is_named() -> None:
    done = support.run_script("import pydist as d; d.procs()", env={"PYDIST_DASHBOARD": "yes"})
    assert done.returncode == 1
    assert "PYDIST_DASHBOARD must be 1 or a port, not 'yes'" in done.stderr


class Terminal:
    """A program in a pseudo terminal; what it writes is kept."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.fd, inner = pty.openpty()
        ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.before = termios.tcgetattr(self.fd)
        environment = {**os.environ, **env, "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            command, stdin=inner, stdout=inner, stderr=inner, env=environment, start_new_session=True
        )
        os.close(inner)
        self.text = ""

    def wait_until(self, condition: Callable[[str], Any], what: str) -> None:
        def read() -> Any:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self.text += os.read(self.fd, 65536).decode("utf-8", "replace")
                except OSError:
                    return condition(self.text)
            return condition(self.text)

        try:
            support.wait_until(read, 30, what)
        except AssertionError as error:
            error.add_note(f"the terminal shows:\n{self.text}")
            raise

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.fd)


@pytest.mark.parametrize("how", ["q", "interrupt"])
def test_it_goes_on_until_it_is_ended_and_leaves_the_terminal_as_it_was(
    how: str, program: support.Script, runtime: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "pydist", "top", "--interval", "0.2", address(program)]
    shown = Terminal(command, runtime)
    try:
        shown.wait_until(lambda text: text.count("sleep") >= 3, "three frames")
        assert "\x1b[?1049h" in shown.text
        if how == "q":
            os.write(shown.fd, b"q")
        else:
            shown.process.send_signal(signal.SIGINT)
        shown.wait_until(lambda text: shown.process.poll() is not None, "the end")
        shown.wait_until(lambda text: "\x1b[?1049l" in text, "the screen of before")
        assert shown.process.returncode == 0
        assert "Traceback" not in shown.text
        assert termios.tcgetattr(shown.fd)[3] == shown.before[3]
    finally:
        shown.close()


def test_it_says_that_the_program_has_ended(runtime: dict[str, str]) -> None:
    with support.Script(PROGRAM, env={**runtime, "PYDIST_DASHBOARD": "1"}) as script:
        script.wait_for("up")
        url = address(script)
        shown = Terminal([sys.executable, "-m", "pydist", "top", "--interval", "0.2", url], runtime)
        try:
            shown.wait_until(lambda text: "sleep" in text, "a frame")
            os.kill(script.pid, signal.SIGKILL)
            shown.wait_until(lambda text: shown.process.poll() is not None, "the end")
            shown.wait_until(lambda text: "no dashboard answers" in text, "why")
            assert shown.process.returncode == 1
        finally:
            shown.close()
        script.wait_gone(10)
