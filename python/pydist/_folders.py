"""Folders for sockets and secrets, which only their owner may enter."""

from __future__ import annotations

import fcntl
import itertools
import os
import stat

OWNED = "pydist-run-"
"""How the names of folders begin whose owner has them locked."""
SWEPT_MAX = 4096
"""So many entries are looked through for folders whose owner is gone."""


def temporary() -> list[str]:
    """Where temporary files may go, the best place first."""
    wanted = (os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP"))
    return [*(os.path.abspath(path) for path in wanted if path), "/tmp"]


def make(parent: str, prefix: str) -> str:
    """Makes a folder of a name that nobody can foresee; returns its path.

    Raises:
        OSError: it cannot be made there.
    """
    while True:
        path = os.path.join(parent, prefix + os.urandom(8).hex())
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(parent):
                raise
            continue
        return path


def make_owned(parent: str) -> tuple[str, int]:
    """Makes a folder that is locked as long as its owner lives, which this process is.

    Returns:
        Its path, and the descriptor that has the lock, -1 where the file system has none for folders.

    Raises:
        OSError: it cannot be made there.
    """
    while True:
        path = make(parent, OWNED)
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # another process is removing it: it was not locked yet
            os.close(fd)
            continue
        except OSError:
            os.close(fd)
            return path, -1
        if _is_at(path, fd):
            return path, fd
        os.close(fd)


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def unlock(fd: int) -> None:
    """Lets go of the lock of a folder."""
    if fd >= 0:
        os.close(fd)


def sweep(parent: str) -> None:
    """Removes the folders of owners that were killed, and had nobody to remove them."""
    try:
        with os.scandir(parent) as entries:
            found = [e.path for e in itertools.islice(entries, SWEPT_MAX) if e.name.startswith(OWNED)]
    except OSError:
        return
    for path in found:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(fd)
            if status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == 0o700:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, fd):
                    remove(path)
        except OSError:  # its owner lives, or nobody can tell
            continue
        finally:
            os.close(fd)


def remove(path: str) -> None:
    """Removes a folder with the files in it, as far as that can be done."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                os.unlink(entry.path)
        os.rmdir(path)
    except OSError:
        return
