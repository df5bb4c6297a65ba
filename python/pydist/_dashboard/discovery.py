"""Which dashboards of this user run on this machine: a file for each, in a folder of the user alone."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from typing import Any

from . import sampler


def folder() -> str:
    """The folder, which is made where it is not there.

    Raises:
        OSError: there is something of that name which is no folder of this user alone.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isdir(runtime):
        path = os.path.join(runtime, "pydist-dashboards")
    else:
        path = os.path.join(tempfile.gettempdir(), f"pydist-dashboards-{os.getuid()}")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is no folder of this user alone: remove it")
    return path


class Entry:
    """The file of one dashboard."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._ospid = os.getpid()

    def remove(self) -> None:
        """The dashboard has ended; a forked child leaves the file to its parent."""
        if self._path and os.getpid() == self._ospid:
            try:
                os.unlink(self._path)
            except OSError:
                pass
        self._path = ""


def announce(url: str) -> Entry:
    """Makes the dashboard of this process known to `pydist top` of the same user."""
    told = {"ospid": os.getpid(), "url": url, "program": sampler.program(), "since": time.time()}
    try:
        path = os.path.join(folder(), f"{os.getpid()}.json")
        part = f"{path}.{os.urandom(4).hex()}"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(told, file)
        os.rename(part, path)
    except OSError:
        # It can still be reached by its address.
        return Entry("")
    return Entry(path)


def running() -> list[dict[str, Any]]:
    """The dashboards that run, the oldest first; files that a killed process has left are removed.

    Returns:
        For each its `url`, the `ospid` of its process, the `program`, and `since` when it runs, in seconds.
    """
    found = []
    place = folder()
    for name in os.listdir(place):
        path = os.path.join(place, name)
        if not name.endswith(".json"):
            continue
        try:
            with open(path) as file:
                told = json.load(file)
            ospid = int(told["ospid"])
            os.kill(ospid, 0)
        except ProcessLookupError:
            os.unlink(path)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        else:
            found.append(told)
    return sorted(found, key=lambda told: float(told["since"]))
