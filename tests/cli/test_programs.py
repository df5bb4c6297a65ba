"""A program that the command line runs, beside the same program run by Python alone."""

import os
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from support import Script, run_script, wait_until

PYDIST = ("-m", "pydist")
CONSOLE_SCRIPT = Path(sys.executable).with_name("pydist")

STATE = """
    import sys
    names = {name: type(value).__name__ for name, value in globals().items() if name != "sys"}
    print(names, __name__, __spec__ and __spec__.name, __package__, globals().get("__file__"))
    print(sys.argv, sys.path[0], sys.modules["__main__"].__dict__ is globals())
"""


def compare(*command: str, pydist: tuple[str, ...] = PYDIST, cwd: Path, stdin: str = "") -> str:
    """Run a command by Python alone and by pydist, see that they do the same, and return the output."""
    done = []
    for prefix in ((), pydist):
        python = [sys.executable] if not prefix or prefix[0].startswith("-") else []
        done.append(
            subprocess.run(
                [*python, *prefix, *command],
                cwd=cwd,
                input=textwrap.dedent(stdin),
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
        )
    plain, ours = done
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, plain.returncode)
    return plain.stdout + plain.stderr


def write(folder: Path, text: str, name: str = "script.py") -> str:
    (folder / name).write_text(textwrap.dedent(text))
    return name


@pytest.mark.parametrize("pydist", [PYDIST, (str(CONSOLE_SCRIPT),)], ids=["module", "console script"])
def test_a_script_finds_what_it_would_find(pydist, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, STATE)
    output = compare("folder/script.py", "-p", "7", "--", "-h", "a b", "", pydist=pydist, cwd=tmp_path)
    assert "['folder/script.py', '-p', '7', '--', '-h', 'a b', '']" in output


def test_a_linked_script_imports_from_its_own_folder(tmp_path):
    (tmp_path / "own").mkdir()
    write(tmp_path / "own", STATE)
    (tmp_path / "link.py").symlink_to("own/script.py")
    assert f"{tmp_path / 'own'} True" in compare("link.py", cwd=tmp_path)


def test_code_a_module_and_standard_input(tmp_path):
    state = textwrap.dedent(STATE)
    write(tmp_path, STATE, "tool.py")
    assert "['-c', '-m', 'x']" in compare("-c", state, "-m", "x", cwd=tmp_path)
    assert f"['{tmp_path / 'tool.py'}', '-c', 'x']" in compare("-m", "tool", "-c", "x", cwd=tmp_path)
    assert "['-', '-i']" in compare("-", "-i", stdin=STATE, cwd=tmp_path)
    assert "['']" in compare(stdin=STATE, cwd=tmp_path)


def test_a_folder_an_archive_and_compiled_code(tmp_path):
    import py_compile

    (tmp_path / "app").mkdir()
    write(tmp_path / "app", STATE, "__main__.py")
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", textwrap.dedent(STATE))
    py_compile.compile(str(tmp_path / "app" / "__main__.py"), cfile=str(tmp_path / "tool.pyc"))
    for name in ("app", "app.zip", "tool.pyc"):
        assert f"['{name}', 'x']" in compare(name, "x", cwd=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "import sys; sys.exit(3)",
        "raise SystemExit('a message')",
        "import os; os._exit(7)",
        "def f(x):\n    return 1 / x\n\nf(0)",
        "x = (",
        "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('b') from error",
        "raise KeyboardInterrupt",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import sys\nsys.excepthook = lambda *info: print(info[0], info[2].tb_frame.f_code.co_name)\n1/0",
        "import atexit, threading\nx = 1\n"
        "def f():\n    import __main__\n    print(__main__.x)\n"
        "atexit.register(f)\nthreading.Thread(target=f).start()",
        "raise ExceptionGroup('several', [ValueError(1), KeyError(2)])",
    ],
)
def test_the_end_of_a_script_is_its_own(text, tmp_path):
    compare(write(tmp_path, text), cwd=tmp_path)


def test_errors_of_code_and_modules(tmp_path):
    write(tmp_path, "def f():\n    raise LookupError('here')\n\nf()\n", "tool.py")
    assert "LookupError: here" in compare("-m", "tool", cwd=tmp_path)
    assert "No module named missing" in compare("-m", "missing", cwd=tmp_path)
    assert "ZeroDivisionError" in compare("-c", "def f():\n  1/0\nf()", cwd=tmp_path)


@pytest.mark.parametrize("text", ["x = (", "1/0", "import sys; sys.exit(4)"])
def test_the_console_script_ends_in_the_same_way(text, tmp_path):
    compare(write(tmp_path, text), pydist=(str(CONSOLE_SCRIPT),), cwd=tmp_path)


