"""What `srun` is told, and what it says."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from .local import READ_SETTINGS

OWN = (
    "chdir",
    "error",
    "export",
    "input",
    "kill_on_bad_exit",
    "label",
    "multi_prog",
    "output",
    "pty",
    "wait",
)
"""The options that the manager sets itself, or that its workers cannot have."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
_TASK_END = re.compile(r"srun: error: \S+: tasks? ([\d,-]+): (.*)")
_SIGNALS = {signal.strsignal(number): -number for number in signal.valid_signals()}

_TASK = READ_SETTINGS + "from pydist.managers._srun_task import main\nmain(cookie,config)\n"
_TIED = (
    "import ctypes,os,sys\n"
    "ctypes.CDLL(None).prctl(1,15,0,0,0)\n"
    "if os.getppid()!=int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2],sys.argv[2:])\n"
)


def check_options(options: Mapping[str, Any]) -> list[str]:
    """The options of Slurm as flags.

    Parameters:
        options: their long names with underscores; True for one without a value, None or False for none at
            all, a list for one whose parts are separated by commas.

    Raises:
        TypeError: a value that is no text, number or list.
        ValueError: no name of an option, or one that is set otherwise.

    >>> check_options({"cpus_per_task": 4, "exclusive": True, "nodelist": ["a", "b"], "mem": None})
    ['--cpus-per-task=4', '--exclusive', '--nodelist=a,b']
    """
    flags = []
    for name, value in options.items():
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is no option of Slurm: give long names with underscores")
        if name in OWN:
            raise ValueError(f"SlurmManager sets the option {name} itself")
        if value is None or value is False:
            continue
        if isinstance(value, (list, tuple)):
            value = ",".join(str(part) for part in value)
        elif not isinstance(value, (str, int, float)):
            raise TypeError(
                f"the option {name} must be a text, a number or a list, not {type(value).__name__}"
            )
        flag = "--" + name.replace("_", "-")
        flags.append(flag if value is True else f"{flag}={value}")
    return flags


def count_tasks(options: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    """How many tasks there are where nobody says it: those of the allocation, or one on each node."""
    inside = is_inside(environment)
    per_node = _first_number(options.get("ntasks_per_node"))
    nodes = _first_number(options.get("nodes"))
    if per_node is not None or nodes is not None:
        if nodes is None:
            nodes = _first_number(environment.get("SLURM_JOB_NUM_NODES")) if inside else None
        return (per_node or 1) * (nodes or 1)
    if not inside:
        return 1
    for name in ("SLURM_NTASKS", "SLURM_NPROCS"):
        if (number := _first_number(environment.get(name))) is not None:
            return number
    nodes = _first_number(environment.get("SLURM_JOB_NUM_NODES")) or 1
    return nodes * (_first_number(environment.get("SLURM_NTASKS_PER_NODE")) or 1)


def _first_number(text: Any) -> int | None:
    found = re.match(r"\d+", "" if text is None else str(text))
    return int(found[0]) if found else None


def is_inside(environment: Mapping[str, str]) -> bool:
    """Whether a process with this environment runs in an allocation of Slurm."""
    return bool(environment.get("SLURM_JOB_ID"))


def command(
    srun: str,
    ntasks: int,
    options: Mapping[str, Any],
    params: Mapping[str, Any],
    environment: Mapping[str, str],
) -> list[str]:
    """The words that start the tasks; no secret is among them.

    `srun` gets SIGTERM, on which it ends its tasks and its job, when the thread that starts it ends.
    """
    flags = [
        f"--ntasks={ntasks}",
        f"--chdir={params['dir'] or os.getcwd()}",
        "--label",
        "--export=ALL",
        "--kill-on-bad-exit=0",
        "--wait=0",
        *check_options(options),
    ]
    if is_inside(environment):
        # Not all versions of srun take this over from the allocation.
        if "cpus_per_task" not in options and (cpus := environment.get("SLURM_CPUS_PER_TASK")):
            flags.append(f"--cpus-per-task={cpus}")
        # A process 1 that is a task itself occupies CPUs, for which the step would wait for ever.
        if "SLURM_STEP_ID" in environment and not {"overlap", "exclusive", "exact"} & set(options):
            flags.append("--overlap")
    elif "job_name" not in options:
        flags.append("--job-name=pydist")
    if "mpi" not in options:
        flags.append("--mpi=none")
    task = [params["exename"] or sys.executable, *params["exeflags"], "-c", _TASK]
    return [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), srun, *flags, *task]


def is_queued(line: str) -> bool:
    """Whether srun says that its job waits."""
    return line.startswith("srun: job ") and line.endswith("queued and waiting for resources")


def is_allocated(line: str) -> bool:
    """Whether srun says that its job has its resources."""
    return line.startswith("srun: job ") and line.endswith("has been allocated resources")


def job_of(line: str) -> str | None:
    """The number of the job, where srun tells it."""
    found = re.match(r"srun: job (\d+) ", line)
    return found[1] if found else None


def ends_of(line: str) -> Iterable[tuple[int, int | None]]:
    """The tasks of whose end srun tells, each with its exit status, a negative one for a signal.

    >>> list(ends_of("srun: error: node1: tasks 0,3-4: Exited with exit code 2"))
    [(0, 2), (3, 2), (4, 2)]
    >>> list(ends_of("srun: error: node1: task 1: Killed"))
    [(1, -9)]
    """
    found = _TASK_END.match(line)
    if found is None:
        return
    how = found[2].removesuffix(" (core dumped)")
    code = re.match(r"Exited with exit code (\d+)", how)
    status = int(code[1]) if code else _SIGNALS.get(how)
    for part in found[1].split(","):
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield number, status
