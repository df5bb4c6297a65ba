"""Julia's Distributed for Python: calls, futures and maps over many processes, on a Rust core.

Each name is imported when it is first used, so that a program pays for what it uses alone.
"""

TYPE_CHECKING = False  # not from typing, whose import takes longer than that of all that is here
if TYPE_CHECKING:
    from ._abstract_channel import AbstractChannel
    from ._abstract_pool import AbstractWorkerPool
    from ._block import cluster
    from ._calls import remote, remote_do, remotecall, remotecall_fetch, remotecall_wait
    from ._channels import RRID, Channel, RemoteChannel, channel_from_id, remoteref_id
    from ._cluster import (
        addprocs,
        check_same_host,
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
    from ._dashboard import dashboard, top
    from ._distributed import distributed
    from ._doctor import doctor
    from ._errors import (
        AuthenticationError,
        CallLimitError,
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
    from ._metrics import metrics, serve_metrics
    from ._pmap import pgenerate, pmap
    from ._pools import CachingPool, WorkerPool, default_worker_pool, set_default_worker_pool
    from ._refs import Future, as_completed, fetch, wait
    from ._retries import ExponentialBackOff
    from ._serialize import register_by_value, unregister_by_value
    from ._stacks import stacks
    from ._streams import RandomStreams, random_streams
    from ._sync import sync
    from ._tls import TlsFiles
    from ._trace import trace
    from ._transport import init_worker, process_messages, start_worker, worker_id_from_socket
    from ._upload import sync_dir, upload
    from .executor import Executor
    from .managers.base import ClusterManager, WorkerConfig
    from .managers.dask import DaskManager
    from .managers.elastic import ElasticManager
    from .managers.local import LocalManager
    from .managers.ray import RayManager
    from .managers.slurm import SlurmManager
    from .managers.ssh import SSHManager

__all__ = [
    "RRID",
    "AbstractChannel",
    "AbstractWorkerPool",
    "AuthenticationError",
    "CachingPool",
    "CallLimitError",
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
    "TlsFiles",
    "VersionMismatchError",
    "WorkerConfig",
    "WorkerPool",
    "addprocs",
    "as_completed",
    "channel_from_id",
    "check_same_host",
    "cluster",
    "cluster_cookie",
    "dashboard",
    "default_worker_pool",
    "distributed",
    "doctor",
    "everywhere",
    "fetch",
    "fetchfrom",
    "init_worker",
    "interrupt",
    "metrics",
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
    "serve_metrics",
    "set_default_worker_pool",
    "set_heartbeat",
    "spawn",
    "spawnat",
    "stacks",
    "start_worker",
    "stats",
    "sync",
    "sync_dir",
    "top",
    "trace",
    "unregister_by_value",
    "upload",
    "wait",
    "worker_id_from_socket",
    "workers",
]

_HOMES = {
    "_abstract_channel": "AbstractChannel",
    "_abstract_pool": "AbstractWorkerPool",
    "_block": "cluster",
    "_calls": "remote remote_do remotecall remotecall_fetch remotecall_wait",
    "_channels": "RRID Channel RemoteChannel channel_from_id remoteref_id",
    "_cluster": (
        "addprocs check_same_host cluster_cookie interrupt myid nprocs nworkers procs rmprocs stats workers"
    ),
    "_core": "__version__",
    "_dashboard": "dashboard top",
    "_distributed": "distributed",
    "_doctor": "doctor",
    "_errors": (
        "AuthenticationError CallLimitError CancelledError ChannelClosedError ConnectionLostError "
        "FrameTooLargeError FutureAlreadySetError LaunchWorkerError NotConnectedError "
        "NoWorkersError ProcessExitedException RemoteException ThreadLimitError "
        "VersionMismatchError"
    ),
    "_everywhere": "everywhere",
    "_heartbeat": "set_heartbeat",
    "_ipython": "load_ipython_extension unload_ipython_extension",
    "_macros": "fetchfrom remotecall_eval spawn spawnat",
    "_metrics": "metrics serve_metrics",
    "_pmap": "pgenerate pmap",
    "_pools": "CachingPool WorkerPool default_worker_pool set_default_worker_pool",
    "_refs": "Future as_completed fetch wait",
    "_retries": "ExponentialBackOff",
    "_serialize": "register_by_value unregister_by_value",
    "_stacks": "stacks",
    "_streams": "RandomStreams random_streams",
    "_sync": "sync",
    "_tls": "TlsFiles",
    "_trace": "trace",
    "_transport": "init_worker process_messages start_worker worker_id_from_socket",
    "_upload": "sync_dir upload",
    "executor": "Executor",
    "managers.base": "ClusterManager WorkerConfig",
    "managers.dask": "DaskManager",
    "managers.elastic": "ElasticManager",
    "managers.local": "LocalManager",
    "managers.ray": "RayManager",
    "managers.slurm": "SlurmManager",
    "managers.ssh": "SSHManager",
}
"""The names of each module, as above."""
_SUBMODULES = ("executor", "managers")
_home_of = {name: home for home, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # else a checker would take any name for one that is here

    def __getattr__(name):
        from importlib import import_module

        if name in _SUBMODULES:
            return import_module(f"{__name__}.{name}")
        home = _home_of.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_home_of, *_SUBMODULES})
