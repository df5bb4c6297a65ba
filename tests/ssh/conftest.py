"""The ssh servers of the tests in this folder."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pydist as d
from support_ssh import Cluster, Servers, run, scripts


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Give two servers on loopback."""
    made = Servers(2)
    yield made
    made.stop()


@pytest.fixture(scope="session")
def hosts() -> Iterator[Servers]:
    """Give two hosts with a network of their own and a server in each."""
    folder = scripts()
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    ours = not any(line.split()[:1] in (["pd1"], ["pd2"]) for line in listed.splitlines())
    run(folder / "netns_hosts.sh", "up", "2")
    try:
        # Their port is fixed, so there can be but one such pair; what is there is used.
        made = Servers(2, "--netns", folder=Path(os.environ.get("PYDIST_SSHD_DIR") or "/tmp/pydist-sshd"))
        yield made
        made.stop()
    finally:
        if ours:
            run(folder / "netns_hosts.sh", "down")


def _cluster(servers: Servers) -> Iterator[Cluster]:
    made = Cluster(servers)
    yield made
    d.rmprocs([pid for pid in d.procs() if pid != 1])
    made.await_end()


@pytest.fixture
def ssh(servers: Servers) -> Iterator[Cluster]:
    """Start workers on loopback servers; nothing of them may be left."""
    yield from _cluster(servers)


@pytest.fixture
def far(hosts: Servers) -> Iterator[Cluster]:
    """Start workers on hosts with a network of their own; nothing of them may be left."""
    yield from _cluster(hosts)
