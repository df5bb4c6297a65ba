"""The folder of a host into which other processes put files, and which goes with the workers there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

FOLDER = "files"
"""The part of a host's folder that has the files."""
PIPE = "users"
"""A named pipe that every worker which uses the folder holds open; it is removed when none does."""
GOING = "going"
"""It is there while the folder is about to be removed, unless somebody turns out to have come just before."""
LOCK = "lock"

_REMOVER = (
    "trap '' HUP INT TERM; exec 3<&0; "
    "( while :; do while read -r _ <&3; do :; done; "
    f'[ "$1/{PIPE}" -ef /proc/self/fd/3 ] || exit; '
    f'mkdir -- "$1/{GOING}"; read -r _ <&3 || break; rmdir -- "$1/{GOING}"; done; '
    'rm -rf -- "$1.old"; mv -- "$1" "$1.old" && rm -rf -- "$1.old" ) '
    "</dev/null >/dev/null 2>&1 &"
)
"""What a shell leaves behind: it waits until nobody has the pipe open to write, and removes the folder,
unless that is another one by now.

Who comes opens the pipe, writes a line to it, and then looks whether the folder is going. Either he sees that
it is, or the remover, which looks for lines and writers again once it has said so, sees that he is there.
"""

TRIES = 3
GOES_WITHIN = 10.0
"""Seconds in which a folder that is going has gone."""

_TOKEN = re.compile(r"[0-9a-f]{32}\Z")
_used: dict[str, int] = {}
_lock = threading.Lock()


class MissingFilesError(ValueError):
    """Files are neither here nor in the archive that was sent."""


class _Gone(Exception):
    """The folder is no longer the one that was opened."""


def check_name(name: str) -> None:
    """Refuses a name that leads out of the folder.

    Raises:
        ValueError: it is absolute, or has `..` in it, or is no plain path.

    >>> check_name("package/module.py")
    """
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name!r} is no path within a folder")


def hash_of(path: Path) -> str:
    """The SHA-256 of a file, and whether it can be executed."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{digest}{'x' if os.fstat(file.fileno()).st_mode & stat.S_IXUSR else ''}"


def folder_of(token: str) -> Path:
    """Where the folder with this token is on this host, whether it is there or not."""
    if not _TOKEN.match(token):
        raise ValueError(f"{token!r} names no folder of files")
    return Path(tempfile.gettempdir()) / f"pydist-files-{token}"


def missing(token: str, wanted: Mapping[str, str]) -> list[str]:
    """Which of these files this host does not have, by their hashes; what it has stays from now on."""
    for name in wanted:
        check_name(name)
    return _missing(_open(token) / FOLDER, wanted)


def _missing(files: Path, wanted: Mapping[str, str]) -> list[str]:
    return [name for name, digest in wanted.items() if _hash_if_there(files, name) != digest]


def _hash_if_there(files: Path, name: str) -> str | None:
    try:
        return hash_of(files / name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def apply(token: str, archive: bytes, wanted: Mapping[str, str], reload: bool) -> str:
    """Makes the folder of this host have just these files, and puts it on `sys.path` of this process.

    Parameters:
        token: names the folder.
        archive: a zip with the files that are missing here.
        wanted: the hashes of all files, by their names.
        reload: whether modules that are loaded from files that have changed are loaded anew.

    Returns:
        The folder.

    Raises:
        ValueError: a name leads out of the folder, or is that of a link.
        MissingFilesError: a file is neither here nor in the archive.
        OSError: a file cannot be written.
    """
    for name in wanted:
        check_name(name)
    folder, lacking = _fill(token, archive, wanted)
    if lacking:
        raise MissingFilesError(
            f"{len(lacking)} files have not arrived as they were announced, {lacking[0]!r} among them; "
            "have they been changed meanwhile?"
        )
    files = folder / FOLDER
    _import_from(str(files))
    if reload:
        _reload(str(files), wanted)
    else:
        _remember(str(files), wanted)
    return str(files)


def _fill(token: str, archive: bytes, wanted: Mapping[str, str]) -> tuple[Path, list[str]]:
    """Writes what is in the archive; returns the folder, and what is lacking there even so.

    It begins anew where somebody else, such as what tidies up temporary files, has removed the folder.
    """
    for left in reversed(range(TRIES)):
        folder = _open(token)
        files = folder / FOLDER
        try:
            with _locked(folder):
                _unpack(archive, files, wanted)
                _remove_others(files, wanted)
                lacking = _missing(files, wanted)
        except OSError:
            if _is_used(token, folder) or not left:
                raise
        else:
            if _is_used(token, folder) or not left:
                return folder, lacking
    raise AssertionError("the last try ends otherwise")


def _is_at(fd: int, path: Path) -> bool:
    """Whether an open file is the one that has this path."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _is_used(token: str, folder: Path) -> bool:
    """Whether the folder is still the one that this process has stay."""
    return token in _used and _is_at(_used[token], folder / PIPE)


def _open(token: str) -> Path:
    """Makes the folder where it is not there, and has it stay as long as this process does."""
    folder = folder_of(token)
    until = time.monotonic() + GOES_WITHIN
    with _lock:
        if _is_used(token, folder):
            return folder
        stale = _used.pop(token, None)
        if stale is not None:
            os.close(stale)
        while True:
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                pass
            try:
                _check_owner(folder)
                _used[token] = _hold(folder, until)
                return folder
            except (_Gone, FileNotFoundError):
                if time.monotonic() >= until:
                    raise FileNotFoundError(f"{folder} is removed again and again") from None
            time.sleep(0.002)


