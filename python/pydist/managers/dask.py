"""Workers on the workers of a Dask cluster."""

from __future__ import annotations

import operator
import queue
import time
import uuid
import warnings
from typing import Any

from .. import _network
from .._errors import LaunchWorkerError
from . import _hosted

LOOK_SECONDS = 0.5
"""So often a task looks whether its Dask worker is being closed."""
EVENT_SECONDS = 1.0
"""So long the last event of a task that has ended is awaited."""

_ENCRYPTED = ("tls://", "wss://", "inproc://")
_hosts: dict[str, _hosted.Host] = {}
_warned = False


class DaskManager(_hosted.HostedManager):
    """Starts workers through tasks on the workers of a Dask cluster.

    Each is a process of its own, started by a task that runs on its Dask worker as long as it does, and
    secedes, so that it takes no thread from other tasks. It ends with `rmprocs`, with its Dask worker, and
    with process 1. pydist must be installed there: `pip install 'pydist[dask]'`.

    The cookie of the cluster goes to the workers over Dask's own connections: use TLS for these beyond one
    machine (`distributed.Security`). Plain text there is warned of.

    `addprocs` takes `bind_addr` besides: the address of this machine that workers dial. By default that is
    loopback where all Dask workers are on this machine, else the address of the default route.

    Parameters:
        client: a `distributed.Client` that is connected.
        n: how many workers, which are spread over the Dask workers in turn; one for each by default.

    Raises:
        ImportError: Dask's `distributed` is not installed.
        TypeError: `client` is no client, or an asynchronous one.
        ValueError: a negative number.

    Distributed.jl: there is none.
    """

    def __init__(self, client: Any, n: int | None = None) -> None:
        super().__init__()
        distributed = _hosted.need("distributed", "dask")
        if not isinstance(client, distributed.Client):
            raise TypeError(f"DaskManager takes a distributed.Client, not {type(client).__name__}")
        if client.asynchronous:
            raise TypeError("DaskManager takes a client that is not asynchronous")
        self.count = None if n is None else operator.index(n)
        if self.count is not None and self.count < 0:
            raise ValueError(f"the number of workers must not be negative: {n}")
        self._client = client

    def _places(self) -> list[_hosted.Placed]:
        found = sorted(self._client.nthreads())
        if not found:
            raise LaunchWorkerError(
                "the Dask cluster has no workers; wait for them with client.wait_for_workers(1)"
            )
        count = len(found) if self.count is None else self.count
        _warn_of_plain_text([getattr(self._client.scheduler, "address", ""), *found])
        return [_DaskWorker(self._client, found[i % len(found)]) for i in range(count)]

    def _is_here(self) -> bool:
        own = _own_hosts()
        return all(_is_of(own, address) for address in self._client.nthreads())


def _own_hosts() -> set[str]:
    return {_network.split_any(address)[0] for address in _network.own_addresses(0)}


def _warn_of_plain_text(addresses: list[str]) -> None:
    """Warns, once, where Dask would carry the cookie over a network in clear text."""
    global _warned
    own = _own_hosts()
    plain = [a for a in addresses if a and not a.startswith(_ENCRYPTED) and not _is_of(own, a)]
    if not plain or _warned:
        return
    _warned = True
    warnings.warn(
        f"Dask's connection to {plain[0]} is not encrypted, and carries the secret of this pydist cluster: "
        "whoever reads it can run code as you. Give the Dask cluster and its client TLS, by "
        "distributed.Security(require_encryption=True, ...)",
        UserWarning,
        stacklevel=2,
    )


def _is_of(own: set[str], address: str) -> bool:
    """Whether the address of a Dask worker, such as `tcp://10.0.0.1:1234`, is one of this machine."""
    kind, _, target = address.partition("://")
    if kind == "inproc":
        return True
    host = target.rpartition(":")[0].strip("[]")
    return host in own or (_network.is_address(host) and _network.is_loopback(host))


