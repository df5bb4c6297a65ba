"""The extension for IPython and notebooks: `%load_ext pydist`. IPython itself is not imported here."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Any

from . import _calls, _cluster, _core, _everywhere, _html, _macros, _output

BUSY_AFTER = 1.0
"""Seconds after which a worker that has not answered is shown as busy in the table."""


def load_ipython_extension(shell: Any) -> None:
    """Adds the magics `%%everywhere`, `%%spawnat`, `%%fetchfrom` and `%pydist` to IPython.

    Parameters:
        shell: the shell that runs `%load_ext pydist`.
    """
    magics = Magics(shell)
    shell.register_magic_function(magics.everywhere, "cell", "everywhere")
    shell.register_magic_function(magics.spawnat, "cell", "spawnat")
    shell.register_magic_function(magics.fetchfrom, "cell", "fetchfrom")
    shell.register_magic_function(magics.table, "line", "pydist")
    follow_cells()


def unload_ipython_extension(shell: Any) -> None:
    """Takes the magics away again.

    Parameters:
        shell: the shell that runs `%unload_ext pydist`.
    """
    for kind, names in (("cell", ("everywhere", "spawnat", "fetchfrom")), ("line", ("pydist",))):
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)


class Magics:
    """The magics of one shell."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def everywhere(self, line: str, cell: str) -> None:
        """Runs the cell in `__main__` of all processes, this one too: `%%everywhere [--persist] [pids]`.

        pids are ids (`2 3`) or an expression (`d.workers()`). With `--persist` it also runs on each worker
        that is added later.
        """
        words = line.split()
        persist = "--persist" in words
        pids = self._pids(" ".join(word for word in words if word != "--persist"))
        _everywhere.everywhere(cell, pids, persist=persist)

    def spawnat(self, line: str, cell: str) -> Any:
        """Runs the cell in `__main__` of a process: `%%spawnat pid [name]`.

        Its value is the `Future` of the last expression, which is also bound to the name. The id is a number,
        an expression without spaces, or `any`.
        """
        where, name = self._where(line, "spawnat")
        text, filename = _macros.check_text(cell)
        return self._bind(name, _calls.remotecall(_macros.run_text, where, text, filename, {}))

    def fetchfrom(self, line: str, cell: str) -> Any:
        """Runs the cell in `__main__` of a process and waits: `%%fetchfrom pid [name]`.

        Its value is that of the last expression, which is also bound to the name.
        """
        where, name = self._where(line, "fetchfrom")
        text, filename = _macros.check_text(cell)
        return self._bind(name, _calls.remotecall_fetch(_macros.run_text, where, text, filename, {}))

    def table(self, line: str) -> Table:
        """Shows the processes of the cluster: `%pydist`."""
        if line.strip():
            raise ValueError(f"%pydist takes nothing, not {line!r}")
        return Table(rows())

    def _pids(self, text: str) -> Any:
        if not text:
            return None
        if re.fullmatch(r"[\d\s,]+", text):
            return [int(word) for word in re.findall(r"\d+", text)]
        return eval(text, self._shell.user_ns)

    def _where(self, line: str, magic: str) -> tuple[Any, str]:
        words = line.split()
        if not 1 <= len(words) <= 2 or (len(words) == 2 and not words[1].isidentifier()):
            raise ValueError(f"%%{magic} takes the id of a process, and a name for the result, not {line!r}")
        where = "any" if words[0] == "any" else eval(words[0], self._shell.user_ns)
        return where, words[1] if len(words) == 2 else ""

    def _bind(self, name: str, value: Any) -> Any:
        if name:
            self._shell.user_ns[name] = value
        return value


@dataclass
class Table:
    """Rows of text below a heading, shown as a table."""

    rows: list[tuple[str, ...]]

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in self.rows)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return _html.table(self.rows[0], self.rows[1:])


def rows() -> list[tuple[str, ...]]:
    """What the table says of each process, below a heading."""
    import time

    pids = _cluster.procs()
    hosts = {pid: host for pid, _, host in _core.members()}
    futures = {pid: _calls.remotecall(_state, pid) for pid in pids}
    until = time.monotonic() + BUSY_AFTER
    found: list[tuple[str, ...]] = [
        ("id", "host", "process", "state", "memory", "calls running", "values kept", "received", "sent")
    ]
    for pid, future in futures.items():
        try:
            state = future.fetch(timeout=max(0.0, until - time.monotonic()))
        except TimeoutError:
            state = ("", "busy", "", "", "", "", "")
        except Exception as error:
            state = ("", f"gone ({type(error).__name__})", "", "", "", "", "")
        found.append((str(pid), hosts.get(pid, ""), *state))
    return found


def _state() -> tuple[str, ...]:
    """Runs on each process: what it says of itself."""
    stats = _core.stats()
    megabytes = (f"{stats[name] / 1e6:.1f} MB" for name in ("bytes_received", "bytes_sent"))
    own_call = 1
    running = max(0, stats["calls_running"] - own_call)
    return (
        str(os.getpid()),
        "runs" if running else "idle",
        f"{_resident() / 1e6:.0f} MB",
        str(running),
        str(max(0, stats["refs_owned"] - own_call)),
        *megabytes,
    )


def _resident() -> int:
    """The bytes of memory that this process has in use; at most so far, where the system tells no more."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


_followed: Any = None


def follow_cells() -> None:
    """Lets what workers print appear below the cell that runs, all of it before the next one begins."""
    global _followed
    shell = sys.modules["IPython"].get_ipython()
    if shell is None or shell is _followed:
        return
    _followed = shell
    shell.events.register("pre_run_cell", _before_cell)
    shell.events.register("post_run_cell", _after_cell)


def _before_cell(info: Any) -> None:
    """Tells the threads that print which cell they print for; kernels remember that for each thread."""
    launcher = _output.started_launcher()
    kernel = getattr(_followed, "kernel", None)
    if launcher is None or kernel is None:
        return
    parent = kernel.get_parent()

    def adopt() -> None:
        for stream in (sys.stdout, sys.stderr):
            set_parent = getattr(stream, "set_parent", None)
            if set_parent is not None:
                set_parent(parent)

    launcher.run(adopt)
    _output.printer.before_next(adopt)


def _after_cell(result: Any) -> None:
    launcher = _output.started_launcher()
    if launcher is not None:
        launcher.drain()
