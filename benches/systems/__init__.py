"""pydist and its peers behind one interface, one class for each way to run functions in other processes."""

from benches.systems.base import System
from benches.systems.dask import Dask
from benches.systems.executors import Loky, MpiPool, ProcessPool
from benches.systems.ipyparallel import IPyParallel
from benches.systems.joblib import Joblib
from benches.systems.ours import Pydist
from benches.systems.pools import ForkPool, SpawnPool
from benches.systems.ray import RayActors, RayTasks

SYSTEMS: tuple[type[System], ...] = (
    Pydist,
    SpawnPool,
    ForkPool,
    ProcessPool,
    Loky,
    Joblib,
    Dask,
    RayTasks,
    RayActors,
    MpiPool,
    IPyParallel,
)
PEERS = tuple(system for system in SYSTEMS if system is not Pydist and system is not ForkPool)
"""Those of most rows: how a pool started its workers matters only where that is what is measured."""

__all__ = [
    "PEERS",
    "SYSTEMS",
    "Dask",
    "ForkPool",
    "IPyParallel",
    "Joblib",
    "Loky",
    "MpiPool",
    "ProcessPool",
    "Pydist",
    "RayActors",
    "RayTasks",
    "SpawnPool",
    "System",
]
