"""Real ssh servers for tests: on loopback, and in network namespaces that stand for hosts."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest

import pydist as d
from support import alive, wait_until

SCRIPTS = "PYDIST_TESTING_SCRIPTS"
TOKEN = "PYTHON_PYDIST_TOKEN"
"""A variable that pydist puts on the command line, as its name begins so; all that ssh starts has it."""


def scripts() -> Path:
    """Give the folder of the scripts that start servers, or skip."""
    beside = Path(__file__).parents[2] / "shared" / "testing"
    folder = Path(os.environ.get(SCRIPTS) or beside)
    if not (folder / "sshd_up.sh").exists():
        pytest.skip(f"no scripts that start ssh servers in {folder}; {SCRIPTS} names their folder")
    if os.getuid() != 0:
        pytest.skip("no root, which starts ssh servers")
    return folder


def run(*words: str | os.PathLike[str]) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode == 3:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Servers:
    """Running servers of the hosts pd1, pd2, …"""

    def __init__(self, count: int, *flags: str, folder: Path | None = None) -> None:
        self.scripts = scripts()
        self.folder = folder or Path(tempfile.mkdtemp(prefix="pydist-sshd-"))
        self._runs = (self.folder / "args").exists()
        try:
            run(self.scripts / "sshd_up.sh", "--count", str(count), "--dir", self.folder, *flags)
        except BaseException:
            self.stop()
            raise
        self.flags = ["-F", str(self.folder / "ssh_config")]

    def stop(self) -> None:
        """Stop them, unless they ran before."""
        if self._runs:
            return
        run(self.scripts / "sshd_down.sh", "--dir", self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, number: int) -> tuple[str, int]:
        host, _, port = (self.folder / f"addr-{number}").read_text().strip().rpartition(":")
        return host, int(port)

    def login_shell(self, command: str) -> list[str]:
        """Give flags with which one logs in to another login shell, which gets its command as $1."""
        name = uuid.uuid4().hex[:8]
        key, shell = self.folder / f"key-{name}", self.folder / f"shell-{name}"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        shell.write_text(f"#!/bin/sh\n{command}\n")
        shell.chmod(0o755)
        public = key.with_suffix(".pub").read_text()
        with (self.folder / "authorized_keys").open("a") as file:
            file.write(f'command="exec {shell} \\"$SSH_ORIGINAL_COMMAND\\"" {public}')
        config = (self.folder / "ssh_config").read_text()
        other = self.folder / f"config-{name}"
        other.write_text(config.replace(str(self.folder / "client_key"), str(key)))
        return ["-F", str(other)]


class Cluster:
    """Starts workers through ssh, and sees that nothing of them is left on either side."""

    def __init__(self, servers: Servers) -> None:
        self.servers = servers
        self.token = uuid.uuid4().hex

    def start(self, machines: list[Any], **params: Any) -> list[int]:
        params.setdefault("sshflags", self.servers.flags)
        params.setdefault("timeout", 30)
        return d.addprocs(machines, **{**params, "env": {**params.get("env", {}), TOKEN: self.token}})

    def fail(self, machines: list[Any], **params: Any) -> d.LaunchWorkerError:
        """Start workers, which has to fail; what has started is removed."""
        with pytest.raises(d.LaunchWorkerError) as caught:
            self.start(machines, **params)
        d.rmprocs(caught.value.started)
        self.await_end()
        return caught.value

    def processes(self) -> list[psutil.Process]:
        """Give what runs on the hosts: shells, what starts the workers, and the workers."""
        wanted = f"{TOKEN}={self.token}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and (
                    wanted in (entry / "environ").read_bytes() or wanted in (entry / "cmdline").read_bytes()
                ):
                    found.append(psutil.Process(int(entry.name)))
            except (OSError, psutil.NoSuchProcess):
                continue
        return [p for p in found if alive(p.pid) and p.pid != os.getpid()]

    def remote(self) -> list[psutil.Process]:
        """Give those that run there, without the ssh clients here, whose command lines have the token too."""
        return [p for p in self.processes() if p.name() != "ssh"]

    def await_end(self, timeout: float = 5) -> None:
        wait_until(lambda: not self.processes(), timeout, "the end of the processes on both sides")
