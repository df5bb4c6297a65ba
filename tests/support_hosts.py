"""Network namespaces that stand for other hosts, on links that can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

import tally


def missing() -> str:
    """Say what this machine lacks for it; an empty text where nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2"
    return ""


class Hosts:
    """So many hosts on one switch, of which this machine is at `address`."""

    def __init__(self, count: int) -> None:
        unique = os.getpid() % 65536
        self._subnet = f"10.{100 + unique // 250 % 100}.{unique % 250}"
        self._switch = f"pdk{unique:x}"
        self._names = [f"pdk{unique:x}-{i}" for i in range(count)]
        self.address = f"{self._subnet}.254"

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _make(self) -> None:
        _ip("link", "add", self._switch, "type", "bridge")
        _ip("addr", "add", f"{self.address}/24", "dev", self._switch)
        _ip("link", "set", self._switch, "up")
        for i, name in enumerate(self._names):
            _ip("netns", "add", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", name, "master", self._switch, "up")
            _ip("-n", name, "addr", "add", f"{self._subnet}.{i + 1}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._switch], capture_output=True, check=False)

    def prefix(self, i: int) -> list[str]:
        """Return what to write in front of a command to have it run on a host."""
        return ["ip", "netns", "exec", self._names[i]]

    def cut(self, i: int) -> None:
        """Drop all packets from and to a host, as if its cable had been pulled; nobody is told."""
        tally.fault("link cut")
        _ip("link", "set", self._names[i], "nomaster")

    def heal(self, i: int) -> None:
        """Undo `cut`."""
        _ip("link", "set", self._names[i], "master", self._switch)

    def part(self) -> None:
        """Drop all packets between the hosts; each still reaches this machine."""
        tally.fault("link cut")
        for name in self._names:
            _ip("link", "set", name, "type", "bridge_slave", "isolated", "on")

    def join(self) -> None:
        """Undo `part`."""
        for name in self._names:
            _ip("link", "set", name, "type", "bridge_slave", "isolated", "off")


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
