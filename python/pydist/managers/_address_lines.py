"""The line by which a worker that is dialled tells its address, and dialling it."""

from __future__ import annotations

import os
import re
import select
import socket
import time
from typing import Any, NamedTuple

from .. import _network, _tls
from .._errors import LaunchWorkerError
from .base import WorkerConfig

LINES_MAX = 1000
"""So many lines are looked at: a login shell may print before the worker does."""
LINE_BYTES = 4096
"""A longer line is no address, and what is beyond this is not kept."""

_LINE = re.compile(rb"pydist_worker:(\d{1,5})#([^#\s]+)#([0-9a-f]{32})(#tls)?\s*\Z")


class Address(NamedTuple):
    """What the line tells: where the worker listens, the tag of its listener, and whether it speaks TLS."""

    port: int
    host: str
    inst: bytes
    tls: bool


def format_line(port: int, host: str, inst: bytes, tls: bool = False) -> str:
    """The line that `start_worker` prints: the port, the host, the tag of the listener, and if it has TLS."""
    return f"pydist_worker:{port}#{host}#{inst.hex()}{'#tls' if tls else ''}"


def parse_line(line: bytes) -> Address | None:
    """Reads the line of `format_line`; None where it is another one."""
    found = _LINE.search(line)
    if found is None or not 0 < int(found[1]) < 1 << 16:
        return None
    host = found[2].decode("ascii", "replace")
    return Address(int(found[1]), host, bytes.fromhex(found[3].decode()), found[4] is not None)


class LineReader:
    """Reads the lines of a worker with a deadline; what follows the address line is left over.

    Parameters:
        io: a stream with a descriptor.
        until: the deadline, by the monotonic clock.
    """

    def __init__(self, io: Any, until: float) -> None:
        self.fd = io if isinstance(io, int) else io.fileno()
        self.until = until
        self.seen = bytearray()
        self._rest = bytearray()
        self._long = False

    def find(self) -> Address:
        """Finds the address line.

        Raises:
            LaunchWorkerError: it does not come.
        """
        for _ in range(LINES_MAX):
            line = self._line()
            if line is None:
                raise self._failed("the worker's output ended before its address line")
            if (address := parse_line(line)) is not None:
                return address
            self.seen += line + b"\n"
            del self.seen[:-LINE_BYTES]
        raise self._failed(f"no address line among the first {LINES_MAX} lines of the worker")

    def left_over(self) -> bytes:
        """What has been read and comes after the address line."""
        return bytes(self._rest)

    def _line(self) -> bytes | None:
        while True:
            end = self._rest.find(b"\n")
            if end >= 0:
                line = bytes(self._rest[:end])
                del self._rest[: end + 1]
                if not self._long:
                    return line
                self._long = False
                return line[:0]
            if len(self._rest) > LINE_BYTES:
                self._rest.clear()
                self._long = True
            data = self._read()
            if not data:
                self.seen += self._rest
                return None
            self._rest += data

    def _read(self) -> bytes:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        left = self.until - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            self.seen += self._rest
            raise self._failed("the worker did not tell its address in time")
        return os.read(self.fd, LINE_BYTES)

    def _failed(self, message: str) -> LaunchWorkerError:
        return LaunchWorkerError(message, output=self.seen.decode("utf-8", "replace")[-LINE_BYTES:])


class Dialled:
    """A socket to a worker, with the tag that came with its address, and what its output has left over.

    Parameters:
        socket: the connected socket.
        inst: the tag of the worker's listener.
        left_over: what the worker printed after its address line.
        tls: whether the worker speaks TLS there.
    """

    def __init__(self, socket: socket.socket, inst: bytes, left_over: bytes, tls: bool = False) -> None:
        self.socket = socket
        self.inst = inst
        self.tls = tls
        self.left_over = left_over


def connect(pid: int, config: WorkerConfig) -> Dialled:
    """What `ClusterManager.connect` does by default."""
    from .. import _launching

    until = _launching.deadline_of(pid)
    if config.io is None:
        raise LaunchWorkerError("the configuration of the worker has no io to read its address from")
    reader = LineReader(config.io, until)
    try:
        port, host, inst, tls = reader.find()
    except LaunchWorkerError as error:
        error.host = config.host
        raise
    target = config.host if config.host is not None and host in ("0.0.0.0", "::") else host
    if config.host is None:
        config.host = target
    config.port = port
    try:
        made = socket.create_connection((target, port), max(0.001, until - time.monotonic()))
    except OSError as error:
        raise LaunchWorkerError(
            f"the worker cannot be reached at {_network.join(target, port)}: {error}", host=config.host
        ) from error
    made.settimeout(None)
    try:
        check_encryption(made.getpeername()[0], tls, *_launching.encryption_of(pid))
    except BaseException:
        made.close()
        raise
    return Dialled(made, inst, reader.left_over(), tls)


def check_encryption(ip: str, tls: bool, wanted: _tls.Choice, allow_plaintext: bool) -> None:
    """Refuses a worker that speaks no TLS where that is required; one may always speak it.

    Parameters:
        ip: where it has been reached.
        tls: whether it says that it speaks TLS.
        wanted: the keyword `tls` of `addprocs`.
        allow_plaintext: the other one.

    Raises:
        LaunchWorkerError: it would have to.
    """
    if not tls and _tls.scheme(ip, wanted, allow_plaintext) == "tls":
        raise LaunchWorkerError(
            f"the worker at {ip} speaks no TLS, which is required there; start it with --tls, "
            "say tls=True where addprocs starts it, or allow_plaintext=True where the network is trusted",
            host=ip,
        )
