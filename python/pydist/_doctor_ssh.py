"""What `doctor` does to reach another machine: one connection to its ssh server, and one login."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, TypeAlias

from . import _doctor_probe
from .managers import _machines

SSH_PORT = 22
GREETING_BYTES = 255
"""The longest first line of an ssh server."""
SHOWN = 300
"""So much of what ssh says is shown."""

Outcome: TypeAlias = tuple[str, Literal["ok", "warning", "failed"], str, str]
"""What was checked, with which result; what was found, and what to do."""

_LOGIN_ADVICE = (
    ("Permission denied", "let this user log in by a key: ssh-copy-id {target}"),
    ("IDENTIFICATION HAS CHANGED", "if that is rightly so, forget the old key: ssh-keygen -R {host}"),
    ("Host key verification failed", "look at its key and accept it once: ssh {target}"),
    ("Could not resolve hostname", "check the spelling, /etc/hosts and ~/.ssh/config"),
    ("Connection refused", "no ssh server listens there; is it running, and at this port?"),
)


class Login:
    """A machine that is to be looked at.

    Parameters:
        machine: as `addprocs` takes it.
        exename: the Python there; None to look for one.
        ssh: the ssh client.
        sshflags: flags for it.
        timeout: seconds for each connection.
    """

    def __init__(
        self, machine: Any, exename: str | None, ssh: str, sshflags: list[str], timeout: float
    ) -> None:
        text = machine[0] if isinstance(machine, tuple | list) and machine else machine
        if not isinstance(text, str):
            raise TypeError(f"doctor() takes machines, which are texts or pairs, not {type(text).__name__}")
        self.name = text
        self.facts: dict[str, Any] = {}
        self.executable = ""
        self.asked = exename is not None
        self._given = machine
        self._machine = _machines.Machine(text)
        self._exename = exename
        self._ssh = [ssh, *sshflags]
        self._timeout = timeout

    @property
    def bind_addr(self) -> str | None:
        """The address that its workers are to listen on."""
        return self._machine.bind_addr

    def parse(self) -> Outcome | None:
        """Reads the text of the machine; tells only of what is wrong with it."""
        try:
            self._machine = _machines.parse(self._given)
        except (TypeError, ValueError) as error:
            return "machine", "failed", str(error), "correct it; IPv6 addresses need brackets"
        return None

    def reach(self) -> Outcome | None:
        """Connects to its ssh server."""
        host, port, proxy = self._destination()
        if proxy:
            return "reachable", "ok", f"not looked at: ssh goes through {proxy}", ""
        where = f"{host} port {port}"
        try:
            with socket.create_connection((host, port), self._timeout) as s:
                greeting = s.recv(GREETING_BYTES)
        except socket.gaierror as error:
            advice = "check the spelling, the DNS and /etc/hosts; or give its address"
            return "reachable", "failed", f"the name {host} is not known ({error.strerror})", advice
        except ConnectionRefusedError:
            advice = "start an ssh server there (sshd), or name its port: host:port"
            return "reachable", "failed", f"nothing listens at {where}", advice
        except TimeoutError:
            advice = "is it switched on, and does a firewall let this port through?"
            return "reachable", "failed", f"no answer from {where} within {self._timeout:g} s", advice
        except OSError as error:
            return "reachable", "failed", f"{where}: {error}", "check the network between here and there"
        if not greeting.startswith(b"SSH-"):
            advice = "name the port of its ssh server: host:port"
            return "reachable", "failed", f"what listens at {where} is no ssh server", advice
        server = greeting.split(b"\n")[0].decode("utf-8", "replace").strip()
        return "reachable", "ok", f"{where}, {server}", ""

    def _destination(self) -> tuple[str, int, str]:
        """The host, port and proxy that ssh uses, by its configuration."""
        known: dict[str, str] = {}
        try:
            command = [*self._ssh, *self._options(), "-G", self._target()]
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self._timeout
            )
            if done.returncode == 0:
                known = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        except (OSError, subprocess.TimeoutExpired):
            known = {}
        port = known.get("port", "")
        proxies = (known.get(name, "none") for name in ("proxyjump", "proxycommand"))
        proxy = next((proxy for proxy in proxies if proxy != "none"), "")
        number = int(port) if port.isdecimal() else self._machine.port or SSH_PORT
        return known.get("hostname", self._machine.host), number, proxy

    def _options(self) -> list[str]:
        return [] if self._machine.port is None else ["-p", str(self._machine.port)]

    def _target(self) -> str:
        user = self._machine.user
        return self._machine.host if user is None else f"{user}@{self._machine.host}"

    def log_in(self) -> Outcome | None:
        """Logs in, and has the machine tell of itself."""
        command = [
            *self._ssh,
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            f"ConnectTimeout={max(1, round(self._timeout))}",
            *self._options(),
            self._target(),
            "/bin/sh",
        ]
        try:
            done = subprocess.run(
                command, input=self._script().encode(), capture_output=True, timeout=3 * self._timeout
            )
        except OSError as error:
            advice = "install an ssh client, such as OpenSSH's, or name it: ssh="
            return "login", "failed", f"{self._ssh[0]} cannot be run: {error.strerror}", advice
        except subprocess.TimeoutExpired:
            advice = f"see what takes so long: {shlex.join([*command[:1], self._target()])}"
            return "login", "failed", f"it did not end within {3 * self._timeout:g} s", advice
        return self._read(done)

    def _script(self) -> str:
        """What a shell there runs, whatever the user's login shell is."""
        wanted = [self._exename] if self._exename else [sys.executable, "python3", "python"]
        probe = Path(_doctor_probe.__file__).read_text(encoding="utf-8")
        return (
            f"for python in {' '.join(map(_quoted, wanted))}; do\n"
            'if command -v "$python" >/dev/null 2>&1; then\n'
            f'echo; echo "{_doctor_probe.MARK}$python"\n'
            f'exec "$python" -c {shlex.quote(probe)} </dev/null\n'
            "fi\ndone\n"
            f'echo; echo "{_doctor_probe.MARK}"\n'
        )

    def _read(self, done: subprocess.CompletedProcess[bytes]) -> Outcome:
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        said = [
            line.removeprefix(_doctor_probe.MARK) for line in lines if line.startswith(_doctor_probe.MARK)
        ]
        errors = " ".join(done.stderr.decode("utf-8", "replace").split())[-SHOWN:]
        if not said:
            advice = next(
                (advice for sign, advice in _LOGIN_ADVICE if sign in errors), "try it: ssh {target}"
            )
            filled = advice.format(target=self._target(), host=self._machine.host)
            return "login", "failed", errors or f"ssh ended with status {done.returncode}", filled
        self.executable = said[0]
        if not self.executable:
            wanted = self._exename or f"{sys.executable}, python3 or python"
            advice = "install Python 3.11 or newer there, or give its path as exename="
            return "python", "failed", f"there is no {wanted}", advice
        try:
            self.facts = json.loads(said[1])
        except (IndexError, ValueError):
            advice = "install Python 3.11 or newer there, or give its path as exename="
            return "python", "failed", f"{self.executable} could not tell of itself: {errors}", advice
        return "login", "ok", f"as {self._target()}", ""


def _quoted(path: str) -> str:
    """A path for a shell there, which knows the home folder that `~` stands for."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)
