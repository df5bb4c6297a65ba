"""Certificates, relays and addresses for tests of TLS."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Self

import pytest

import pydist as d
from pydist import _core


def beyond_loopback() -> list[str]:
    """Give the IPv4 addresses of this machine beyond loopback."""
    found = [ip for ip in _core.interface_addresses() if ":" not in ip]
    if not found:
        pytest.skip("no address beyond loopback")
    return found


LISTENERS = (
    "[tuple(c.laddr) for c in __import__('psutil').Process().net_connections('tcp') if c.status == 'LISTEN']"
)
"""What gives the addresses on which a process listens, as seen on its own network."""


def schemes_of(pid: int, ip: str | None = None) -> set[str]:
    """Tell how the listeners of a worker are dialled: "tls" where a session can be agreed on, else "tcp".

    Parameters:
        pid: the worker.
        ip: where it is dialled, if it listens on all addresses.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    found = set()
    for host, port in d.remotecall_eval(LISTENERS, pid):
        with socket.create_connection((ip or host, port), 10) as s:
            try:
                with context.wrap_socket(s) as secured:
                    assert secured.version() == "TLSv1.3"
                found.add("tls")
            except (ssl.SSLError, ConnectionError):
                found.add("tcp")
    return found


def openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


class Authority:
    """An authority of certificates, in a folder.

    Parameters:
        folder: where its files and those of its clients are.
        name: its name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.ca, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl(
            "req", "-x509", *curve, "-keyout", self.key, "-out", self.ca, "-days", "2", "-subj", f"/CN={name}"
        )

    def files(self, name: str) -> d.TlsFiles:
        """Make the files of a process."""
        cert, key, request = (self.folder / f"{self.name}-{name}.{end}" for end in ("pem", "key", "csr"))
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        openssl("req", "-new", *curve, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        extensions = self.folder / "extensions"
        extensions.write_text("subjectAltName=DNS:any.name\n")
        openssl(
            *("x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.key, "-CAcreateserial"),
            *("-extfile", extensions, "-out", cert, "-days", "2"),
        )
        return d.TlsFiles(ca=self.ca, cert=cert, key=key)


class Relay:
    """Passes connections on to an address, and keeps what goes through.

    Parameters:
        target: where to.
        identity: where it is given, TLS ends here: the relay shows this certificate to who dials, and opens a
            session of its own to the target, as a man in the middle does.
    """

    def __init__(self, target: tuple[str, int], identity: d.TlsFiles | None = None) -> None:
        self._target, self._identity = target, identity
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.seen = bytearray()
        self._run(self._accept)

    def _run(self, f, *args) -> None:
        self._threads.append(threading.Thread(target=f, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._run(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        far = socket.create_connection(self._target)
        try:
            if self._identity is not None:
                mine = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                mine.load_cert_chain(self._identity.cert, self._identity.key)
                near = mine.wrap_socket(near, server_side=True)
                open_to_all = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                open_to_all.check_hostname = False
                open_to_all.verify_mode = ssl.CERT_NONE
                far = open_to_all.wrap_socket(far)
        finally:
            self._sockets += [near, far]
        self._run(self._copy, near, far)
        self._copy(far, near)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for s in self._sockets:
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for s in [self._listener, *self._sockets]:
            s.close()
