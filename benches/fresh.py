"""Runs one contestant in a fresh process, and tells why there is no result where there is none."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benches.model import Contestant, Row, Scale

ROOT = Path(__file__).parents[1]
PATIENCE = 120.0
"""Seconds that a process has beside five times the budget: some peers take long to start and to end."""


@dataclass
class Result:
    """The samples of a contestant in all rounds, or what went wrong in the last one that failed."""

    samples: list[float] = field(default_factory=list)
    problem: str | None = None

    def add(self, other: "Result") -> None:
        self.samples += other.samples
        self.problem = other.problem or self.problem


def missing(contestant: Contestant) -> str | None:
    """Return what a contestant needs and this machine has not."""
    for need in contestant.needs:
        program = need.removeprefix("program:")
        there = shutil.which(program) if program != need else importlib.util.find_spec(need)
        if not there:
            return program
    return None


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a contestant: its workers have to find this package too."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, **extra}


def measure_in_fresh_process(row: Row, contestant: Contestant, scale: Scale) -> Result:
    lacking = missing(contestant)
    if lacking is not None:
        return Result(problem=f"{lacking} is not installed")
    with tempfile.TemporaryDirectory(prefix="pydist-bench-") as folder:
        out, log = Path(folder, "samples.json"), Path(folder, "log")
        command = [sys.executable, "-m", "benches.once", row.name, contestant.name, scale.name, str(out)]
        command += ["--budget", str(scale.budget)]
        with log.open("wb") as stream:
            problem = run(command, stream.fileno(), contestant, PATIENCE + 5 * scale.budget)
        if out.exists():
            return Result(samples=json.loads(out.read_text(encoding="utf-8")))
        return Result(problem=problem or last_line(log))


def run(command: list[str], log: int, contestant: Contestant, seconds: float) -> str | None:
    """Run a process, and end it with all that it has started where it takes too long."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(contestant.environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"failed: not done after {seconds:.0f} s"
    finally:
        end_group(process)
    return None


def end_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f"failed: {said[-1][:200] if said else 'without a word'}"
