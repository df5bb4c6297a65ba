"""A peer that speaks the handshake of docs/wire-handshake.md, in as far as a test wants it to."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import socket
import struct
from types import TracebackType
from typing import Self

from pydist import _cookies, _session

MAGIC = b"\x89PYDIST"
PROOF = 32
Address = str | tuple[str, int]


def hello_bytes(pid: int = 0, cluster: bytes = bytes(16), nonce: bytes = bytes(32)) -> bytes:
    """Make an opening."""
    return MAGIC + b"\1" + struct.pack("<4H", 1, 1, 0, 1) + cluster + struct.pack("<I", pid) + nonce


def prefixed(*fields: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(field)) + field for field in fields)


class Peer:
    """One end of a connection to a listener of the cluster.

    Parameters:
        address: a path, or a host and a port.
        inst: the tag of the listener.
        cluster: the id of the cluster, where the peer claims an id.
        pid: the id that the peer claims; 0 is none.
    """

    def __init__(self, address: Address, inst: bytes, cluster: bytes = bytes(16), pid: int = 0) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(20)
        self.socket.connect(address)
        if family == socket.AF_INET:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._inst = inst
        self._hello = hello_bytes(pid, cluster, os.urandom(32))
        self._keys: dict[str, bytes] = {}
        self._transcript = b""
        self._their_fields = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes, *, bytewise: bool = False) -> None:
        """Send bytes, to one who may close at any of them."""
        with contextlib.suppress(ConnectionError):
            for part in [data[i : i + 1] for i in range(len(data))] if bytewise else [data]:
                self.socket.sendall(part)

    def read(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            part = self.socket.recv(n - len(data))
            assert part, f"the connection ended after {data!r}"
            data += part
        return data

    def end(self) -> bytes:
        """End this direction; return what still comes until the other end has closed."""
        data = b""
        with contextlib.suppress(OSError):  # ENOTCONN, where the other end has reset the connection
            self.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := self.socket.recv(1 << 16):
                data += part
        return data

    # What is sent and read in this order.

    def hello(self) -> bytes:
        return self._hello

    def read_challenge(self) -> None:
        challenge = self.read(48)
        self._transcript = hashlib.sha256(prefixed(self._hello, challenge, bytes(32), self._inst)).digest()
        salt = self._hello[36:68] + challenge[16:48]
        prk = hmac.digest(salt, _cookies.secret(_session.session.cookie), "sha256")
        for name in ("initiator proof", "acceptor proof", "initiator info"):
            self._keys[name] = hmac.digest(prk, f"pydist 1 {name}\1".encode(), "sha256")

    def proof(self) -> bytes:
        return hmac.digest(self._keys["initiator proof"], b"initiator" + self._transcript, "sha256")

    def read_proof(self) -> None:
        expected = b"acceptor" + self._transcript + self.proof()
        assert self.read(PROOF) == hmac.digest(self._keys["acceptor proof"], expected, "sha256")
        self._their_fields = self.read(*struct.unpack("<H", self.read(2)))
        self.read(PROOF)

    def info(self) -> bytes:
        """Say the same versions as the other end, and no assignment."""
        fields, at = b"", 0
        while at < len(self._their_fields):
            kind, length = self._their_fields[at : at + 2]
            end = at + 2 + length
            fields += self._their_fields[at:end] if kind in (1, 2) else b""
            at = end
        signed = struct.pack("<H", len(fields)) + fields
        return signed + hmac.digest(
            self._keys["initiator info"], b"info" + self._transcript + signed, "sha256"
        )

    def authenticate(self) -> Self:
        """Do the whole handshake."""
        self.send(self.hello())
        self.read_challenge()
        self.send(self.proof())
        self.read_proof()
        self.send(self.info())
        return self


def of_head() -> dict[str, bytes]:
    """Give what a peer must know to get an answer at the listeners of process 1."""
    session = _session.session
    return {"inst": session.inst, "cluster": session.cluster}
