"""The cookie of a cluster as text, and the ways in which it comes to a worker."""

from __future__ import annotations

import os
import stat
import sys

COOKIE_MIN = 16
"""The fewest bytes of a cookie: from a recorded handshake shorter ones could be guessed."""
VARIABLE = "PYDIST_COOKIE"
_TEXT_MAX = 4096


def check(cookie: bytes | str) -> bytes:
    """The bytes of a cookie that a user gives.

    Raises:
        TypeError: it is neither bytes nor text.
        ValueError: it is too short.
    """
    if isinstance(cookie, str):
        cookie = cookie.encode()
    if not isinstance(cookie, (bytes, bytearray)):
        raise TypeError(f"a cookie must be bytes or str, not {type(cookie).__name__}")
    if len(secret(bytes(cookie))) < COOKIE_MIN:
        raise ValueError(f"a cookie needs at least {COOKIE_MIN} bytes, this one has {len(cookie)}")
    return bytes(cookie)


def secret(cookie: bytes) -> bytes:
    """What both ends prove to know: hexadecimal digits are the same as the bytes that they stand for."""
    if len(cookie) >= 2 * COOKIE_MIN and len(cookie) % 2 == 0:
        try:
            return bytes.fromhex(cookie.decode("ascii"))
        except ValueError:
            return cookie
    return cookie


def text(cookie: bytes) -> str:
    """The cookie as hexadecimal digits."""
    return secret(cookie).hex()


def join_tag(cookie: bytes) -> bytes:
    """The tag of connections whose ends know nothing of each other but the cookie."""
    import hmac

    return hmac.digest(secret(cookie), b"pydist 1 join tag", "sha256")[:16]


def read_file(path: str) -> bytes:
    """Reads a cookie from a file that its owner alone can read.

    Raises:
        PermissionError: it belongs to another user, or others may read it.
        OSError: it cannot be read.
        ValueError: it holds no cookie.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid != os.getuid():
            raise PermissionError(f"the cookie file {path} belongs to another user")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(f"others may read the cookie file {path}; run: chmod 600 {path}")
        data = os.read(fd, _TEXT_MAX)
    finally:
        os.close(fd)
    return check(data.strip())


def take_from_environment() -> bytes | None:
    """The cookie in the environment, which is removed from it; None where there is none.

    Raises:
        ValueError: it is too short.
    """
    value = os.environ.pop(VARIABLE, None)
    return None if value is None else check(value.strip())


def read_line(fd: int = 0) -> bytes:
    """Reads a cookie from the first line of standard input, and nothing beyond it.

    Raises:
        ValueError: the input ends, or the line is no cookie.
    """
    line = bytearray()
    while len(line) < _TEXT_MAX:
        byte = os.read(fd, 1)
        if not byte or byte == b"\n":
            break
        line += byte
    if not line:
        raise ValueError("no cookie came on standard input")
    return check(bytes(line).strip())


def find(path: str | None) -> bytes:
    """The cookie from a file, else from the environment, else from standard input."""
    from_environment = take_from_environment()
    if path is not None:
        return read_file(path)
    if from_environment is not None:
        return from_environment
    if sys.stdin is not None and sys.stdin.isatty():
        raise ValueError(
            f"no cookie: give --cookie-file, set {VARIABLE}, or write it to standard input as one line"
        )
    return read_line()
