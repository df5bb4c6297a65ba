"""Julia's Distributed for Python: calls, futures and maps over many processes, on a Rust core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._abstract_channel import AbstractChannel
from ._abstract_pool import AbstractWorkerPool
from ._calls import remote, remote_do, remotecall, remotecall_fetch, remotecall_wait
from ._channels import RRID, Channel, RemoteChannel, channel_from_id, remoteref_id
from ._cluster import (
    addprocs,
    check_same_host,
    cluster,
    cluster_cookie,
    interrupt,
    myid,
    nprocs,
    nworkers,
    procs,
    rmprocs,
    stats,
    workers,
)
from ._core import __version__ as __version__
from ._distributed import distributed
from ._errors import (
    AuthenticationError,
    CancelledError,
    ChannelClosedError,
    ConnectionLostError,
    FrameTooLargeError,
    FutureAlreadySetError,
    LaunchWorkerError,
    NotConnectedError,
    NoWorkersError,
    ProcessExitedException,
    RemoteException,
    ThreadLimitError,
    VersionMismatchError,
)
from ._everywhere import everywhere
from ._heartbeat import set_heartbeat
from ._ipython import load_ipython_extension as load_ipython_extension
from ._ipython import unload_ipython_extension as unload_ipython_extension
from ._macros import fetchfrom, remotecall_eval, spawn, spawnat
from ._pmap import pgenerate, pmap
from ._pools import CachingPool, WorkerPool, default_worker_pool, set_default_worker_pool
from ._refs import Future, as_completed, fetch, wait
from ._retries import ExponentialBackOff
from ._serialize import register_by_value, unregister_by_value
from ._stacks import stacks
from ._streams import RandomStreams, random_streams
from ._sync import sync
from ._transport import init_worker, process_messages, start_worker, worker_id_from_socket
from .executor import Executor
from .managers.base import ClusterManager, WorkerConfig
from .managers.elastic import ElasticManager
from .managers.local import LocalManager
from .managers.slurm import SlurmManager
from .managers.ssh import SSHManager

if TYPE_CHECKING:
    from ._doctor import doctor
    from ._upload import sync_dir, upload
    from .managers.dask import DaskManager
    from .managers.ray import RayManager

_LAZY = {
    "DaskManager": ".managers.dask",
    "RayManager": ".managers.ray",
    "doctor": "._doctor",
    "sync_dir": "._upload",
    "upload": "._upload",
}
"""What few programs use, and where it is: it is imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_LAZY[name], __name__), name)
    return value


__all__ = [
    "RRID",
    "AbstractChannel",
    "AbstractWorkerPool",
    "AuthenticationError",
    "CachingPool",
    "CancelledError",
    "Channel",
    "ChannelClosedError",
    "ClusterManager",
    "ConnectionLostError",
    "DaskManager",
    "ElasticManager",
    "Executor",
    "ExponentialBackOff",
    "FrameTooLargeError",
    "Future",
    "FutureAlreadySetError",
    "LaunchWorkerError",
    "LocalManager",
    "NoWorkersError",
    "NotConnectedError",
    "ProcessExitedException",
    "RandomStreams",
    "RayManager",
    "RemoteChannel",
    "RemoteException",
    "SSHManager",
    "SlurmManager",
    "ThreadLimitError",
    "VersionMismatchError",
    "WorkerConfig",
    "WorkerPool",
    "addprocs",
    "as_completed",
    "channel_from_id",
    "check_same_host",
    "cluster",
    "cluster_cookie",
    "default_worker_pool",
    "distributed",
    "doctor",
    "everywhere",
    "fetch",
    "fetchfrom",
    "init_worker",
    "interrupt",
    "myid",
    "nprocs",
    "nworkers",
    "pgenerate",
    "pmap",
    "process_messages",
    "procs",
    "random_streams",
    "register_by_value",
    "remote",
    "remote_do",
    "remotecall",
    "remotecall_eval",
    "remotecall_fetch",
    "remotecall_wait",
    "remoteref_id",
    "rmprocs",
    "set_default_worker_pool",
    "set_heartbeat",
    "spawn",
    "spawnat",
    "stacks",
    "start_worker",
    "stats",
    "sync",
    "sync_dir",
    "unregister_by_value",
    "upload",
    "wait",
    "worker_id_from_socket",
    "workers",
]
