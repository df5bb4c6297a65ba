"""Addresses on the network: resolving names, and what may be used without encryption."""

from __future__ import annotations

import ipaddress
import socket
import warnings

HINT = (
    "what goes over it can be read and changed by others on the network; use 127.0.0.1 and a tunnel (such as "
    "ssh -L), or say allow_plaintext=True (on the command line of a worker: --allow-plaintext) where the "
    "network is trusted"
)

_warned = False


def split(text: str) -> tuple[str, int]:
    """Splits `HOST:PORT` or `[IPV6]:PORT`.

    Raises:
        ValueError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
        raise ValueError(f"an address must be HOST:PORT or [IPV6]:PORT, not {text!r}")
    return host, int(port)


def split_any(text: str) -> tuple[str, int]:
    """Splits `HOST[:PORT]`; the port may be 0, and is where it is left out.

    Raises:
        ValueError: it is something else.
    """
    host, colon, port = text.rpartition(":")
    if is_address(text.strip("[]")) or not colon:
        return text.strip("[]"), 0
    if not host or not (port.isascii() and port.isdigit()) or int(port) >= 1 << 16:
        raise ValueError(f"an address must be HOST or HOST:PORT, not {text!r}")
    return host.strip("[]"), int(port)


def is_address(text: str) -> bool:
    """Whether a text is an IP address, not a name."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def join(host: str, port: int) -> str:
    """Joins what `split` splits."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host as `IP:PORT`.

    Raises:
        OSError: the name is not known.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(join(str(entry[4][0]).partition("%")[0], int(entry[4][1])) for entry in found))


def own_addresses(port: int) -> list[str]:
    """The addresses of this machine that can be told: that of its default route, and those of its name."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: the system only chooses the interface.
            probe.connect(("192.0.2.1", 9))
            found.append(join(probe.getsockname()[0], port))
        except OSError:
            pass
    try:
        found += resolve(socket.gethostname(), port)
    except OSError:
        pass
    return found


def is_loopback(ip: str) -> bool:
    """Whether an address stays on this machine."""
    return ipaddress.ip_address(ip).is_loopback


def check_plaintext(ip: str, allowed: bool) -> None:
    """Refuses an address on which others could read along.

    Raises:
        ValueError: it is not on loopback, and plain text is not allowed.
    """
    global _warned
    if is_loopback(ip):
        return
    if not allowed:
        raise ValueError(f"{ip} is not on loopback, and the connection is not encrypted: {HINT}")
    if not _warned:
        _warned = True
        warnings.warn(f"connections over {ip} are not encrypted", RuntimeWarning, stacklevel=3)
