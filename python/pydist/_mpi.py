"""A program under `mpirun`: its first process runs the program as process 1, the others are workers."""

from __future__ import annotations

import json
import os
import stat
import sys
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from . import _config, _core, _ranks, _session
from ._errors import LaunchWorkerError
from .managers.base import ClusterManager, Launched, WorkerConfig
from .managers.local import BLAS_VARIABLES

PAUSE_SECONDS = 0.05
"""The pause before a worker looks again whether process 1 has told where it is."""

_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)
_HERE = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
_STEP = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
_TAKEN = "PYDIST_MPI_TAKEN"
_JOBS = (
    "OMPI_MCA_ess_base_jobid",
    "PMIX_NAMESPACE",
    "PMI_JOBID",
    "PMI_PORT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
)


def place(environment: Mapping[str, str], *, steps: bool) -> tuple[int, int] | None:
    """The rank of a process, and how many there are; None where nothing has started several.

    Parameters:
        environment: its variables.
        steps: whether the tasks of a step of Slurm count, too.

    >>> place({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"}, steps=False)
    (1, 4)
    """
    for rank, size in (*_VARIABLES, *((_STEP,) if steps else ())):
        if environment.get(rank, "").isdigit() and environment.get(size, "").isdigit():
            return int(environment[rank]), int(environment[size])
    return None


def is_taken() -> bool:
    """Whether this process was started by one that has its place: the variables of `mpirun` are inherited."""
    return _TAKEN in os.environ


def take() -> None:
    """Takes the place of this process; those that it starts are not to."""
    os.environ[_TAKEN] = "1"


def _meeting_point() -> str:
    """The file by which process 1 tells the others where it is: one for each `mpirun`."""
    import hashlib

    names = [f"{name}={os.environ[name]}" for name in _JOBS if name in os.environ]
    if not names:
        # What starts the processes of a host is at least their parent.
        names = [_session.host(), str(os.getppid())]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:24]
    return os.path.join(_config.meeting_folder(), f"mpi-{digest}")


class MpiManager(ClusterManager):
    """Takes up the other processes of an `mpirun` as workers.

    Parameters:
        size: how many processes there are, this one included.
    """

    _trusted: ClassVar[bool] = True
    _shares_config: ClassVar[bool] = False

    def __init__(self, size: int) -> None:
        self._size = size
        self._path = _meeting_point()
        self._coming: set[int] = set()
        self._door: _ranks.Door | None = None

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Tells the other processes where this one is."""
        _core.watch_members()
        near = str(self._size) in (os.environ.get(name) for name in _HERE)
        door = self._door = _ranks.Door(params, near)
        try:
            pids = [launched(WorkerConfig(userdata={"rank": rank})) for rank in range(1, self._size)]
            self._coming.update(pids)
            settings = {**door.settings(pids), "threads": params["enable_threaded_blas"]}
            assert _session.session is not None
            _write(self._path, f"{_session.session.cookie_text()}\n{json.dumps(settings)}\n".encode())
        except OSError as error:
            door.close()
            raise LaunchWorkerError(f"process 1 cannot tell the others where it is: {error}") from error

    def connect(self, pid: int, config: WorkerConfig) -> None:
        """Does nothing: the worker dials this process."""
        return

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Withdraws what tells where this process is, once all know."""
        if op in ("register", "finalize"):
            self.kill(pid, config)
        if op == "finalize":
            _ranks.remove_socket(pid)

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """Expects the worker no longer; it ends with its connection."""
        self._coming.discard(pid)
        if self._coming or self._door is None:
            return
        self._door.close()
        try:
            os.unlink(self._path)
        except OSError:
            return


def _write(path: str, data: bytes) -> None:
    """Writes a file that this user alone can read; it is there whole, or not at all."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    new = f"{path}.{os.getpid()}"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.replace(new, path)


def _read(path: str) -> tuple[str, dict[str, Any]] | None:
    """What process 1 has written, or None as long as there is nothing.

    Raises:
        PermissionError: the file belongs to another user, or others may read it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(f"{path} belongs to another user, or others may read it")
        cookie, settings = file.read().split(b"\n")[:2]
    return cookie.decode(), json.loads(settings)


def serve(rank: int) -> int:
    """Runs the worker that a process of an `mpirun` is; returns its exit status."""
    path = _meeting_point()
    until = time.monotonic() + _config.worker_timeout()
    found = None
    try:
        while found is None or not _ranks.answers(found[1]):
            if time.monotonic() > until:
                return _fail(
                    rank,
                    f"process 1 has not told where it is, in {path}; if the processes share no such folder, "
                    "let the environment variable PYDIST_MEETING_FOLDER name one that they do"
                    if found is None
                    else f"process 1 does not answer at any of {', '.join(found[1]['addresses'])}",
                )
            time.sleep(PAUSE_SECONDS)
            found = _read(path) or found
    except (OSError, ValueError) as error:
        return _fail(rank, str(error))
    cookie, settings = found
    sys.path[:] = settings["sys_path"] or sys.path
    if not settings["threads"]:
        for name in BLAS_VARIABLES:
            os.environ.setdefault(name, "1")
    return _ranks.serve(cookie, settings, rank - 1)


def _fail(rank: int, message: str) -> int:
    sys.stderr.write(f"pydist: process {rank} of mpirun on {_session.host()} cannot join: {message}\n")
    return 1
