"""Which connections are encrypted, and with whose key."""

from __future__ import annotations

import os
from typing import Any

from . import _core, _network


class TlsFiles:
    """A certificate of one's own for connections with TLS, in place of a key that each process makes.

    Every process of the cluster needs such files. Workers that process 1 starts, on whatever machine, read
    them at the same absolute paths there; those that dial in are told theirs. What `ca` signs is believed,
    whatever name it is for. The cookie is needed all the same.

    Parameters:
        ca: a PEM file with the certificates of the authority that the other end's certificate must be of.
        cert: a PEM file with the certificate of this process, for use as server and client, and those between
            it and the authority.
        key: a PEM file with its private key, not encrypted.

    >>> import pydist as d
    >>> d.TlsFiles(ca="ca.pem", cert="worker.pem", key="worker.key").cert
    'worker.pem'
    """

    __slots__ = ("ca", "cert", "key")

    def __init__(
        self, *, ca: str | os.PathLike[str], cert: str | os.PathLike[str], key: str | os.PathLike[str]
    ) -> None:
        self.ca = ca
        self.cert = cert
        self.key = key

    def __repr__(self) -> str:
        return f"TlsFiles(ca={self.ca!r}, cert={self.cert!r}, key={self.key!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TlsFiles) and self.paths() == other.paths()

    def __hash__(self) -> int:
        return hash(self.paths())

    def paths(self) -> tuple[str, str, str]:
        """The absolute paths of `ca`, `cert` and `key`."""
        return os.path.abspath(self.ca), os.path.abspath(self.cert), os.path.abspath(self.key)

    def words(self) -> list[str]:
        """The same as arguments of `python -m pydist worker`."""
        ca, cert, key = self.paths()
        return ["--tls-ca", ca, "--tls-cert", cert, "--tls-key", key]


Choice = bool | TlsFiles | None
"""None: TLS beyond loopback; True: on loopback too; files: so, with these."""

_used: TlsFiles | None = None


def check(tls: Any, allow_plaintext: bool) -> Choice:
    """Checks the keyword `tls` beside `allow_plaintext`.

    Raises:
        TypeError: it is nothing that `tls` can be.
        ValueError: both are asked for, or TLS is to be switched off by this keyword.
    """
    if tls is False:
        raise ValueError("tls=False is not taken; plain text beyond loopback is allow_plaintext=True")
    if tls is not None and tls is not True and not isinstance(tls, TlsFiles):
        raise TypeError(f"tls must be True, TlsFiles or None, not {type(tls).__name__}")
    if tls and allow_plaintext:
        raise ValueError("tls and allow_plaintext exclude each other")
    return tls


def use(tls: Choice) -> None:
    """Has this process use the files of the user from now on, if there are any; its core has been started.

    Raises:
        OSError: a file cannot be read.
        ValueError: what is in it cannot be used, or TLS is in use with another key.
    """
    global _used
    if isinstance(tls, TlsFiles):
        _core.use_tls_files(*tls.paths())
        _used = tls


def used() -> TlsFiles | None:
    """The files that this process uses."""
    return _used


def tell(tls: Choice) -> dict[str, Any]:
    """What a worker on any machine has to know to choose as this process does, for JSON.

    Parameters:
        tls: the choice for this worker. Files that this process uses are told in any case, as its peers may
            use them; the paths hold on every machine.
    """
    files = tls if isinstance(tls, TlsFiles) else _used
    return {"always": bool(tls), "files": None if files is None else files.paths()}


def take(told: dict[str, Any]) -> tuple[Choice, TlsFiles | None]:
    """Reads what `tell` told: the choice, and the files to use."""
    files = None
    if told["files"] is not None:
        files = TlsFiles(**dict(zip(("ca", "cert", "key"), told["files"], strict=True)))
    return (files or True) if told["always"] else None, files


def scheme(ip: str, tls: Choice, allow_plaintext: bool) -> str:
    """How connections at an address are made: "tls" or "tcp".

    Beyond loopback plain text is used only where it is allowed by name, with one warning.
    """
    if tls or not (allow_plaintext or _network.is_loopback(ip)):
        return "tls"
    _network.warn_of_plaintext(ip)
    return "tcp"