def test_safe_path_is_respected(tmp_path):
    write(tmp_path, "import sys; print(sys.path)")
    plain = subprocess.run([sys.executable, "-P", "script.py"], cwd=tmp_path, capture_output=True, check=True)
    ours = subprocess.run(
        [sys.executable, "-P", *PYDIST, "script.py"], cwd=tmp_path, capture_output=True, check=True
    )
    assert ours.stdout == plain.stdout


def test_a_program_with_workers(tmp_path):
    write(tmp_path, "def twice(x):\n    return 2 * x\n", "beside.py")
    done = run_script(
        """
        import sys
        import beside
        import pydist as d

        def add(x):
            return x + offset

        class Point:
            def __init__(self, x):
                self.x = x

        offset = int(sys.argv[1])
        print(d.workers(), d.pmap(add, [1, 2]), d.pmap(beside.twice, [1, 2]))
        print(isinstance(d.remotecall_fetch(Point, 2, 5), Point))
        sys.exit(5)
        """,
        flags=(*PYDIST, "-p", "2"),
        arguments=["10"],
        cwd=tmp_path,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("[2, 3] [11, 12] [2, 4]\nTrue\n", "", 5)


@pytest.mark.parametrize("how", ["-c", "-", "stdin"])
def test_functions_of_a_program_without_a_file(how):
    text = """
        import pydist as d
        def f(x):
            return x + 1
        print(d.workers(), d.remotecall_fetch(f, 2, 1))
    """
    done = run_script(text, how=how, flags=(*PYDIST, "-p", "1"))
    assert (done.stdout, done.stderr, done.returncode) == ("[2] 2\n", "", 0)


def test_auto_starts_a_worker_for_each_usable_cpu():
    cpus = sorted(os.sched_getaffinity(0))[:1]
    text = "import pydist as d; print(d.workers())"
    done = subprocess.run(
        [sys.executable, *PYDIST, "-p", "auto", "-c", text],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cpus),
    )
    assert done.stdout == "[2]\n"


def test_workers_that_do_not_start(tmp_path):
    slow = {"PYDIST_WORKER_TIMEOUT": "0.001"}
    done = run_script("print('never')", how="-c", flags=(*PYDIST, "-p", "1"), env=slow)
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr.startswith("pydist: error: worker 2 ")
    assert "Traceback" not in done.stderr


READY = """
    import os, time
    import pydist as d
    from support import nap
    future = d.remotecall(nap, 2, 600)
    print("ready", flush=True)
    {}
"""


@pytest.mark.parametrize(
    ("number", "how"),
    [(signal.SIGINT, "file"), (signal.SIGINT, "-c"), (signal.SIGTERM, "file"), (signal.SIGKILL, "-c")],
)
def test_death_by_a_signal_passes_through_and_takes_the_workers_along(number, how):
    with Script(READY.format("future.fetch()"), how=how, flags=(*PYDIST, "-p", "2")) as script:
        script.wait_for("ready")
        assert len(script.survivors()) >= 2
        os.kill(script.pid, number)
        done = script.finish(15)
        script.wait_gone(5)
    assert done.returncode == -number
    if number == signal.SIGINT:
        assert done.stderr.count("Traceback") == 1
        assert done.stderr.endswith("KeyboardInterrupt\n")
        first = done.stderr.splitlines()[1]
        assert ('script.py"' if how == "file" else '"<string>"') in first
    else:
        assert done.stderr == ""


def test_an_interrupt_that_the_program_handles():
    text = READY.format("""
    try:
        future.fetch()
    except KeyboardInterrupt:
        print(d.remotecall_fetch(pow, 3, 2, 5))
    """)
    with Script(text, flags=(*PYDIST, "-p", "2")) as script:
        script.wait_for("ready")
        os.kill(script.pid, signal.SIGINT)
        done = script.finish(15)
        script.wait_gone(5)
    assert (done.stdout, done.stderr, done.returncode) == ("ready\n32\n", "", 0)


def test_an_interrupt_ends_it_by_sigint_whatever_runs_at_its_end():
    """Also where the end runs a text as code, after which Python itself forgets about the interrupt."""
    done = run_script(
        "import atexit; atexit.register(lambda: exec('pass')); raise KeyboardInterrupt",
        how="-c",
        flags=(*PYDIST, "-p", "1"),
    )
    assert done.returncode == -signal.SIGINT


def test_an_interrupt_while_the_workers_start():
    with Script("print('never')", flags=(*PYDIST, "-p", "20")) as script:
        wait_until(lambda: len(script.survivors()) >= 2, 20)
        os.kill(script.pid, signal.SIGINT)
        done = script.finish(15)
        script.wait_gone(5)
    assert done.stdout == ""
    assert (done.stderr, done.returncode) == ("KeyboardInterrupt\n", -signal.SIGINT)
