"""The line by which a worker that is dialled tells its address, and dialling it."""

from __future__ import annotations

import os
import re
import select
import socket
import time
from typing import Any

from .. import _network
from .._errors import LaunchWorkerError
from .base import WorkerConfig

LINES_MAX = 1000
"""So many lines are looked at: a login shell may print before the worker does."""
LINE_BYTES = 4096
"""A longer line is no address, and what is beyond this is not kept."""

_LINE = re.compile(rb"pydist_worker:(\d{1,5})#([^#\s]+)#([0-9a-f]{32})\s*\Z")


def format_line(port: int, host: str, inst: bytes) -> str:
    """The line that `start_worker` prints: the port, the host, and the tag of the listener."""
    return f"pydist_worker:{port}#{host}#{inst.hex()}"


def parse_line(line: bytes) -> tuple[int, str, bytes] | None:
    """Reads the line of `format_line`; None where it is another one."""
    found = _LINE.search(line)
    if found is None or not 0 < int(found[1]) < 1 << 16:
        return None
    return int(found[1]), found[2].decode("ascii", "replace"), bytes.fromhex(found[3].decode())


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

    def find(self) -> tuple[int, str, bytes]:
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
    """

    def __init__(self, socket: socket.socket, inst: bytes, left_over: bytes) -> None:
        self.socket = socket
        self.inst = inst
        self.left_over = left_over


def connect(pid: int, config: WorkerConfig) -> Dialled:
    """What `ClusterManager.connect` does by default."""
    from .. import _launching

    until = _launching.deadline_of(pid)
    if config.io is None:
        raise LaunchWorkerError("the configuration of the worker has no io to read its address from")
    reader = LineReader(config.io, until)
    try:
        port, host, inst = reader.find()
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
        _network.check_plaintext(made.getpeername()[0], _launching.plaintext_allowed(pid))
    except ValueError:
        made.close()
        raise
    return Dialled(made, inst, reader.left_over())
