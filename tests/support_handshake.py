"""The handshake of one who dials, written from docs/wire-handshake.md, as far as a test wants it to go."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
import sys
from typing import Self

import pydist as d

MAGIC = b"\x89PYDIST"
HELLO_LEN, CHALLENGE_LEN, PROOF_LEN = 68, 48, 32


def hello(claimed: int = 0, cluster: bytes = bytes(16)) -> bytes:
    """Make an opening; by default that of a process that wants an id."""
    versions_flags_role = struct.pack("<HHHH", 1, 1, 0, 1)
    return MAGIC + b"\1" + versions_flags_role + cluster + struct.pack("<I", claimed) + os.urandom(32)


def expand(key: bytes, info: bytes) -> bytes:
    """Expand a key to 32 bytes, as HKDF with SHA-256 does."""
    return hmac.digest(key, info + b"\1", "sha256")


class Peer:
    """A connection whose other end is to be a listener.

    Parameters:
        address: family and address.
        cookie: what it believes the cookie to be.
        inst: the tag of the listener, as far as it knows.
    """

    def __init__(self, address: tuple[int, object], cookie: bytes, inst: bytes = bytes(16)) -> None:
        self.cookie, self.inst = cookie, inst
        self.socket = socket.socket(address[0], socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(address[1])
        self.hello = b""
        self.transcript = b""
        self.key = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def receive(self, count: int) -> bytes:
        """Receive so many bytes, or what comes before the end."""
        got = b""
        while len(got) < count:
            try:
                part = self.socket.recv(count - len(got))
            except ConnectionError:
                break
            if not part:
                break
            got += part
        return got

    def challenge(self, opening: bytes | None = None) -> bytes:
        """Open, and receive the challenge."""
        self.hello = hello() if opening is None else opening
        self.socket.sendall(self.hello)
        challenge = self.receive(CHALLENGE_LEN)
        parts = (self.hello, challenge, bytes(32), self.inst)
        transcript = b"".join(struct.pack("<I", len(part)) + part for part in parts)
        self.transcript = hashlib.sha256(transcript).digest()
        self.key = hmac.digest(self.hello[-32:] + challenge[-32:], self.cookie, "sha256")
        return challenge

    def proof(self) -> bytes:
        """Make the proof that the challenge asks for."""
        key = expand(self.key, b"pydist 1 initiator proof")
        return hmac.digest(key, b"initiator" + self.transcript, "sha256")

    def info(self) -> bytes:
        """Make the last message."""
        package = d.__version__.encode()
        fields = bytes((1, 3, *sys.version_info[:3], 2, len(package))) + package
        signed = struct.pack("<H", len(fields)) + fields
        key = expand(self.key, b"pydist 1 initiator info")
        return signed + hmac.digest(key, b"info" + self.transcript + signed, "sha256")

    def join(self) -> bytes:
        """Go through the whole handshake; return the proof of the other end, nothing where it was refused."""
        self.challenge()
        self.socket.sendall(self.proof())
        answer = self.receive(PROOF_LEN)
        if len(answer) == PROOF_LEN:
            self.receive(struct.unpack("<H", self.receive(2))[0] + 32)
            self.socket.sendall(self.info())
        return answer
