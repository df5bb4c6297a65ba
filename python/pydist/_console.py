"""The interactive session of the command line."""

from __future__ import annotations

import code
import linecache
import os
import sys
from types import CodeType
from typing import Any


class Console(code.InteractiveConsole):
    """Python's console, whose inputs are kept so that tracebacks of any process can show their lines."""

    def __init__(self, namespace: dict[str, Any]) -> None:
        super().__init__(namespace)
        self._number = 0

    def runsource(self, source: str, filename: str = "", symbol: str = "single") -> bool:
        """Compiles and runs an input under a name of its own; True asks for more lines."""
        name = f"<python-input-{self._number}>"
        lines = [line + "\n" for line in source.splitlines()]
        linecache.cache[name] = (len(source), None, lines, name)
        more = super().runsource(source, name, symbol)
        if not more:
            self._number += 1
        return more

    def runcode(self, code: CodeType) -> None:
        """Runs an input; an interrupt ends it and not the session."""
        try:
            super().runcode(code)
        except KeyboardInterrupt:
            self.write("\nKeyboardInterrupt\n")

    def raw_input(self, prompt: str = "") -> str:
        """Reads a line; the prompt stays out of a standard output that is no terminal."""
        if sys.stdin is not None and sys.stdin.isatty():
            return super().raw_input(prompt)
        self.write(prompt)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            raise EOFError
        return line.rstrip("\n")


def interact(*, greets: bool) -> int:
    """Runs an interactive session in `__main__`.

    Parameters:
        greets: begins with a line on the cluster, and binds `d` to pydist.

    Returns:
        The exit status; `exit()` comes through as SystemExit.
    """
    import pydist

    namespace = sys.modules["__main__"].__dict__
    if greets:
        namespace["d"] = pydist
    if sys.stdin is not None and sys.stdin.isatty():
        _set_up_terminal()
    if greets and not sys.flags.ignore_environment:
        _run_startup(namespace)
    Console(namespace).interact(banner=_banner() if greets else "", exitmsg="")
    return 0


def _banner() -> str:
    from . import _cluster, _core

    pids = [pid for pid in _cluster.procs() if pid != 1]
    workers = "1 worker" if len(pids) == 1 else f"{len(pids) or 'no'} workers"
    if pids:
        workers += f" ({', '.join(map(str, pids))})"
    version = sys.version.partition(" ")[0]
    return f"pydist {_core.__version__} as d, Python {version}, {workers}. d.addprocs() starts more."


def _set_up_terminal() -> None:
    """Sets up completion and the history as Python does for its own sessions."""
    hook = getattr(sys, "__interactivehook__", None)
    if hook is not None:
        try:
            hook()
        except Exception as error:
            sys.stderr.write(f"no completion and history: {error}\n")


def _run_startup(namespace: dict[str, Any]) -> None:
    """Runs the file that PYTHONSTARTUP names, as Python does before a session."""
    path = os.environ.get("PYTHONSTARTUP")
    if not path:
        return
    from . import _program

    try:
        with open(path, "rb") as file:
            source = file.read()
        _program.execute(compile(source, path, "exec", dont_inherit=True))
    except (OSError, SyntaxError) as error:
        sys.stderr.write(f"could not run PYTHONSTARTUP: {error}\n")
    except Exception as error:
        _program.print_error(error)
