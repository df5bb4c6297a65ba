"""The exceptions of pydist. Those that stand for errors of other processes are made in `_remote_error`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from pydist._remote_error import (
    RemoteException,
    as_it_is,
    dump_exception,
    load_exception,
    local_exception,
    remote_exception,
)
from pydist._traceback_text import format_traceback, place

if TYPE_CHECKING:
    from concurrent.futures import CancelledError

__all__ = [
    "AuthenticationError",
    "CallLimitError",
    "CancelledError",
    "ChannelClosedError",
    "ConnectionLostError",
    "FrameTooLargeError",
    "FutureAlreadySetError",
    "LaunchWorkerError",
    "NoWorkersError",
    "NotConnectedError",
    "ProcessExitedException",
    "RemoteException",
    "ThreadLimitError",
    "VersionMismatchError",
    "as_it_is",
    "dump_exception",
    "format_traceback",
    "load_exception",
    "local_exception",
    "remote_exception",
]


def __getattr__(name: str) -> Any:
    # It brings the whole of concurrent.futures along, which few programs have a use for.
    if name == "CancelledError":
        from concurrent.futures import CancelledError

        globals()[name] = CancelledError
        return CancelledError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


REMOVED = "removed by rmprocs"
"""How the reason begins for which a worker has ended that was asked to."""


class ProcessExitedException(Exception):
    """A process that has exited, or can no longer be reached.

    Parameters:
        pid: its id.
        reason: why, such as `signal 9 (SIGKILL)`, `exit code 1` or `no heartbeat`.
        host: the host it ran on.
        output: the last lines that it printed.

    Distributed.jl: `ProcessExitedException`.

    >>> print(ProcessExitedException(2, "signal 9 (SIGKILL)", "node1", "out of memory"))
    worker 2 (node1) exited: signal 9 (SIGKILL)
    its last output:
    out of memory
    """

    _names_exited_process = True

    def __init__(self, pid: int, reason: str = "", host: str | None = None, output: str = "") -> None:
        super().__init__(pid, reason, host, output)
        self.pid = pid
        self.reason = reason
        self.host = host
        self.output = output

    def __str__(self) -> str:
        return self._told("exited")

    element: int | None = None
    """In `pmap`: the number of the element that it ran, from 0, where that is certain."""
    _doing = ""

    def _while(self, doing: str, element: int | None) -> Self:
        """The same error, which also says what the process was doing."""
        told = type(self)(self.pid, self.reason, self.host, self.output)
        told._doing, told.element = doing, element
        return told

    def _told(self, what: str) -> str:
        text = f"{place(self.pid, self.host)} {what}" + (f": {self.reason}" if self.reason else "")
        if self._doing:
            text = f"{text}\n{self._doing}"
        output = self.output.rstrip()
        return f"{text}\nits last output:\n{output}" if output else text


class ConnectionLostError(ProcessExitedException):
    """A process that cannot be reached from here any more, though it may still run.

    >>> print(ConnectionLostError(3, "connection reset"))
    worker 3 cannot be reached: connection reset
    """

    def __str__(self) -> str:
        return self._told("cannot be reached")


class ChannelClosedError(Exception):
    """A channel that is closed, and holds nothing more to take.

    Distributed.jl: `InvalidStateException` of a closed `Channel`.
    """


class NotConnectedError(ConnectionError):
    """Two processes that the topology does not connect.

    Parameters:
        here: the id of the process that wanted to reach the other.
        there: the id of the other.
        reason: why they are not connected.

    >>> print(NotConnectedError(2, 3))
    process 2 is not connected to process 3
    """

    def __init__(self, here: int, there: int, reason: str = "") -> None:
        message = f"process {here} is not connected to process {there}"
        super().__init__(f"{message}: {reason}" if reason else message)
        self.here = here
        self.there = there
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.here, self.there, self.reason)


class LaunchWorkerError(RuntimeError):
    """A worker that did not start, or several.

    Parameters:
        message: what happened.
        failures: one error for each worker that did not start, where several were asked for.
        started: the ids of those that are up, and stay usable.
        host: where the worker was to start.
        status: the exit status of the worker, or of the command that was to start it.
        output: the end of what it printed.

    Distributed.jl: `LaunchWorkerError`.

    >>> print(LaunchWorkerError("no worker on node1", host="node1", status=127, output="python: not found"))
    no worker on node1
    exit status 127
    its last output:
    python: not found
    """

    def __init__(
        self,
        message: str = "",
        *,
        failures: Iterable[BaseException] = (),
        started: Iterable[int] = (),
        host: str | None = None,
        status: int | None = None,
        output: str = "",
    ) -> None:
        super().__init__(message)
        self.failures = list(failures)
        self.started = list(started)
        self.host = host
        self.status = status
        self.output = output

    def __str__(self) -> str:
        lines = [super().__str__()]
        if self.host and self.host not in lines[0]:
            lines[0] += f" (host {self.host})"
        if self.status is not None:
            lines.append(f"exit status {self.status}")
        if self.output.strip():
            lines += ["its last output:", self.output.rstrip()]
        lines += [f"- {failure}" for failure in {id(failure): failure for failure in self.failures}.values()]
        if self.started:
            lines.append(f"these have started: {', '.join(map(str, self.started))}")
        return "\n".join(lines)


class NoWorkersError(RuntimeError):
    """A pool in which no worker is left."""


class FutureAlreadySetError(RuntimeError):
    """A second `put` into a future."""


class VersionMismatchError(ConnectionError):
    """Two processes whose versions of pydist, or of Python, cannot work together."""


class AuthenticationError(ConnectionError):
    """A peer that does not know the cookie of the cluster."""


class FrameTooLargeError(ValueError):
    """A message that is larger than the limit; nothing of it has been sent."""


class CallLimitError(RuntimeError):
    """A call that was not made: as many as are allowed have no answer yet."""


class ThreadLimitError(RuntimeError):
    """A call for which no thread could be had: as many as are allowed are blocked already."""
