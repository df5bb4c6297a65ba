"""Machines as `addprocs` takes them, read and checked; nothing here looks a name up."""

from __future__ import annotations

import ipaddress
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

FORM = "[user@]host[:port] [bind_addr[:port]]"

_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+$-]*\Z")
_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?\Z")


@dataclass(frozen=True)
class Machine:
    """A machine, and how many workers it gets.

    Parameters:
        host: its name or address, without brackets.
        user: who logs in.
        port: where ssh listens.
        bind_addr: the address that its workers listen on.
        bind_port: the port that they listen on.
        count: how many workers; "auto" for the number of its CPUs.
    """

    host: str
    user: str | None = None
    port: int | None = None
    bind_addr: str | None = None
    bind_port: int | None = None
    count: int | Literal["auto"] = 1


def parse_all(machines: Iterable[Any]) -> list[Machine]:
    """Reads a list of machines.

    Raises:
        TypeError: an entry that is neither text nor a pair.
        ValueError: a malformed entry, or no entry at all.
    """
    made = [parse(machine) for machine in machines]
    if not made:
        raise ValueError("addprocs() was given an empty list of machines; addprocs(0) adds no workers")
    return made


def parse(machine: Any) -> Machine:
    """Reads `"[user@]host[:port] [bind_addr[:port]]"`, or a pair of that and a count.

    Raises:
        TypeError: it is neither text nor a pair.
        ValueError: it is malformed.

    >>> parse(("me@[::1]:2222 10.0.0.1", 3))
    Machine(host='::1', user='me', port=2222, bind_addr='10.0.0.1', bind_port=None, count=3)
    """
    count: int | Literal["auto"] = 1
    text = machine
    if isinstance(machine, (tuple, list)):
        if len(machine) != 2:
            raise ValueError(f"a machine is a text or a pair (machine, count), not {machine!r}")
        text, count = machine[0], _count(machine)
    if not isinstance(text, str):
        raise TypeError(
            f"a machine is a text or a pair (machine, count), not {type(text).__name__}: {text!r}"
        )
    parts = text.split()
    if not 1 <= len(parts) <= 2:
        raise _malformed(text, "it is empty" if not parts else "it has more than two parts")
    user, at, target = parts[0].rpartition("@")
    if at and not _USER.match(user):
        raise _malformed(text, f"{user!r} is no user")
    host, port = _host_and_port(target, text)
    bind_addr, bind_port = _host_and_port(parts[1], text) if len(parts) == 2 else (None, None)
    return Machine(host, user if at else None, port, bind_addr, bind_port, count)


def _count(machine: Any) -> int | Literal["auto"]:
    count = machine[1]
    if isinstance(count, str):
        if count in ("auto", ":auto"):
            return "auto"
        raise ValueError(f'the number of workers in {machine!r} must be an int or "auto"')
    try:
        number = None if isinstance(count, bool) else operator.index(count)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f'the number of workers in {machine!r} must be an int or "auto"')
    if number < 1:
        raise ValueError(f"the number of workers in {machine!r} must be positive")
    return number


def _host_and_port(target: str, text: str) -> tuple[str, int | None]:
    if target.startswith("["):
        host, bracket, rest = target[1:].partition("]")
        if not bracket or not _is_ipv6(host):
            raise _malformed(text, f"{target!r} is no IPv6 address in brackets")
        if rest and not rest.startswith(":"):
            raise _malformed(text, f"{rest!r} follows the bracket")
        return host, _port(rest[1:], text) if rest else None
    host, colon, port = target.partition(":")
    if ":" in port:
        raise _malformed(
            text, "an IPv6 address needs brackets" if _is_ipv6(target) else "it has too many colons"
        )
    if not _NAME.match(host) or len(host) > 253:
        raise _malformed(text, f"{host!r} is no host")
    return host, _port(port, text) if colon else None


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _port(text: str, machine: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 1 << 16:
        raise _malformed(machine, f"{text!r} is no port")
    return int(text)


def _malformed(text: str, why: str) -> ValueError:
    return ValueError(f"malformed machine {text!r}: {why}; the form is {FORM!r}")
