"""A worker that is a task of Slurm."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

START = b"pydist_task_start:"
END = b"pydist_task_end"


def start_line() -> bytes:
    """What a task tells first: its job, its process and its host."""
    job = os.environ.get("SLURM_JOB_ID", "")
    return START + f"{job}#{os.getpid()}#{socket.gethostname()}".encode()


def parse_start(line: bytes) -> tuple[str, int, str] | None:
    """Reads the line of `start_line`; None where it is another one.

    >>> parse_start(b"pydist_task_start:12#345#node1")
    ('12', 345, 'node1')
    """
    if not line.startswith(START):
        return None
    job, _, rest = line.removeprefix(START).decode("utf-8", "replace").partition("#")
    ospid, _, host = rest.partition("#")
    return (job, int(ospid), host) if ospid.isdigit() and host else None


def main(cookie: bytes, config: dict[str, Any]) -> None:
    """Runs the worker; at its end says so, as Slurm tells only of ends that are errors."""
    os.write(1, start_line() + b"\n")
    from .. import _ranks

    alone = os.environ.get("SLURM_JOB_NUM_NODES") == "1"
    status = _ranks.serve(cookie.decode(), config, int(os.environ["SLURM_PROCID"]), alone)
    for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
        stream.flush()
        os.write(fd, END + b"\n")
    sys.exit(status)
