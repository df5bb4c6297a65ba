"""Cluster managers for tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pydist as d
import tally
from support import wait_until

START = "import pydist; pydist.start_worker()"


class DialledManager(d.ClusterManager):
    """Workers that wait to be dialled, as others than pydist might start them.

    Parameters:
        configs: keywords of the configuration of each worker.
        code: what a worker runs.
        before: what a worker prints first.
    """

    def __init__(self, *configs: dict[str, Any], code: str = START, before: str = "") -> None:
        self.configs = configs or ({},)
        self.code = f"print({before!r}, end='', flush=True)\n{code}" if before else code
        self.heard: list[tuple[str, int]] = []

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        for config in self.configs:
            process = subprocess.Popen(
                [sys.executable, "-c", self.code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                process.stdin.write(d.cluster_cookie().hex().encode() + b"\n")
                process.stdin.flush()
            except BrokenPipeError:
                pass
            launched(d.WorkerConfig(io=process.stdout, process=process, host="127.0.0.1", **config))

    def manage(self, pid: int, config: d.WorkerConfig, op: str) -> Any:
        self.heard.append((op, pid))
        if op == "finalize":
            config.process.wait(10)
            try:
                config.process.stdin.close()
            except BrokenPipeError:
                pass
            config.process.stdout.close()

    @tally.tidying()
    def kill(self, pid: int, config: d.WorkerConfig) -> None:
        config.process.kill()


def ask(pid: int, other: int) -> int:
    """Have a process call another one; neither needs to find a module of the tests."""
    return d.remotecall_fetch(d.remotecall_fetch, pid, d.myid, other)


def joined(n: int) -> list[int]:
    """Wait until there are so many workers; give their ids."""
    return wait_until(lambda: (now := [p for p in d.procs() if p != 1]) and len(now) == n and now, 30)


@tally.tidying()
def end_all(processes: Iterable[subprocess.Popen]) -> None:
    """End the workers that have joined, and the processes that were started for them."""
    d.rmprocs([pid for pid in d.procs() if pid != 1])
    for process in processes:
        process.kill()
        process.wait(10)
        process.stderr.close()
