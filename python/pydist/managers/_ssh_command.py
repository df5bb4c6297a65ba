"""The command lines of ssh, and what the shell of the other host is given to run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SHELLS = ("posix", "csh")

_SAFE = re.compile(r"[A-Za-z0-9_@%+:,./-][A-Za-z0-9_@%+=:,./-]*\Z")
_FOR_THE_START = re.compile(r"(PATH|LD_\w+|DYLD_\w+|PYTHON\w*)\Z")
_PROGRAM = (
    "import sys;sys.path[:]=[p for p in sys.path if p];"
    "from pydist.managers import _remote_host;_remote_host.main()"
)
_UNTIL_INPUT_ENDS = "exec cat"


def quote_posix(text: str) -> str:
    """A word for a POSIX shell.

    >>> print(quote_posix("it's"))
    'it'"'"'s'
    """
    return shlex.quote(text)


def quote_csh(text: str) -> str:
    """A word for csh or tcsh, in which a line's end and `!` need a backslash even between quotes.

    >>> print(quote_csh("what a day!"))
    'what a day\\!'
    """
    if _SAFE.match(text):
        return text
    inner = text.replace("'", "'\"'\"'").replace("!", "\\!").replace("\n", "\\\n")
    return f"'{inner}'"


def quote(text: str, shell: str) -> str:
    """A word for a shell, "posix" or "csh".

    Raises:
        ValueError: it holds a NUL, which no command line can.
    """
    if "\0" in text:
        raise ValueError(f"a command line cannot hold a NUL: {text!r}")
    return quote_csh(text) if shell == "csh" else quote_posix(text)


def quote_path(path: str, shell: str) -> str:
    """A path for a shell; one that begins with `~/` is in the home folder there."""
    if path == "~":
        return path
    if path.startswith("~/"):
        return "~/" + (quote(path[2:], shell) if path[2:] else "")
    return quote(path, shell)


def is_for_the_start(name: str) -> bool:
    """Whether a variable has to be there before Python starts; all others go over standard input."""
    return _FOR_THE_START.match(name) is not None


def remote_command(exename: str, folder: str | None, env: Mapping[str, str], shell: str) -> str:
    """What the login shell of the other host runs to start its workers.

    Parameters:
        exename: the Python executable there.
        folder: the working directory; None for the home folder.
        env: variables; those that Python needs for its start are taken.
        shell: the kind of the login shell.
    """
    words = ["exec"]
    early = {name: value for name, value in env.items() if is_for_the_start(name)}
    if early:
        words += ["env", *(quote(f"{name}={value}", shell) for name, value in early.items())]
    words += [quote_path(exename, shell), "-c", quote(_PROGRAM, shell)]
    command = " ".join(words)
    return command if folder is None else f"cd {quote_path(folder, shell)} && {command}"


def flags(value: Any) -> list[str]:
    """The flags for ssh: a list, or a text that is split as a shell does it.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, str):
        return shlex.split(value)
    if not isinstance(value, Iterable) or isinstance(value, (bytes, bytearray)):
        raise TypeError(f"sshflags must be a list or a str, not {type(value).__name__}")
    return [str(flag) for flag in value]


@dataclass(frozen=True)
class Login:
    """How ssh comes to a host.

    Parameters:
        ssh: the program.
        sshflags: its flags, which come first: of an option that is given twice ssh takes the first.
        host: name or address.
        user: who logs in.
        port: where sshd listens.
    """

    ssh: str
    sshflags: tuple[str, ...]
    host: str
    user: str | None = None
    port: int | None = None

    def session(self, command: str, master: str | None = None) -> list[str]:
        """Runs a command; with `master` it also carries tunnels that are asked for at this socket."""
        shared = (
            ["-o", "ControlMaster=no"]
            if master is None
            else [
                "-o",
                "ControlMaster=yes",
                "-o",
                f"ControlPath={_no_tokens(master)}",
                "-o",
                "ControlPersist=no",
            ]
        )
        return self._words(["-T", "-a", "-x", "-o", "ClearAllForwardings=yes", *shared], command)

    def tunnel(self, path: str, host: str, port: int) -> list[str]:
        """A connection of its own that carries one tunnel, until its standard input ends."""
        own = ["-T", "-a", "-x", "-o", "ControlMaster=no", "-o", "ControlPath=none"]
        return self._words([*own, "-L", _forward(path, host, port)], _UNTIL_INPUT_ENDS)

    def shared_tunnel(self, master: str, path: str, host: str, port: int) -> list[str]:
        """Asks the session that listens at `master` for a tunnel."""
        at = ["-o", f"ControlPath={_no_tokens(master)}"]
        return self._words([*at, "-O", "forward", "-L", _forward(path, host, port)])

    def _words(self, options: list[str], *command: str) -> list[str]:
        words = [self.ssh, *self.sshflags, *options]
        if self.port is not None:
            words += ["-p", str(self.port)]
        if self.user is not None:
            words += ["-l", self.user]
        return [*words, "--", self.host, *command]


def _forward(path: str, host: str, port: int) -> str:
    return f"{_no_tokens(path)}:{f'[{host}]' if ':' in host else host}:{port}"


def _no_tokens(path: str) -> str:
    """A path in which ssh expands nothing."""
    return path.replace("%", "%%")


def check_environment(env: Mapping[str, str]) -> None:
    """Refuses names that no environment can hold.

    Raises:
        ValueError: there is one.
    """
    for name, value in env.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env: {name!r} cannot be set to {value!r} in an environment")
