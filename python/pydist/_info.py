"""What this installation is: versions, limits, paths and settings, as text."""

from __future__ import annotations

import inspect
import os
import platform
import re
import resource
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import _config, _core


@dataclass
class Setting:
    """An environment variable that pydist reads."""

    name: str
    meaning: str
    read: Callable[[], Any]

    def state(self) -> str:
        """What is in effect, and whether it is the default."""
        text = os.environ.get(self.name, "")
        try:
            value = self.read()
        except ValueError as error:
            return f"not valid: {error}"
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        return f"{shown} (set)" if text else f"{shown} (default)"


def settings() -> Iterator[Setting]:
    """Lists the environment variables that `_config` reads.

    >>> "PYDIST_WORKER_TIMEOUT" in {setting.name for setting in settings()}
    True
    """
    for name, read in sorted(inspect.getmembers(_config, inspect.isfunction)):
        meaning = " ".join((read.__doc__ or "").split())
        variable = re.search(r"\bPYDIST_[A-Z_]+", meaning)
        if variable is not None and not name.startswith("_"):
            yield Setting(variable.group(), meaning, read)


def settings_help() -> str:
    """The environment variables and what they mean, as lines of the help."""
    lines = []
    for setting in sorted(settings(), key=lambda each: each.name):
        meaning = textwrap.fill(setting.meaning, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines += [f"  {setting.name}", meaning.replace("`", "")]
    return "\n".join(lines) + "\n"


def report() -> str:
    """Everything that a report of a fault should say of an installation; no values that may be secret."""
    parts = {
        "versions": _versions(),
        "this machine": _machine(),
        "paths": _paths(),
        "transports": _transports(),
        "settings": _settings(),
    }
    text = ""
    for title, rows in parts.items():
        width = max(len(name) for name, _ in rows)
        text += f"{title}\n" + "".join(f"  {name:<{width}}  {value}\n" for name, value in rows)
    return text


def _versions() -> list[tuple[str, str]]:
    import cloudpickle  # type: ignore[import-untyped, unused-ignore]

    return [
        ("pydist", _core.__version__),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("cloudpickle", cloudpickle.__version__),
        ("system", f"{platform.system()} {platform.release()}, {platform.machine()}"),
    ]


def _machine() -> list[tuple[str, str]]:
    usable = len(os.sched_getaffinity(0))
    return [
        ("host", platform.node()),
        ("usable CPUs", f"{usable} of {os.cpu_count()} (what addprocs() and -p auto start)"),
        ("open files", _limit(resource.RLIMIT_NOFILE)),
        ("processes and threads", _limit(resource.RLIMIT_NPROC)),
        ("locked memory", _limit(resource.RLIMIT_MEMLOCK)),
    ]


def _limit(which: int) -> str:
    soft, hard = ("unlimited" if n == resource.RLIM_INFINITY else str(n) for n in resource.getrlimit(which))
    return f"at most {soft} (can be raised to {hard})" if soft != hard else f"at most {soft}"


def _paths() -> list[tuple[str, str]]:
    return [
        ("python", sys.executable),
        ("pydist", os.path.dirname(os.path.abspath(__file__))),
        ("core", _core.__file__ or "built in"),
        ("sockets", os.path.join(tempfile.gettempdir(), "pydist-*")),
    ]


def _transports() -> list[tuple[str, str]]:
    return [("unix", "sockets in a folder of mode 0700, for the processes of this machine")]


def _settings() -> list[tuple[str, str]]:
    known = sorted(settings(), key=lambda each: each.name)
    rows = [(setting.name, setting.state()) for setting in known]
    names = {setting.name for setting in known}
    others = sorted(name for name in os.environ if name.startswith("PYDIST_") and name not in names)
    return rows + [(name, "set; not one of pydist's settings") for name in others]
