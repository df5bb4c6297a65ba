"""What every cluster manager has: its interface, and what it tells of a worker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol, dataclass_transform

BASE_PARAMS: Mapping[str, Any] = {
    "topology": "all_to_all",
    "lazy": True,
    "dir": None,
    "exename": None,
    "exeflags": (),
    "env": {},
    "enable_threaded_blas": False,
    "timeout": None,
    "tls": None,
    "allow_plaintext": False,
}
"""The keywords that `addprocs` takes for every manager, with their defaults."""


@dataclass_transform(kw_only_default=True)
class _Fields:
    """Keyword fields with defaults, compared by value, without the long import of `dataclasses`."""

    def __init__(self, **fields: Any) -> None:
        defaults = self._defaults()
        for name in fields:
            if name not in defaults:
                raise TypeError(f"{type(self).__name__}() got an unexpected keyword argument {name!r}")
        self.__dict__.update(defaults)
        self.__dict__.update(fields)

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        known = (item for base in reversed(cls.__mro__) for item in vars(base).items())
        return {name: value for name, value in known if not name.startswith("_") and not callable(value)}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._defaults())
        return f"{type(self).__name__}({fields})"


class WorkerConfig(_Fields):
    """What a manager tells of a worker. It travels to other workers without `io` and `process`.

    Parameters:
        io: a stream from which what the worker prints can be read, its address line first.
        process: the process that stands for the worker here, with a `poll()` as `subprocess.Popen` has it.
        host: the machine it runs on.
        port: where it listens.
        bind_addr: the address it listens on.
        count: how many workers to start there, or "auto".
        exename: the Python executable.
        exeflags: flags for it.
        tunnel: whether the connection goes through ssh.
        multiplex: whether tunnels share one ssh connection.
        forward: the local port of the tunnel.
        sshflags: flags for ssh.
        max_parallel: how many connections to one host are made at once.
        ospid: the worker's process id in its system.
        environ: variables for its environment.
        ident: its name in a custom topology.
        connect_idents: the names of the workers that it is connected to there.
        enable_threaded_blas: whether BLAS pools of the worker stay as they are.
        userdata: whatever the manager wants to keep.

    Distributed.jl: `WorkerConfig`.

    >>> WorkerConfig(host="node1", port=9000).port
    9000
    """

    io: Any = None
    process: Any = None
    host: str | None = None
    port: int | None = None
    bind_addr: str | None = None
    count: int | str | None = None
    exename: str | None = None
    exeflags: Iterable[str] | None = None
    tunnel: bool | None = None
    multiplex: bool | None = None
    forward: int | None = None
    sshflags: Iterable[str] | None = None
    max_parallel: int | None = None
    ospid: int | None = None
    environ: Mapping[str, str] | None = None
    ident: Any = None
    connect_idents: Iterable[Any] | None = None
    enable_threaded_blas: bool | None = None
    userdata: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "io": None, "process": None}


class Launched(Protocol):
    """What `launch` calls for each worker."""

    @property
    def given_up(self) -> bool:
        """Whether `addprocs` has been interrupted, or has ended otherwise: nobody waits for the workers."""

    def __call__(self, config: WorkerConfig) -> int:
        """Takes up a worker that is there, or on its way; returns its id."""

    def failed(self, error: Exception) -> None:
        """Takes note of a worker that could not be launched, where others may follow."""

    def queued(self) -> None:
        """Stops the time of `timeout`: the workers that were taken up wait in the queue of a scheduler."""

    def begun(self) -> None:
        """Has the time of `timeout` begin anew: the scheduler starts them now."""


class ClusterManager(ABC):
    """Starts workers in some way, and connects to them.

    A subclass gives `launch` and `manage`, and the others where their defaults do not fit. `addprocs` calls
    them on threads of their own and waits no longer than its `timeout`; what they raise, it raises.

    Distributed.jl: `ClusterManager`.
    """

    _trusted: ClassVar[bool] = False
    """Its methods return soon, so that they need no thread of their own."""
    _keeps_time: ClassVar[bool] = False
    """Its `launch` ends by itself at the timeout."""
    _shares_config: ClassVar[bool] = True
    """Workers get the configurations of others, to connect to them by the manager."""

    def default_params(self) -> dict[str, Any]:
        """The keywords that `addprocs` takes for this manager, with their defaults.

        Returns:
            Those of every manager; a subclass adds its own to them.

        Distributed.jl: `default_addprocs_params`.
        """
        return dict(BASE_PARAMS)

    @abstractmethod
    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Starts workers, and calls `launched(config)` for each as it comes up; returns after the last.

        Parameters:
            params: what `addprocs` was called with, and the defaults for the rest.
            launched: takes the `WorkerConfig` of a worker and returns its id. `launched.failed(error)` tells
                of one that could not be started.

        Distributed.jl: `launch`.
        """

    @abstractmethod
    def manage(self, pid: int, config: WorkerConfig, op: str) -> Any:
        """Hears what happens to a worker.

        Parameters:
            pid: its id.
            config: what `launch` told of it.
            op: "register": it has joined; "interrupt": its calls are to be interrupted; "deregister": it has
                left; "finalize": nothing more comes, and what was kept for it can be let go.

        Returns:
            True for an "interrupt" that the manager has carried out; else it goes over the connection.

        Distributed.jl: `manage`.
        """

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """Ends a worker that does not end when it is asked to.

        By default this does nothing: the connection is closed then, and a worker ends with it.

        Distributed.jl: `kill`.
        """
        return

    def terminate(self, pid: int, config: WorkerConfig) -> None:
        """Presses a worker that has been asked to end, some time before `kill`; by default nothing."""
        return

    def has_ended(self, pid: int, config: WorkerConfig) -> bool:
        """Whether a worker that has left is gone entirely; by default it is when its connection is."""
        return True

    def connect(self, pid: int, config: WorkerConfig) -> Any:
        """Connects to a worker.

        By default reads the worker's address line from `config.io`, at most 1,000 lines of it, and dials it.

        Returns:
            A connected socket; or a pair of byte streams, to read from and to write to; or None where the
            worker dials process 1 by itself, under this very id.

        Raises:
            LaunchWorkerError: no address came, or it cannot be reached.

        Distributed.jl: `connect`.
        """
        from pydist.managers import _address_lines

        return _address_lines.connect(pid, config)
