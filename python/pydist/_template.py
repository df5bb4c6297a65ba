"""The template of local workers: a process like theirs, with all that they import, which is forked for each.

It is started as a worker would be, and runs nothing of the user's; it has one thread. Its forks are children
of process 1, as if that had started them. It ends when nobody has asked it for a worker for a while, and
with process 1. `managers._forks` is the other side.
"""

from __future__ import annotations

import _socket
import gc
import json
import os
import struct
import sys
import threading
from typing import Any

from . import _core

IDLE_SECONDS = 1.0
"""So long a template waits to be asked for a worker, and then ends."""
READY = b"ready"
FORK = b"fork"
STREAMS = 3
ANSWER = struct.Struct("=ii")
"""The process id of a worker, or 0, and the error number."""


def serve(fd: int) -> None:
    """Makes workers until nobody wants any; returns in none but a process that has run as a worker.

    Parameters:
        fd: a socket from process 1.
    """
    # What workers import; process 1, which imports this module too, has no use for it.
    from . import _worker

    connection = _socket.socket(fileno=fd)
    connection.settimeout(IDLE_SECONDS)
    gc.collect()
    gc.freeze()
    connection.send(READY)
    while True:
        streams = _next_request(connection)
        error = 0
        try:
            pid = _core.fork_sibling()
        except OSError as failure:
            pid, error = 0, failure.errno or 0
        if not pid and not error:
            connection.close()
            _worker.main(*_become_worker(streams))
            return
        for stream in streams:
            os.close(stream)
        try:
            connection.send(ANSWER.pack(pid, error))
        except OSError:
            os._exit(0)


def _next_request(connection: _socket.socket) -> list[int]:
    """Waits for a request; returns the standard streams of the worker to make."""
    size = STREAMS * struct.calcsize("i")
    try:
        data, ancillary, _, _ = connection.recvmsg(len(FORK), _socket.CMSG_SPACE(size))
    except OSError:
        os._exit(0)
    if data != FORK or len(ancillary) != 1 or len(ancillary[0][2]) != size:
        os._exit(0)
    return list(struct.unpack(f"={STREAMS}i", ancillary[0][2]))


def _become_worker(streams: list[int]) -> tuple[bytes, dict[str, Any]]:
    """Makes this fork what a new process would be; returns the cookie and the settings of the worker."""
    os.setsid()
    # Python does so for the children of multiprocessing alone.
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    lines = b""
    while lines.count(b"\n") < 2:
        data = os.read(0, 1 << 16)
        if not data:
            os._exit(1)
        lines += data
    cookie, text = lines.split(b"\n")[:2]
    config = json.loads(text)
    sys.path[:] = config["sys_path"]
    return cookie, config
