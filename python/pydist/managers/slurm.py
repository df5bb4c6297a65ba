"""Workers as tasks of Slurm."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import signal
import subprocess
import threading
from typing import Any, ClassVar

from .. import _core, _output, _ranks, _session
from .._errors import LaunchWorkerError
from . import _labelled, _srun, _srun_task
from .base import ClusterManager, Launched, WorkerConfig
from .local import environment_of

END_SECONDS = 6.0
"""So long srun has to end its tasks and its job; Slurm itself gives tasks a few seconds."""

TOLD_SECONDS = 2.0
"""So long Slurm may take to pass on what a task tells first, or how it has ended, after its connection."""


class SlurmManager(ClusterManager):
    """Starts workers as tasks of Slurm, all of them by one `srun`.

    Inside an allocation (`sbatch`, `salloc`) they are a step of it; elsewhere a job of their own, which ends
    with them and with this process, however it ends. Workers get the environment of this process and
    the variables, CPUs and limits of their task.

    The `timeout` of `addprocs` begins when the job does. It waits in the queue without limit, unless the
    option `immediate` (seconds) is given; Ctrl-C cancels it.

    Workers dial process 1, across hosts with TLS.

    Parameters:
        ntasks: how many; None for all tasks of the allocation, or one on each node of a job of its own.
        options: Slurm's long options with underscores, such as `partition="gpu"`, `time="1:00:00"`,
            `cpus_per_task=4`, `mem="2G"`, `gres="gpu:1"`; True for an option without a value.

    Raises:
        TypeError: an option that is no text, number or list.
        ValueError: no positive number of tasks; or an option that cannot be set.

    Distributed.jl: `SlurmManager` of SlurmClusterManager.jl.

    >>> import pydist as d
    >>> d.SlurmManager(8, partition="long", time="2:00:00", cpus_per_task=2)
    SlurmManager(8, partition='long', time='2:00:00', cpus_per_task=2)
    """

    _trusted: ClassVar[bool] = True
    _keeps_time: ClassVar[bool] = True
    _shares_config: ClassVar[bool] = False

    def __init__(self, ntasks: int | None = None, **options: Any) -> None:
        if ntasks is not None:
            if isinstance(ntasks, bool) or not isinstance(ntasks, int):
                raise TypeError(f"ntasks must be an int or None, not {type(ntasks).__name__}")
            if ntasks < 1:
                raise ValueError(f"ntasks must be positive, not {ntasks}")
        _srun.check_options(options)
        self.ntasks = ntasks
        self.options = options

    def __repr__(self) -> str:
        words = [repr(self.ntasks), *(f"{name}={value!r}" for name, value in self.options.items())]
        return f"SlurmManager({', '.join(words)})"

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Starts `srun`, and tells its tasks how to find this process."""
        environment = environment_of(params)
        environment.pop("PYDIST_COOKIE", None)
        count = self.ntasks or _srun.count_tasks(self.options, environment)
        srun = shutil.which("srun", path=environment.get("PATH"))
        if srun is None:
            raise LaunchWorkerError("srun is not in PATH: is Slurm installed here?", host=_session.host())
        _core.watch_members()
        words = _srun.command(srun, count, self.options, params, environment)
        _Step(words, environment, count, params, launched).start()

    def connect(self, pid: int, config: WorkerConfig) -> None:
        """Does nothing: the worker dials this process."""
        return

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Lets go of what is kept for a worker."""
        if op == "register":
            config.process.await_start()
            config.process.step.joined(pid)
        elif op == "finalize":
            config.process.step.left(pid)
            _ranks.remove_socket(pid)

    def terminate(self, pid: int, config: WorkerConfig) -> None:
        """Has Slurm end the tasks, where no other worker of the step is to stay."""
        if not config.process.step.others(pid):
            config.process.step.stop()

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """Ends the step, where no other worker of it is to stay; a worker alone ends with its connection."""
        config.process.step.left(pid)

    def has_ended(self, pid: int, config: WorkerConfig) -> bool:
        """Whether nothing has to be waited for: for the last worker of a step that is the step itself."""
        step: _Step = config.process.step
        return step.others(pid) or step.poll() is not None


class _Task:
    """One task of a step, in the place of a process.

    Parameters:
        step: the step.
        rank: its number there.
    """

    def __init__(self, step: _Step, rank: int) -> None:
        self.step = step
        self.rank = rank
        self.status: int | None = None
        self.config: WorkerConfig | None = None
        self.pid = 0
        self.streams: list[_output.Stream] = []
        self._told = threading.Event()
        self._introduced = threading.Event()

    def poll(self) -> int | None:
        """Its exit status, once it has ended; that of `srun` where Slurm did not tell."""
        return self.status if self.status is not None else self.step.poll()

    def exit_reason(self, seconds: float) -> str:
        """How it has ended, where Slurm tells it a moment later, and within so many seconds."""
        self._told.wait(min(seconds, TOLD_SECONDS))
        if self.status is None:
            return ""
        return f"signal {-self.status}" if self.status < 0 else f"exit code {self.status}"

    def introduce(self) -> None:
        """It has told its job, its process and its host."""
        self._introduced.set()

    def await_start(self) -> None:
        """Waits a moment for what it tells first, which may come after its connection."""
        self._introduced.wait(TOLD_SECONDS)

    def end_output(self) -> None:
        """All that it printed has been read."""
        self._introduced.set()
        self._told.set()
        for stream in self.streams:
            stream.ended.set()


class _Step:
    """A run of `srun`.

    Parameters:
        words: the command.
        environment: the variables of its tasks.
        count: how many tasks.
        params: the keywords of `addprocs`.
        launched: takes up workers.
    """

    def __init__(
        self,
        words: list[str],
        environment: dict[str, str],
        count: int,
        params: dict[str, Any],
        launched: Launched,
    ) -> None:
        self._words = words
        self._environment = environment
        self._params = params
        self._launched = launched
        self._tasks = [_Task(self, rank) for rank in range(count)]
        self._lock = threading.Lock()
        self._coming: set[int] = set()
        self._alive: set[int] = set()
        self._job: str | None = None
        self._started = False
        self._stopped = False
        self._own_job = not _srun.is_inside(environment)
        self._own = _labelled.OwnStream(self._hear)
        self._door = _ranks.Door(params)
        try:
            self._process = _output.launcher().run(self._popen)
        except BaseException:
            self._door.close()
            raise

    def _popen(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )

    def start(self) -> None:
        """Takes up the workers, and tells them how to find this process."""
        try:
            for task in self._tasks:
                self._take_up(task)
        except BaseException:
            self.end()
            raise
        finally:
            # Its pipes are read in any case: its end is seen by theirs.
            self._read_output()
        settings = self._door.settings([task.pid for task in self._tasks])
        session = _session.session
        assert session is not None
        lines = f"{session.cookie_text()}\n{json.dumps(settings)}\n".encode()
        assert self._process.stdin is not None
        try:
            # Everything is broadcast to all tasks. The pipe stays open: its end would be theirs.
            self._process.stdin.write(lines)
            self._process.stdin.flush()
        except BrokenPipeError:
            # srun has ended already; who waits for the workers sees that.
            return

    def _take_up(self, task: _Task) -> None:
        params = self._params
        task.config = WorkerConfig(
            process=task,
            exename=params["exename"],
            exeflags=params["exeflags"],
            environ=params["env"],
            enable_threaded_blas=params["enable_threaded_blas"],
            userdata={"SLURM_PROCID": task.rank},
        )
        task.pid = self._launched(task.config)
        task.streams = [
            _labelled.TaskStream(task.pid, _output.stdout),
            _labelled.TaskStream(task.pid, _output.stderr),
        ]
        for stream in (self._own, *task.streams):
            _output.add(task.pid, stream)
        with self._lock:
            self._coming.add(task.pid)
            self._alive.add(task.pid)

    def _read_output(self) -> None:
        ended = _labelled.when_all(2, self._output_ended)
        for number, pipe in enumerate((self._process.stdout, self._process.stderr)):
            assert pipe is not None
            fd = os.dup(pipe.fileno())
            pipe.close()
            stream_of = functools.partial(self._stream, number)
            _labelled.watch(_labelled.Labelled(fd, stream_of, self._own, self._sees, ended))

    def _stream(self, number: int, rank: int) -> _output.Stream | None:
        if rank >= len(self._tasks) or not self._tasks[rank].streams:
            return None
        return self._tasks[rank].streams[number]

    def _sees(self, rank: int, line: bytes) -> bool:
        """Looks at what a task tells of itself."""
        task = self._tasks[rank]
        if line == _srun_task.END:
            task.end_output()
            return True
        start = _srun_task.parse_start(line)
        if start is None or task.config is None or task.config.ospid is not None:
            return False
        self._job, task.config.ospid, task.config.host = start
        task.config.userdata["SLURM_JOB_ID"] = self._job
        task.introduce()
        self._started = True
        return True

    def _hear(self, line: str) -> None:
        """Hears what srun says."""
        self._job = _srun.job_of(line) or self._job
        if _srun.is_queued(line):
            self._launched.queued()
        elif _srun.is_allocated(line):
            self._launched.begun()
        # What it says of the queue the user waits for; errors are part of exceptions.
        waits = not self._started and not self._stopped and "error:" not in line
        logging.getLogger("pydist").log(logging.WARNING if waits else logging.INFO, "%s", line)
        for rank, status in _srun.ends_of(line):
            if rank < len(self._tasks):
                self._tasks[rank].status = status
                self._tasks[rank].end_output()

    def _output_ended(self) -> None:
        for task in self._tasks:
            task.end_output()
        threading.Thread(target=self._await_end, name="pydist-srun", daemon=True).start()

    def _await_end(self) -> None:
        """Waits for the end of srun, and has workers forgotten that have ended with it."""
        from .. import _cluster

        self._process.wait()
        _cluster.members_changed()

    def poll(self) -> int | None:
        """The exit status of srun, once it has ended."""
        return self._process.poll()

    def others(self, pid: int) -> bool:
        """Whether another worker of the step is a member."""
        members = {member[0] for member in _core.members()}
        with self._lock:
            return not members.isdisjoint(self._alive - {pid})

    def joined(self, pid: int) -> None:
        """A worker has joined; after the last one nobody is let in any more."""
        with self._lock:
            self._coming.discard(pid)
            closes = not self._coming
        if closes:
            self._door.close()

    def left(self, pid: int) -> None:
        """A worker is not to be here any more; with the last one the step ends."""
        with self._lock:
            self._coming.discard(pid)
            was_there = pid in self._alive
            self._alive.discard(pid)
            ends = was_there and not self._alive
        if ends:
            self.end()

    def stop(self) -> None:
        """Has srun end its tasks, and its job."""
        self._stopped = True
        self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Ends the step, and the job where it is one of its own."""
        self._door.close()
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.close()
        except OSError:
            pass
        if self._process.poll() is not None:
            return
        self.stop()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._cancel_job()

    def _cancel_job(self) -> None:
        """Cancels the job, which stays when srun is killed."""
        scancel = shutil.which("scancel", path=self._environment.get("PATH"))
        if self._job is None or not self._own_job or scancel is None:
            return
        subprocess.run(
            [scancel, self._job],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
