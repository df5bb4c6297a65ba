"""Tunnels of ssh from process 1 to workers: each is a Unix socket in the cluster's folder."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time

from .. import _session
from .._errors import LaunchWorkerError
from ._ssh_command import Login

LOOK_SECONDS = 0.01
SAID_MAX = 4096


class Tunnels:
    """The tunnels to one host.

    A local port could be taken, or dialled by other users of this machine; a socket in a folder that only
    this user may enter can not.

    Parameters:
        login: how ssh comes to the host.
        master: the socket of the session that carries them; None where each has a connection of its own.
    """

    def __init__(self, login: Login, master: str | None) -> None:
        self._login = login
        self._master = master
        self._lock = threading.Lock()
        self._open: dict[int, tuple[str, subprocess.Popen[bytes] | None]] = {}

    def connect(self, pid: int, host: str, port: int, until: float) -> socket.socket:
        """Opens a tunnel to an address of the other host, and connects through it.

        Parameters:
            pid: the worker, whose end is that of the tunnel.
            host: the address there.
            port: the port there.
            until: the deadline, by the monotonic clock.

        Raises:
            LaunchWorkerError: it cannot be opened.
        """
        assert _session.session is not None
        path = os.path.join(_session.session.folder, f"t{pid}")
        if self._master is None:
            self._own(pid, path, host, port, until)
        else:
            self._shared(pid, path, host, port, until)
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.connect(path)
        except OSError as error:
            end.close()
            raise LaunchWorkerError(f"the tunnel cannot be used: {error}", host=self._login.host) from error
        return end

    def _shared(self, pid: int, path: str, host: str, port: int, until: float) -> None:
        assert self._master is not None
        with self._lock:
            self._open[pid] = path, None
        try:
            done = subprocess.run(
                self._login.shared_tunnel(self._master, path, host, port),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=max(0.001, until - time.monotonic()),
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise self._failed("ssh did not open a tunnel in time", None, b"") from None
        if done.returncode != 0:
            raise self._failed("ssh could not open a tunnel", done.returncode, done.stdout)

    def _own(self, pid: int, path: str, host: str, port: int, until: float) -> None:
        process = subprocess.Popen(
            self._login.tunnel(path, host, port),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert process.stderr is not None
        os.set_blocking(process.stderr.fileno(), False)
        with self._lock:
            self._open[pid] = path, process
        while not os.path.exists(path):
            if (status := process.poll()) is not None:
                said = process.stderr.read(SAID_MAX) or b""
                raise self._failed("ssh could not open a tunnel", status, said)
            if time.monotonic() > until:
                said = process.stderr.read(SAID_MAX) or b""
                raise self._failed("ssh did not open a tunnel in time", None, said)
            time.sleep(LOOK_SECONDS)

    def _failed(self, message: str, status: int | None, said: bytes) -> LaunchWorkerError:
        output = said[-SAID_MAX:].decode("utf-8", "replace")
        return LaunchWorkerError(message, host=self._login.host, status=status, output=output)

    def close(self, pid: int) -> None:
        """Closes the tunnel to a worker."""
        with self._lock:
            path, process = self._open.pop(pid, ("", None))
        if not path:
            return
        try:
            os.unlink(path)
        except FileNotFoundError:
            # ssh has removed it, or never made it.
            pass
        if process is None:
            return
        for pipe in (process.stdin, process.stderr):
            if pipe is not None:
                pipe.close()
        process.terminate()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
