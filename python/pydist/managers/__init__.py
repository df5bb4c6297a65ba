"""Cluster managers: what starts workers, and connects to them."""

from __future__ import annotations

from .base import ClusterManager, WorkerConfig
from .local import LocalManager

__all__ = ["ClusterManager", "LocalManager", "WorkerConfig"]