class _DaskWorker(_hosted.Placed):
    """A worker with its task.

    Parameters:
        client: the client.
        address: the Dask worker that it runs beside.
    """

    def __init__(self, client: Any, address: str) -> None:
        self._client = client
        self._address = address
        self._token = f"pydist-{uuid.uuid4().hex}"
        self._future: Any = None
        self._started: queue.SimpleQueue[tuple[int, str] | str] = queue.SimpleQueue()
        self._parts: queue.SimpleQueue[_hosted.Parts] = queue.SimpleQueue()
        self._status: int | None = None
        self._silent_until: float | None = None

    def start(
        self, pid: int, cookie: _hosted.Secret, settings: dict[str, Any], until: float
    ) -> tuple[int, str]:
        """Submits the task, which starts the worker."""
        begin = time.monotonic()
        self._client.subscribe_topic(self._token, self._heard)
        self._future = self._client.submit(
            run_task,
            self._token,
            cookie,
            settings,
            key=f"pydist-worker-{pid}-{self._token}",
            workers=[self._address],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        while True:
            try:
                said = self._started.get(timeout=LOOK_SECONDS / 10)
            except queue.Empty:
                if self._future.status not in ("pending", "finished"):
                    raise LaunchWorkerError(
                        f"the Dask worker {self._address} could not run the task: {self._why()}"
                    ) from None
                if time.monotonic() > until:
                    hint = f"its task on {self._address} is {self._future.status}"
                    raise _hosted.not_placed("Dask", until - begin, hint) from None
                continue
            if isinstance(said, str):
                raise LaunchWorkerError(f"the worker could not be started beside {self._address}: {said}")
            return said

    def _why(self) -> str:
        error = self._future.exception(timeout=EVENT_SECONDS) if self._future.status == "error" else None
        return self._future.status if error is None else repr(error)

    def _heard(self, event: tuple[float, dict[str, Any]]) -> None:
        """Runs on the client's event loop."""
        _, said = event
        if "started" in said:
            ospid, host = said["started"]
            self._started.put((ospid, host))
        if "failed" in said:
            self._started.put(said["failed"])
        if "output" in said:
            self._parts.put([(number, data) for number, data in said["output"]])
        if "ended" in said:
            self._end(said["ended"])

    def _end(self, status: int) -> None:
        if self._status is None:
            self._status = status
            self._parts.put([])

    def read(self) -> _hosted.Parts:
        """What the worker has printed since."""
        return self._parts.get()

    def poll(self) -> int | None:
        """Its exit status; as if it was killed where its Dask worker or the client is gone."""
        future = self._future
        if self._status is None and future is not None:
            if self._client.status != "running":
                self._end(_hosted.LOST)
            elif future.done():
                # Its last event may be on its way.
                if self._silent_until is None:
                    self._silent_until = time.monotonic() + EVENT_SECONDS
                elif time.monotonic() > self._silent_until:
                    self._end(_hosted.LOST)
        return self._status

    def signal(self, number: int) -> None:
        """Has the Dask worker send a signal."""
        if self._status is None and self._client.status == "running":
            self._client.run(send_signal, self._token, number, workers=[self._address], on_error="ignore")

    def release(self) -> None:
        """Lets go of the task."""
        self._end(_hosted.LOST)
        if self._client.status == "running":
            self._client.unsubscribe_topic(self._token)
            if self._future is not None:
                self._future.cancel()
        self._future = None


def run_task(token: str, cookie: _hosted.Secret, settings: dict[str, Any]) -> None:
    """Runs on a Dask worker: starts a worker, and tells process 1 by events what becomes of it."""
    from distributed import Status, get_worker, secede

    dask_worker = get_worker()
    secede()  # type: ignore[no-untyped-call, unused-ignore]
    host = _hosted.Host()
    try:
        ospid, name = host.start(cookie, settings)
    except OSError as error:
        dask_worker.log_event(token, {"failed": str(error)})
        return
    _hosts[token] = host
    dask_worker.log_event(token, {"started": [ospid, name]})
    while (parts := host.read(LOOK_SECONDS)) is None or parts:
        if parts:
            dask_worker.log_event(token, {"output": [list(part) for part in parts]})
        if dask_worker.status not in (Status.running, Status.paused):
            host.signal(9)
    _hosts.pop(token, None)
    dask_worker.log_event(token, {"ended": host.wait()})


def send_signal(token: str, number: int) -> None:
    """Runs on a Dask worker: sends a signal to a worker, if it is still there."""
    host = _hosts.get(token)
    if host is not None:
        host.signal(number)
