"""What the processes hold and do, as numbers for monitoring."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from . import _cluster, _core, _refs, _session

SECONDS = 2.0
"""So long a process has to tell its numbers."""

TOTALS = {
    "bytes_received": "Bytes that have come on connections.",
    "bytes_sent": "Bytes that have been sent on connections.",
    "connections_refused": "Connections that did not prove that they belong to the cluster.",
    "messages_dropped": "Messages that came too late, or twice.",
    "messages_received": "Messages that have come.",
    "messages_sent": "Messages that have been sent.",
    "share_fallbacks": "Large messages that went through a socket since memory could not be shared.",
}
"""The numbers that only grow; all others are states."""
STATES = {
    "calls_outstanding": "Calls and requests that wait for an answer.",
    "calls_running": "Calls that run, or wait to.",
    "connections": "Open connections.",
    "queued_bytes": "Bytes that wait to be sent.",
    "refs_held": "References of other processes that are held.",
    "refs_owned": "Futures and channels that are kept.",
    "shared_bytes": "Bytes of shared memory in use.",
    "threads": "Threads that run calls.",
    "up": "Whether the process has told its numbers in time.",
}


def metrics(timeout: float = SECONDS) -> dict[int, dict[str, int]]:
    """What each process holds and has done: its `stats`, and whether it has answered.

    Parameters:
        timeout: seconds that processes have to answer, all in all; a worker whose Python is stuck does not.

    Returns:
        For each process its numbers: those of `stats`, and `up`, 1. One that has not answered in time has
        `up`, 0, alone.

    >>> import pydist as d
    >>> numbers = d.metrics()[1]
    >>> numbers["up"], numbers["calls_outstanding"]
    (1, 0)
    """
    from ._calls import remotecall

    _session.ensure_started()
    me, until = _core.me(), time.monotonic() + timeout
    asked: dict[int, _refs.Future | None] = {}
    for pid in _cluster.procs():
        try:
            asked[pid] = None if pid == me else remotecall(_core.stats, pid)
        except Exception:  # it has just gone, or the topology does not connect it
            continue
    found = {}
    for pid, future in asked.items():
        found[pid] = {**_core.stats(), "up": 1} if future is None else _told(future, until)
    return found


def _told(future: _refs.Future, until: float) -> dict[str, int]:
    try:
        numbers: dict[str, int] = future.fetch(max(0.0, until - time.monotonic()))
    except Exception as error:
        if isinstance(error, TimeoutError):
            future.cancel_call()
        return {"up": 0}
    # Without the call that asked.
    return {
        **numbers,
        "calls_running": max(0, numbers["calls_running"] - 1),
        "refs_owned": max(0, numbers["refs_owned"] - 1),
        "up": 1,
    }


class MetricsServer:
    """What `serve_metrics` returns; as a context manager it closes the server at the end.

    Attributes:
        address: where it listens, as a URL.
        port: its port.
    """

    def __init__(self, port: int, addr: str) -> None:
        try:
            import prometheus_client
        except ImportError as error:
            raise ImportError(
                "serve_metrics needs prometheus_client: pip install 'pydist[prometheus]'"
            ) from error
        registry = prometheus_client.CollectorRegistry()
        registry.register(_Collector())
        self._server, self._thread = prometheus_client.start_http_server(port, addr, registry)
        self.port: int = self._server.server_port
        host = f"[{addr}]" if ":" in addr else addr
        self.address = f"http://{host}:{self.port}/metrics"
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"<MetricsServer {self.address}{' (closed)' if self._closed else ''}>"

    def close(self) -> None:
        """Stops serving."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Collector:
    """Asks the processes each time when the page is fetched."""

    def describe(self) -> list[Any]:
        """Nothing, so that registering it asks nobody."""
        return []

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        numbers = metrics()
        hosts = {pid: host for pid, _, host in _core.members()}
        for texts, family in ((TOTALS, CounterMetricFamily), (STATES, GaugeMetricFamily)):
            for name, text in texts.items():
                made = family(f"pydist_{name}", text, labels=["worker", "host"])
                for pid, its in numbers.items():
                    if name in its:
                        made.add_metric([str(pid), hosts.get(pid, "")], its[name])
                yield made


def serve_metrics(port: int = 0, addr: str = "127.0.0.1") -> MetricsServer:
    """Serves `metrics` as text for Prometheus, in a thread, until it is closed or the process ends.

    It needs the extra `pydist[prometheus]`. The page has no password: whoever reaches the address reads it.

    Parameters:
        port: the port; 0 for one that is free.
        addr: the address to listen at; loopback by default.

    Returns:
        A `MetricsServer`, with `address`, `port` and `close()`.

    Raises:
        ImportError: prometheus_client is not installed.
        OSError: the address cannot be had.

    >>> import pydist as d
    >>> from urllib.request import urlopen
    >>> with d.serve_metrics() as server, urlopen(server.address) as page:
    ...     b'pydist_up{host="' in page.read()
    True
    """
    return MetricsServer(port, addr)
