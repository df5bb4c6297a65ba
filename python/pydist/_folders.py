"""Folders for sockets and secrets, which only their owner may enter."""

from __future__ import annotations

import os


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


def remove(path: str) -> None:
    """Removes a folder with the files in it, as far as that can be done."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                os.unlink(entry.path)
        os.rmdir(path)
    except OSError:
        return