def _check_owner(folder: Path) -> None:
    status = folder.lstat()
    if (
        not stat.S_ISDIR(status.st_mode)
        or status.st_uid != os.getuid()
        or stat.S_IMODE(status.st_mode) & 0o077
    ):
        raise PermissionError(f"{folder} is not a folder of this user alone")


def _hold(folder: Path, until: float) -> int:
    """Opens the pipe of the folder for as long as this process runs; makes it first where it is not there.

    Raises:
        _Gone: the folder has been removed meanwhile, or is no longer the one that was there.
        FileNotFoundError: likewise.
        TimeoutError: it is going, and has not gone at the deadline.
    """
    pipe = folder / PIPE
    with _locked(folder) as lock:
        held = _join(pipe)
        if held is None:
            # Who has the lock of a folder that nobody removes is the only one to make its pipe.
            if not _is_at(lock, folder / LOCK):
                raise _Gone
            held = _make(folder, pipe)
        try:
            while _is_at(held, pipe) and (folder / GOING).exists():
                if time.monotonic() >= until:
                    raise TimeoutError(f"{folder} is about to be removed, and still there")
                time.sleep(0.002)
            if not _is_at(held, pipe):
                raise _Gone
        except BaseException:
            os.close(held)
            raise
    return held


def _join(pipe: Path) -> int | None:
    """Opens the pipe, and says so at its other end; None where nobody is there to remove the folder."""
    try:
        held = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return None
        raise
    try:
        os.write(held, b"\n")
    except BlockingIOError:
        # It is full of the lines of others, which do as well.
        pass
    except BrokenPipeError:
        os.close(held)
        return None
    except BaseException:
        os.close(held)
        raise
    return held


def _make(folder: Path, pipe: Path) -> int:
    """Makes the pipe, and what removes the folder, in place of any that has been killed; opens the pipe."""
    (folder / FOLDER).mkdir(mode=0o700, exist_ok=True)
    pipe.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        (folder / GOING).rmdir()
    os.mkfifo(pipe, 0o600)
    # A pipe that is open to read opens to write at once.
    end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        held = os.open(pipe, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.set_blocking(end, True)
            _leave_remover(folder, end)
        except BaseException:
            pipe.unlink(missing_ok=True)
            os.close(held)
            raise
    finally:
        os.close(end)
    return held


def _leave_remover(folder: Path, end: int) -> None:
    """Starts what removes the folder; in a session of its own, it outlives whatever ends the workers."""
    subprocess.run(
        ["/bin/sh", "-c", _REMOVER, "sh", str(folder)],
        stdin=end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
        check=True,
    )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _unpack(archive: bytes, files: Path, wanted: Mapping[str, str]) -> None:
    """Writes the files of an archive, each at once: who imports meanwhile sees the old or the new one."""
    if not archive:
        return
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for info in opened.infolist():
            check_name(info.filename)
            mode = info.external_attr >> 16
            if not stat.S_ISREG(mode) or info.filename not in wanted:
                raise ValueError(
                    f"the archive has {info.filename!r} in it, which is no file that was announced"
                )
            target = files / info.filename
            _make_parents(files, PurePosixPath(info.filename))
            if target.is_dir():
                shutil.rmtree(target)
            part = target.with_name(f".{os.urandom(8).hex()}.part")
            _forget_compiled(target)
            part.write_bytes(opened.read(info))
            part.chmod(0o700 if mode & stat.S_IXUSR else 0o600)
            os.replace(part, target)


def _forget_compiled(source: Path) -> None:
    """Removes what the interpreter has compiled of a file, which it knows by size and second alone."""
    if source.suffix == ".py":
        Path(importlib.util.cache_from_source(str(source))).unlink(missing_ok=True)


def _make_parents(files: Path, name: PurePosixPath) -> None:
    for parent in reversed([files / parent for parent in name.parents]):
        if parent.is_file():
            parent.unlink()
        parent.mkdir(mode=0o700, exist_ok=True)


def _remove_others(files: Path, wanted: Mapping[str, str]) -> None:
    """Removes what is not wanted, and folders that are empty then, but nothing that has been compiled."""
    for root, _, names in os.walk(files, topdown=False):
        if os.path.basename(root) == "__pycache__":
            continue
        for name in names:
            path = Path(root, name)
            if path.relative_to(files).as_posix() not in wanted:
                path.unlink()
        if Path(root) != files and set(os.listdir(root)) <= {"__pycache__"}:
            shutil.rmtree(root)


_seen: dict[str, dict[str, str]] = {}
"""The hashes that the files of a folder had when they were last put on `sys.path` here."""


def _import_from(files: str) -> None:
    if files not in sys.path:
        sys.path.insert(0, files)
    importlib.invalidate_caches()


def _remember(files: str, wanted: Mapping[str, str]) -> None:
    """Takes note of what modules that are imported from now on are made of."""
    known = _seen.setdefault(files, {})
    loaded = {os.path.relpath(path, files) for path in _loaded(files)}
    known.update({name: digest for name, digest in wanted.items() if name not in loaded or name not in known})


def _loaded(files: str) -> dict[str, str]:
    """The modules that are loaded from a folder, by their files."""
    found = {}
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and path.startswith(files + os.sep):
            found[path] = name
    return found


def _reload(files: str, wanted: Mapping[str, str]) -> None:
    """Loads modules anew whose files have changed since they were loaded."""
    known = _seen.setdefault(files, {})
    # A module is entered once it is loaded, after those that it imports.
    for path, name in _loaded(files).items():
        relative = Path(path).relative_to(files).as_posix()
        if relative in wanted and known.get(relative) not in (None, wanted[relative]):
            importlib.reload(sys.modules[name])
    known.update(wanted)
