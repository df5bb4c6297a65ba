"""Which manager an argument of `addprocs` means."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

from .base import ClusterManager
from .local import LocalManager

GROUP = "pydist.cluster_managers"
"""The entry-point group under which packages register managers."""


def manager_of(what: Any) -> ClusterManager:
    """The manager for a number, a list of machines, a manager, or a manager's name.

    Raises:
        TypeError: it is none of these.
        ValueError: a negative number, a malformed machine or none, or a name that nobody registered.
    """
    if isinstance(what, ClusterManager):
        return what
    if what is None:
        return LocalManager()
    if isinstance(what, str):
        return _made(find(what), what)
    number = _number(what)
    if number is not None:
        return LocalManager(number)
    if isinstance(what, Iterable) and not isinstance(what, (bytes, bytearray)):
        from .ssh import SSHManager

        return SSHManager(what)
    raise TypeError(
        "addprocs() takes a number of workers, a list of machines or a ClusterManager, "
        f"not {type(what).__name__}"
    )


def _number(what: Any) -> int | None:
    if isinstance(what, bool):
        raise TypeError("addprocs() takes a number of workers, not bool")
    try:
        return operator.index(what)
    except TypeError:
        return None


def find(name: str) -> Callable[..., Any]:
    """What is registered under a name in the entry-point group.

    Raises:
        ValueError: nothing is.
    """
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        if entry.name == name:
            found: Callable[..., Any] = entry.load()
            return found
    names = ", ".join(sorted({entry.name for entry in entry_points(group=GROUP)})) or "none"
    raise ValueError(
        f"no cluster manager is registered as {name!r} (there are: {names}); "
        f"for a machine of this name, put it into a list: addprocs([{name!r}])"
    )


def _made(factory: Callable[..., Any], name: str, *args: Any) -> ClusterManager:
    manager = factory(*args)
    if not isinstance(manager, ClusterManager):
        raise TypeError(f"{name!r} is registered as a cluster manager, but makes a {type(manager).__name__}")
    return manager
