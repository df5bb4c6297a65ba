"""Workers on the nodes of a Ray cluster."""

from __future__ import annotations

import operator
import time
from typing import Any

from .._errors import LaunchWorkerError
from . import _hosted

CALLS = 4
"""So many methods of an actor run at once: `read` and `wait` stay in theirs."""
SIGNAL_SECONDS = 2.0


class RayManager(_hosted.HostedManager):
    """Starts workers through actors of a Ray cluster, which `ray.init` has connected this process to.

    Each worker is a process of its own beside its actor, and takes what Ray has given to that: its CPUs, its
    GPUs by CUDA_VISIBLE_DEVICES, its runtime environment. It ends with `rmprocs`, with the Ray cluster, and
    with process 1. pydist must be installed on the nodes: `pip install 'pydist[ray]'`.

    `addprocs` takes `bind_addr` besides: the address of this machine that workers dial. By default that is
    loopback where the cluster has this machine alone, else the address of the default route.

    Parameters:
        n: how many workers.
        actor_options: options of Ray for each actor, such as `num_cpus` (1 by default), `num_gpus`,
            `resources`, `scheduling_strategy` or `runtime_env`.

    Raises:
        ImportError: Ray is not installed.
        ValueError: a negative number, or an option that Ray does not know or that pydist sets itself.

    Distributed.jl: there is none.
    """

    def __init__(self, n: int, **actor_options: Any) -> None:
        super().__init__()
        self.count = operator.index(n)
        if self.count < 0:
            raise ValueError(f"the number of workers must not be negative: {n}")
        self._ray = _hosted.need("ray", "ray")
        for name in ("max_concurrency", "concurrency_groups", "lifetime"):
            if name in actor_options:
                raise ValueError(f"RayManager sets the actor option {name} itself")
        options = {"num_cpus": 1, **actor_options}
        self._actor = self._ray.remote(_hosted.Host).options(**options, max_concurrency=CALLS)
        self._asked = options

    def _places(self) -> list[_hosted.Placed]:
        if not self._ray.is_initialized():
            raise RuntimeError(
                'this process is not connected to a Ray cluster; call ray.init(address="auto") before, '
                "or ray.init() to start one on this machine"
            )
        session = _session_of(self._ray)
        return [_RayWorker(self._ray, session, self._actor, self._asked) for _ in range(self.count)]

    def _is_here(self) -> bool:
        mine = self._ray.get_runtime_context().get_node_id()
        return all(node["NodeID"] == mine for node in self._ray.nodes() if node["Alive"])


class _RayWorker(_hosted.Placed):
    """A worker with its actor.

    Parameters:
        ray: the module.
        session: the connection to Ray that its actor belongs to.
        actor_class: what makes the actor.
        asked: the options of it.
    """

    def __init__(self, ray: Any, session: Any, actor_class: Any, asked: dict[str, Any]) -> None:
        self._ray = ray
        self._session = session
        self._class = actor_class
        self._asked = asked
        self._actor: Any = None
        self._ended: Any = None
        self._status: int | None = None
        self._released = False

    def start(
        self, pid: int, cookie: _hosted.Secret, settings: dict[str, Any], until: float
    ) -> tuple[int, str]:
        """Makes the actor, and has it start the worker."""
        begin = time.monotonic()
        try:
            self._check()
            actor = self._actor = self._class.remote()
            started = actor.start.remote(cookie, settings)
            if not self._ray.wait([started], timeout=max(0.0, until - begin))[0]:
                hint = f"it asks for {self._asked}, and there is {self._ray.available_resources()}"
                raise _hosted.not_placed("Ray", until - begin, hint)
            ospid, host = self._ray.get(started)
            self._ended = actor.wait.remote()
        except LaunchWorkerError:
            raise
        except Exception as error:
            raise LaunchWorkerError(f"Ray could not start the worker: {_cause(error)}") from error
        if self._released:
            self.release()
        return ospid, host

    def read(self) -> _hosted.Parts:
        """What the worker has printed since."""
        try:
            self._check()
            parts: _hosted.Parts = self._ray.get(self._actor.read.remote())
        except Exception:
            return []
        return parts

    def poll(self) -> int | None:
        """Its exit status; as if it was killed where its actor is gone."""
        if self._status is None and self._ended is not None:
            try:
                self._check()
                if self._ray.wait([self._ended], timeout=0)[0]:
                    self._status = self._ray.get(self._ended)
            except Exception:
                self._status = _hosted.LOST
        return self._status

    def signal(self, number: int) -> None:
        """Has the actor send a signal, if it is there."""
        if self._ended is not None and _session_of(self._ray) == self._session:
            self._ray.wait([self._actor.signal.remote(number)], timeout=SIGNAL_SECONDS)

    def release(self) -> None:
        """Ends the actor."""
        self._released = True
        if self._actor is not None and _session_of(self._ray) == self._session:
            self._ray.kill(self._actor)

    def _check(self) -> None:
        """Fails where Ray has been shut down: it would start another cluster for what is asked of it then."""
        if _session_of(self._ray) != self._session:
            raise ConnectionError("this process is no longer connected to the Ray cluster")


def _session_of(ray: Any) -> Any:
    """What tells one connection to Ray from another; None where there is none."""
    if not ray.is_initialized():
        return None
    context = ray.get_runtime_context()
    return context.get_node_id(), context.get_job_id()


def _cause(error: Exception) -> BaseException:
    return getattr(error, "cause", None) or error
