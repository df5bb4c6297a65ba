"""Addresses on the network: resolving names, and which of them others can read along at."""

from __future__ import annotations

import ipaddress
import socket
import warnings

from . import _core

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


def own_addresses(port: int, host: str = "0.0.0.0") -> list[str]:
    """The addresses, as `IP:PORT`, at which others reach a listener of this machine.

    Parameters:
        host: the IP address that it listens on; for one that stands for all, that of the default route comes
            first, and then those of every other interface.
        port: the port.
    """
    if not is_wildcard(host):
        return [join(host, port)]
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: the system only chooses the interface.
            probe.connect(("192.0.2.1", 9))
            found.append(probe.getsockname()[0])
        except OSError:
            pass
    found += _core.interface_addresses()
    if host == "0.0.0.0":
        found = [ip for ip in found if ":" not in ip]
    return [join(ip, port) for ip in dict.fromkeys(found)]


def is_wildcard(ip: str) -> bool:
    """Whether an address to listen on stands for all of this machine."""
    return ipaddress.ip_address(ip).is_unspecified


def dialable(bound: str, first: str | None = None) -> str:
    """The addresses, one a line, at which others dial a listener of this process.

    Parameters:
        bound: its address as the core tells it, `SCHEME:IP:PORT`.
        first: an IP address of this machine that is to come first where it listens on all.
    """
    scheme, _, rest = bound.partition(":")
    host, port = split(rest)
    addresses = own_addresses(port, host)
    if first is not None and is_wildcard(host):
        addresses = list(dict.fromkeys([join(first, port), *addresses]))
    return "\n".join(f"{scheme}:{address}" for address in addresses)


def is_loopback(ip: str) -> bool:
    """Whether an address stays on this machine."""
    return ipaddress.ip_address(ip).is_loopback


def warn_of_plaintext(ip: str) -> None:
    """Warns, once, of an address on which others can read along."""
    global _warned
    if not is_loopback(ip) and not _warned:
        _warned = True
        warnings.warn(f"connections over {ip} are not encrypted", RuntimeWarning, stacklevel=3)
