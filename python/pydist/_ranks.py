"""Workers that something else starts together, as tasks that are numbered: how they find process 1.

Process 1 takes ids for all of them beforehand and tells them where it is; a task takes the id at its number.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import _core, _dialin, _lines, _network, _session, _tls, _worker
from .managers.local import import_paths

PAUSE_SECONDS = 0.2
"""The pause before the addresses of process 1 are tried again."""
PROBE_SECONDS = 5.0
"""So long an address has to answer."""


class Door:
    """Where tasks reach process 1, as long as some of them are on their way.

    Parameters:
        params: the keywords of `addprocs`.
        near: whether all tasks are on this host. Then nothing listens on the network, unless the keywords say
            how it is to be used.
    """

    def __init__(self, params: dict[str, Any], near: bool = False) -> None:
        session = _session.session
        assert session is not None
        self._params = params
        self._asked = bool(params["tls"] or params["allow_plaintext"])
        self._near = near and not self._asked
        host = "127.0.0.1" if self._near else "0.0.0.0"
        self._scheme = _tls.scheme(host, params["tls"], params["allow_plaintext"])
        bound, self._listener = _core.bind_listener(f"{self._scheme}:{host}:0", session.inst, False)
        self._port = _network.split_any(bound.removeprefix(f"{self._scheme}:"))[1]
        self._open = True
        _core.open_listener(self._listener)

    def addresses(self) -> list[str]:
        """The addresses of process 1, as `SCHEME:IP:PORT`."""
        others = [] if self._near else _network.own_addresses(self._port)
        return [f"{self._scheme}:{a}" for a in dict.fromkeys([*others, f"127.0.0.1:{self._port}"])]

    def settings(self, pids: Sequence[int]) -> dict[str, Any]:
        """What tasks need to know; the cookie is not in it.

        Parameters:
            pids: their ids, in the order of their numbers.
        """
        session = _session.session
        assert session is not None
        params = self._params
        return {
            "pids": _ranges(pids),
            "host": session.host,
            "cluster": session.cluster.hex(),
            "head": session.address,
            "head_inst": session.inst.hex(),
            "addresses": self.addresses(),
            "tls": _tls.tell(params["tls"]),
            "asked": self._asked,
            "allow_plaintext": bool(params["allow_plaintext"]),
            "timeout": params["timeout"],
            "topology": params["topology"],
            "lazy": params["lazy"],
            **import_paths(params),
        }

    def close(self) -> None:
        """Lets no other task in."""
        if self._open:
            self._open = False
            _core.close_listener(self._listener)


def _ranges(pids: Sequence[int]) -> list[list[int]]:
    """Ids as pairs of a first one and how many follow each other from there."""
    found: list[list[int]] = []
    for pid in pids:
        if found and found[-1][0] + found[-1][1] == pid:
            found[-1][1] += 1
        else:
            found.append([pid, 1])
    return found


def id_at(ranges: Sequence[Sequence[int]], rank: int) -> int:
    """The id of the task with a number.

    Raises:
        ValueError: there are fewer tasks.

    >>> id_at([[2, 3], [9, 1]], 3)
    9
    """
    for first, count in ranges:
        if rank < count:
            return first + rank
        rank -= count
    raise ValueError("there are more tasks than process 1 has ids for")


def serve(cookie: str, settings: dict[str, Any], rank: int, alone: bool = False) -> int:
    """Runs a worker until it is asked to end.

    Parameters:
        cookie: the secret of the cluster, in hexadecimal digits.
        settings: what process 1 tells.
        rank: the number of this task.
        alone: whether there are tasks on no other host than that of this one.

    Returns:
        The exit status: 0 once it was asked to end, 1 where it could not join.
    """
    sys.stdout = sys.__stdout__ = _lines.install(sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _lines.install(sys.stderr)  # type: ignore[misc]
    pid = id_at(settings["pids"], rank)
    _session.start_node(
        pid,
        cookie=bytes.fromhex(cookie),
        cluster=bytes.fromhex(settings["cluster"]),
        inst=os.urandom(16),
        address="",
        host=_session.host(),
        topology=settings["topology"],
        lazy=settings["lazy"],
    )
    _dialin._leave_standard_input()
    error = _use_files(settings) or _dial(settings)
    if error is not None:
        sys.stderr.write(f"worker {pid} on {_session.host()} cannot join the cluster: {error}\n")
        sys.stderr.flush()
        _core.close()
        return 1
    _worker.run(_listen(settings, pid, alone and not settings["asked"]))
    return 0


def targets(settings: dict[str, Any]) -> list[str]:
    """Where this task tries to reach process 1, in this order: on its own host not over the network.

    Raises:
        ValueError: process 1 is on another host, and listens on loopback alone.
    """
    far = _far(settings)
    near = [address for address in settings["addresses"] if address not in far]
    if settings["host"] == _session.host():
        return [*_socket_of_head(settings), *near, *far]
    if not far:
        raise ValueError(
            f"process 1 runs on {settings['host']} and listens on loopback alone, as it has no other address "
            "or all processes were to be on its host"
        )
    return far


def _far(settings: dict[str, Any]) -> list[str]:
    """The addresses of process 1 that other hosts reach."""
    ip_of = {address: _network.split(address.partition(":")[2])[0] for address in settings["addresses"]}
    return [address for address, ip in ip_of.items() if not _network.is_loopback(ip)]


def _socket_of_head(settings: dict[str, Any]) -> list[str]:
    """The Unix socket of process 1, where this task sees it and may enter its folder."""
    path = settings["head"].removeprefix("unix:")
    try:
        return [settings["head"]] if stat.S_ISSOCK(os.stat(path).st_mode) else []
    except OSError:
        return []


def answers(settings: dict[str, Any]) -> bool:
    """Whether something listens where process 1 is said to be: what says it may be left over.

    Raises:
        ValueError: process 1 is on another host, and listens on loopback alone.
    """
    for target in targets(settings):
        kind, _, address = target.partition(":")
        try:
            if kind == "unix":
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(address)
            else:
                socket.create_connection(_network.split(address), PROBE_SECONDS).close()
        except OSError:
            continue
        return True
    return False


def remove_socket(pid: int) -> None:
    """Removes the socket on which workers of this host reached one that has left."""
    assert _session.session is not None
    try:
        os.unlink(os.path.join(_session.session.folder, str(pid)))
    except OSError:
        return


def _use_files(settings: dict[str, Any]) -> str | None:
    """Has this process use the files for TLS of process 1; returns what is wrong where it cannot."""
    try:
        _tls.use(_tls.take(settings["tls"])[1])
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _dial(settings: dict[str, Any]) -> str | None:
    """Dials process 1 until it answers; returns what is wrong where it does not."""
    until = time.monotonic() + settings["timeout"]
    try:
        addresses = "\n".join(targets(settings))
    except ValueError as error:
        return str(error)
    while True:
        failure: str | None
        try:
            _core.dial_head(addresses, bytes.fromhex(settings["head_inst"]))
            failure = _core.wait_open(max(0.1, until - time.monotonic()))
        except OSError as error:
            failure = str(error)
        if failure is None or "no address answered" not in failure:
            return failure
        if time.monotonic() + PAUSE_SECONDS > until:
            return failure
        time.sleep(PAUSE_SECONDS)


def _listen(settings: dict[str, Any], pid: int, near: bool) -> str:
    """Listens where other workers reach this one; returns the addresses, one a line.

    Parameters:
        settings: what process 1 tells.
        pid: the id of this worker.
        near: not on the network, if process 1 is on this host.
    """
    found = []
    ip = _core.own_address_to(1)
    if ip is None:
        folder = os.path.dirname(settings["head"].removeprefix("unix:"))
        found.append(_core.listen(f"unix:{os.path.join(folder, str(pid))}"))
    tls, _ = _tls.take(settings["tls"])
    host = "127.0.0.1" if ip is None else ip
    if _network.is_loopback(host) and _far(settings) and not near:
        host = "0.0.0.0"
    if ip is not None or host == "0.0.0.0":
        scheme = _tls.scheme(host, tls, settings["allow_plaintext"])
        found.append(_network.dialable(_core.listen(f"{scheme}:{_network.join(host, 0)}")))
    return "\n".join(filter(None, found))
