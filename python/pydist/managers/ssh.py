"""Workers on other machines, which ssh starts."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from .. import _launching, _network, _session, _tls
from .._errors import LaunchWorkerError
from . import _address_lines, _machines, _ssh_command
from ._machines import Machine
from ._ssh_command import Login
from ._ssh_session import RemoteProcess, Session
from ._ssh_tunnels import Tunnels
from .base import ClusterManager, Launched, WorkerConfig

SSH_PARAMS = {
    "ssh": "ssh",
    "sshflags": (),
    "tunnel": False,
    "multiplex": False,
    "max_parallel": 10,
    "shell": "posix",
    "cmdline_cookie": False,
}
"""The keywords that `addprocs` takes for machines, besides those for every manager."""

FIRST_ADDRESS_SECONDS = 5.0
"""So long the address that a worker tells may take to answer, where there is another one to try."""


_numbers = itertools.count(1)


@dataclass
class _Host:
    """What there is for one host: its ssh session, and the tunnels to it."""

    session: Session
    login: Login
    limit: threading.Semaphore
    tunnels: Tunnels | None
    may_dial_name: bool


class SSHManager(ClusterManager):
    """Starts workers on other machines through ssh; `addprocs` of a list of machines uses it.

    One ssh session for each host starts its workers and carries what they print; they end with it. The cookie
    goes over its standard input. Nobody can be asked for a password: keys or an agent are needed.

    `addprocs` takes these keywords besides those for every manager:

    - `ssh`: the program; `sshflags`: its flags, a list or a text that is split as a shell does it.
    - `tunnel`: have all traffic go through ssh; workers then listen on loopback of their host. With
      `multiplex` the tunnels of a host share the connection of its session; else each has one of its own.
    - `max_parallel`: how many connections to one host are made at once.
    - `shell`: the kind of the login shell there, "posix" or "csh".
    - `exename`: the Python executable there; by default the path of that of process 1. `~/` is the home
      folder, as it is in `dir`.
    - `dir`: the working directory there; by default that of process 1 where it exists, else the home folder.
    - `env`: variables for the workers. They go over standard input, apart from those that Python needs for
      its start (PATH, PYTHON…, LD_…), which are on the command line there.
    - `cmdline_cookie`: for compatibility; the cookie goes over standard input in any case.

    Parameters:
        machines: `"[user@]host[:port] [bind_addr[:port]]"`, or pairs of that and a number of workers, "auto"
            for the number of the host's CPUs. Workers of one machine with a bind port listen on that port and
            those that follow it.

    Raises:
        TypeError: an entry that is neither text nor a pair.
        ValueError: a malformed machine, or none.

    Distributed.jl: `SSHManager`.

    >>> import pydist as d
    >>> d.SSHManager(["me@node1:2222", ("node2 10.0.0.2", 4)])
    SSHManager(['me@node1:2222', 'node2'])
    """

    _keeps_time: ClassVar[bool] = True
    _shares_config: ClassVar[bool] = False

    def __init__(self, machines: Iterable[Any]) -> None:
        if isinstance(machines, (str, bytes)):
            raise TypeError(f"SSHManager() takes a list of machines, not {type(machines).__name__}")
        self._machines = _machines.parse_all(machines)

    def __repr__(self) -> str:
        names = [
            (f"{m.user}@" if m.user else "")
            + (f"[{m.host}]" if ":" in m.host else m.host)
            + (f":{m.port}" if m.port else "")
            for m in self._machines
        ]
        return f"{type(self).__name__}({names!r})"

    def default_params(self) -> dict[str, Any]:
        """The keywords of every manager, and those for ssh."""
        return {**super().default_params(), **SSH_PARAMS}

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Starts the workers of all hosts at once."""
        until = time.monotonic() + params["timeout"]
        _check(params)
        refused: list[BaseException] = []
        threads = []
        for machines in self._by_host():
            job = _guarded(self._launch_host, refused, machines, params, launched, until)
            threads.append(threading.Thread(target=job, name="pydist-ssh", daemon=True))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if refused:
            raise refused[0]

    def _by_host(self) -> list[list[Machine]]:
        """The machines, those that one ssh session can serve together."""
        groups: dict[tuple[Any, ...], list[Machine]] = {}
        for machine in self._machines:
            groups.setdefault((machine.user, machine.host, machine.port), []).append(machine)
        return list(groups.values())

    def _launch_host(
        self, machines: list[Machine], params: dict[str, Any], launched: Launched, until: float
    ) -> None:
        first = machines[0]
        try:
            host = _open(machines, params)
            workers = host.session.await_workers(until, params["timeout"], lambda: launched.given_up)
        except LaunchWorkerError as error:
            for _ in range(sum(1 if m.count == "auto" else m.count for m in machines)):
                launched.failed(error)
            return
        try:
            for worker in workers:
                launched(_config_of(worker, first, params, host))
        except BaseException:
            host.session.close(0.0)
            raise

    def connect(self, pid: int, config: WorkerConfig) -> Any:
        """Dials the worker at the address that it tells over ssh, or through a tunnel."""
        process: RemoteProcess = config.process
        host: _Host = config.userdata
        until = _launching.deadline_of(pid)
        process.follow(pid)
        if not process.session.wait(lambda: process.address is not None or process.has_ended(), until):
            raise LaunchWorkerError("the worker did not tell its address in time", host=config.host)
        if process.address is None:
            raise LaunchWorkerError("the worker ended before it told its address", host=config.host)
        port, address, inst, tls = process.address
        config.port = port
        with host.limit:
            if host.tunnels is not None:
                made = host.tunnels.connect(pid, address, port, until)
            else:
                names = [address, host.login.host] if host.may_dial_name else [address]
                made = _dial(names, port, until)
                _check_encryption(made, tls, pid)
        return _address_lines.Dialled(made, inst, b"", tls)

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Lets go of what is kept for a worker once it has left."""
        if op != "finalize":
            return
        host: _Host = config.userdata
        if host.tunnels is not None:
            host.tunnels.close(pid)
        host.session.leave()

    def terminate(self, pid: int, config: WorkerConfig) -> None:
        """Has SIGTERM sent to the worker."""
        config.process.send_signal(signal.SIGTERM)

    def kill(self, pid: int, config: WorkerConfig) -> None:
        """Has SIGKILL sent to the worker."""
        config.process.kill()

    def has_ended(self, pid: int, config: WorkerConfig) -> bool:
        """Whether the other host, or the end of the ssh session, has told of its end."""
        return bool(config.process.has_ended())


def _guarded(job: Callable[..., None], failures: list[BaseException], *args: Any) -> Callable[[], None]:
    def run() -> None:
        try:
            job(*args)
        except BaseException as error:
            failures.append(error)

    return run


def _check(params: dict[str, Any]) -> None:
    """Makes the keywords for ssh what the rest expects.

    Raises:
        TypeError: one has the wrong type.
        ValueError: one makes no sense.
    """
    params["ssh"] = os.fspath(params["ssh"])
    params["sshflags"] = _ssh_command.flags(params["sshflags"])
    if params["shell"] not in _ssh_command.SHELLS:
        raise ValueError(f"shell must be 'posix' or 'csh', not {params['shell']!r}")
    limit = params["max_parallel"]
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"max_parallel must be an int, not {type(limit).__name__}")
    if limit < 1:
        raise ValueError(f"max_parallel must be positive, not {limit}")
    _ssh_command.check_environment(params["env"])


def _open(machines: list[Machine], params: dict[str, Any]) -> _Host:
    """Starts the ssh session of a host."""
    assert _session.session is not None
    first = machines[0]
    login = Login(params["ssh"], tuple(params["sshflags"]), first.host, first.user, first.port)
    exename = params["exename"] or sys.executable
    command = _ssh_command.remote_command(exename, params["dir"], params["env"], params["shell"])
    name = str(next(_numbers))
    master = None
    if params["tunnel"] and params["multiplex"]:
        master = os.path.join(_session.session.folder, f"m{name}")
    hello = f"{_session.session.cookie_text()}\n{json.dumps(_settings(machines, params))}\n".encode()
    session = Session(first.host, exename, login.session(command, master), hello, master)
    tunnels = Tunnels(login, master) if params["tunnel"] else None
    limit = threading.Semaphore(params["max_parallel"])
    return _Host(session, login, limit, tunnels, all(m.bind_addr is None for m in machines))


def _settings(machines: list[Machine], params: dict[str, Any]) -> dict[str, Any]:
    """What the other host is told."""
    prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix)
    try:
        here = os.getcwd()
    except FileNotFoundError:
        here = ""
    paths = [path for path in (str(p) or here for p in sys.path) if path and not path.startswith(prefixes)]
    return {
        "groups": [(m.bind_addr, m.bind_port, m.count) for m in machines],
        "tunnel": bool(params["tunnel"]),
        "try_dir": here if params["dir"] is None else "",
        "env": {n: v for n, v in params["env"].items() if not _ssh_command.is_for_the_start(n)},
        "exeflags": params["exeflags"],
        "enable_threaded_blas": bool(params["enable_threaded_blas"]),
        "more_path": paths,
        "worker": {
            "tls": _tls.tell(params["tls"]),
            "allow_plaintext": bool(params["allow_plaintext"]),
            "timeout": params["timeout"],
        },
    }


def _config_of(worker: RemoteProcess, machine: Machine, params: dict[str, Any], host: _Host) -> WorkerConfig:
    return WorkerConfig(
        process=worker,
        host=machine.host,
        bind_addr=machine.bind_addr,
        count=machine.count,
        exename=params["exename"],
        exeflags=params["exeflags"],
        tunnel=bool(params["tunnel"]),
        multiplex=bool(params["multiplex"]),
        sshflags=params["sshflags"],
        max_parallel=params["max_parallel"],
        environ=params["env"],
        enable_threaded_blas=params["enable_threaded_blas"],
        userdata=host,
    )


def _check_encryption(made: socket.socket, tls: bool, pid: int) -> None:
    """Closes a connection that has to be encrypted, and is not.

    Raises:
        LaunchWorkerError: it is such a one.
    """
    ip = made.getpeername()[0].partition("%")[0]
    try:
        _address_lines.check_encryption(ip, tls, *_launching.encryption_of(pid))
    except BaseException:
        made.close()
        raise


def _dial(hosts: list[str], port: int, until: float) -> socket.socket:
    """Connects to the first of several addresses that answers.

    Raises:
        LaunchWorkerError: none does.
    """
    failures = []
    for number, host in enumerate(dict.fromkeys(hosts), 1):
        left = max(0.001, until - time.monotonic())
        if number < len(hosts):
            left = min(left / 2, FIRST_ADDRESS_SECONDS)
        try:
            target = _network.split(_network.resolve(host, port)[0])
            made = socket.create_connection(target, left)
        except OSError as error:
            failures.append(f"{_network.join(host, port)}: {error}")
            continue
        made.settimeout(None)
        return made
    raise LaunchWorkerError(
        f"the worker cannot be reached; tried {', '.join(failures)}. Its host has to be reachable at that "
        "address; a machine 'HOST BIND_ADDR' names another one, and tunnel=True goes through ssh"
    )
