"""Files and modules of this process on other hosts, without a file system that they share."""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import io
import os
import secrets
import stat
import sys
import threading
import types
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from . import _calls, _core, _everywhere, _groups, _mirror, _session
from ._cluster import workers
from ._refs import Future

MAX_BYTES = 256 << 20
"""More than that is refused, unless it is asked for."""

_ALWAYS_EXCLUDED = ("__pycache__", "*.pyc", ".*")

_lock = threading.Lock()
_sources: dict[tuple[str, str], _Source] = {}


class _Source:
    """Something that has been sent, and its folder on other hosts."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self.key = _everywhere._new_key()
        self.persists = False
        self.lock = threading.Lock()


def upload(
    what: str | os.PathLike[str] | types.ModuleType,
    pids: Any = None,
    *,
    persist: bool = False,
    reload: bool = False,
    exclude: Iterable[str] = (),
    max_bytes: int = MAX_BYTES,
) -> dict[int, str]:
    """Sends a module, a file or a folder to workers, where it can be imported from then on.

    It goes once to each host, as a zip over the connection, and only what has changed since it last went.
    There it is in a folder of this user alone, first on the `sys.path` of the workers, which is removed with
    the last of them. The workers of a host share it.

    Parameters:
        what: a module, or its name; or the path of a file or folder. Of a package or a module in one, all of
            the outermost package goes, and a folder goes as a package of its name.
        pids: an id, several, or a pool; all workers by default.
        persist: send it also to each worker that is added later, before `addprocs` returns.
        reload: load modules anew that workers have loaded from files that have changed since, as
            `importlib.reload` does it.
        exclude: patterns of names or paths in a folder that stay here, such as `"*.csv"` or `"data/*"`. What
            begins with a dot, and what the interpreter has compiled, always does.
        max_bytes: refuse more than so many bytes.

    Returns:
        For each worker, the folder in which it has it.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: there is no such module.
        TypeError: `what` is none of these.
        ValueError: the module has no file; a symbolic link leads out of the folder or to another one; it has
            more than `max_bytes`; or there is no such process.
        ExceptionGroup: what failed on workers; the others have it.

    Distributed.jl: there is none; `@everywhere include(…)` needs the file on each host.

    >>> import pydist as d
    >>> with d.cluster(1) as pids:
    ...     folders = d.upload("wsgiref", pids)
    ...     d.remotecall_eval("import wsgiref as w; w.__file__", pids[0]).startswith(folders[pids[0]])
    True
    """
    if isinstance(what, types.ModuleType):
        path = _path_of(what)
    elif isinstance(what, str | os.PathLike):
        path = Path(what)
        if not path.exists():
            path = _named(os.fspath(what))
    else:
        raise TypeError(f"upload() takes a module, its name or a path, not {type(what).__name__}")
    path = path.absolute()
    files = _files_of(path, f"{path.name}/", exclude) if path.is_dir() else {path.name: path}
    return _send("upload", path, files, pids, persist, reload, max_bytes)


def sync_dir(
    path: str | os.PathLike[str],
    pids: Any = None,
    *,
    persist: bool = False,
    reload: bool = False,
    exclude: Iterable[str] = (),
    max_bytes: int = MAX_BYTES,
) -> dict[int, str]:
    """Makes workers have a copy of a folder: what has changed is sent, and what is gone here is removed.

    Files are compared by what is in them (SHA-256). The copy is first on the `sys.path` of the workers, so
    that the modules in the folder can be imported there; else it is as `upload` says, which sends a folder as
    a package.

    Parameters:
        path: the folder.
        pids: an id, several, or a pool; all workers by default.
        persist: as for `upload`.
        reload: as for `upload`.
        exclude: as for `upload`.
        max_bytes: as for `upload`.

    Returns:
        For each worker, where it has its copy.

    Raises:
        NotADirectoryError: it is no folder.
        ValueError: as for `upload`.
        ExceptionGroup: what failed on workers; the others have it.

    Distributed.jl: there is none.

    >>> import os, tempfile
    >>> import pydist as d
    >>> with tempfile.TemporaryDirectory() as folder, d.cluster(1) as pids:
    ...     with open(os.path.join(folder, "pydist_example_module.py"), "w") as file:
    ...         _ = file.write("answer = 42")
    ...     copies = d.sync_dir(folder, pids)
    ...     d.remotecall_eval("import pydist_example_module as m; m.answer", pids[0])
    42
    """
    root = Path(path).absolute()
    if not root.is_dir():
        raise NotADirectoryError(f"sync_dir() takes a folder, and there is none at {os.fspath(path)!r}")
    return _send("sync_dir", root, _files_of(root, "", exclude), pids, persist, reload, max_bytes)


def _named(name: str) -> Path:
    top = name.partition(".")[0]
    if os.sep in name or name.endswith(".py") or not name.replace(".", "_").isidentifier():
        raise FileNotFoundError(f"there is no file or folder {name!r}")
    if top in sys.modules:
        return _path_of(sys.modules[top])
    spec = importlib.util.find_spec(top)
    if spec is None:
        raise ModuleNotFoundError(f"there is neither a path nor a module {name!r}", name=name)
    return _located(top, spec.origin, spec.submodule_search_locations)


def _path_of(module: types.ModuleType) -> Path:
    top = module.__name__.partition(".")[0]
    if top == "__main__":
        raise ValueError("__main__ need not be uploaded: its functions and classes go by value")
    outermost = sys.modules.get(top, module)
    return _located(top, getattr(outermost, "__file__", None), getattr(outermost, "__path__", None))


def _located(name: str, file: str | None, folders: Iterable[str] | None) -> Path:
    places = list(folders or ())
    if len(places) > 1:
        raise ValueError(f"the package {name!r} is spread over {len(places)} folders; upload them one by one")
    found = Path(places[0] if places else file or "")
    if not (places or file) or not found.exists():
        raise ValueError(
            f"the module {name!r} has no file that could be uploaded ({file or 'it is built in'})"
        )
    return found


def _files_of(root: Path, prefix: str, exclude: Iterable[str]) -> dict[str, Path]:
    """The files in a folder, by the names that they get elsewhere."""
    patterns = (*_ALWAYS_EXCLUDED, *([exclude] if isinstance(exclude, str) else exclude))
    real = root.resolve()
    found = {}
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_excluded(Path(folder, name), root, patterns))
        for name in folders:
            if Path(folder, name).is_symlink():
                raise ValueError(f"{Path(folder, name)} is a symbolic link to a folder; {_EXCLUDE_IT}")
        for name in sorted(names):
            path = Path(folder, name)
            if _is_excluded(path, root, patterns):
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(real):
                raise ValueError(f"the symbolic link {path} leads out of the folder; {_EXCLUDE_IT}")
            if not path.is_file():
                raise ValueError(f"{path} is no file; {_EXCLUDE_IT}")
            found[prefix + path.relative_to(root).as_posix()] = path
    return found


_EXCLUDE_IT = "leave it out by exclude="


def _is_excluded(path: Path, root: Path, patterns: Iterable[str]) -> bool:
    relative = path.relative_to(root).as_posix()
    return any(
        fnmatch.fnmatchcase(path.name, pattern) or fnmatch.fnmatchcase(relative, pattern)
        for pattern in patterns
    )


def _check_size(path: Path, files: Mapping[str, Path], max_bytes: int) -> None:
    sizes = {name: file.stat().st_size for name, file in files.items()}
    total = sum(sizes.values())
    if total > max_bytes:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"{path} has {total:,} bytes in {len(files):,} files, more than max_bytes={max_bytes:,}; "
            f"the largest is {largest} with {sizes[largest]:,}"
        )


def _send(
    how: str, path: Path, files: dict[str, Path], pids: Any, persist: bool, reload: bool, max_bytes: int
) -> dict[int, str]:
    for name in files:
        _mirror.check_name(name)
    _check_size(path, files, max_bytes)
    _session.ensure_started()
    me = _core.me()
    chosen = [pid for pid in (workers() if pids is None else _groups.as_pids(pids)) if pid != me]
    with _lock:
        source = _sources.get((how, str(path))) or _sources.setdefault((how, str(path)), _Source())
    with source.lock:
        wanted = {name: _mirror.hash_of(file) for name, file in files.items()}
        archives = _Archives(files)
        if persist or source.persists:
            step = (_mirror.apply, (source.token, archives.of(wanted), wanted, reload))
            _calls.remotecall_fetch(_everywhere._keep, _everywhere.HEAD, source.key, step, None)
            source.persists = True
        first, others = _one_per_host(chosen)
        copies: dict[int, str] = {}
        errors = _give(first, source.token, wanted, archives, reload, copies)
        errors += _give(others, source.token, wanted, archives, reload, copies)
    if errors:
        raise _groups.group_of(how, errors)
    return dict(sorted(copies.items()))


class _Archives:
    """Zips of parts of some files, each made once."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self._made: dict[tuple[str, ...], bytes] = {(): b""}

    def of(self, names: Iterable[str]) -> bytes:
        """A zip with the files of these names; nothing for none."""
        key = tuple(names)
        if key not in self._made:
            written = io.BytesIO()
            with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in key:
                    self._add(archive, name)
            self._made[key] = written.getvalue()
        return self._made[key]

    def _add(self, archive: zipfile.ZipFile, name: str) -> None:
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        with self._files[name].open("rb") as file:
            info.external_attr = (stat.S_IFREG | stat.S_IMODE(os.fstat(file.fileno()).st_mode)) << 16
            archive.writestr(info, file.read())


def _one_per_host(pids: list[int]) -> tuple[list[int], list[int]]:
    """One process of each host, and the others, which find there what that one got."""
    hosts = {member[0]: member[2] for member in _core.members()}
    first = list({hosts.get(pid): pid for pid in reversed(pids)}.values())
    return first, [pid for pid in pids if pid not in first]


def _apply(token: str, parts: dict[int, bytes], wanted: dict[str, str], reload: bool, pid: int) -> Future:
    return _calls.remotecall(_mirror.apply, pid, token, parts[pid], wanted, reload)


def _give(
    pids: list[int],
    token: str,
    wanted: dict[str, str],
    archives: _Archives,
    reload: bool,
    copies: dict[int, str],
) -> list[tuple[int, Exception]]:
    """Sends to each process what it lacks; enters where it has it, and returns the errors."""
    asked = _groups.call_each(pids, lambda pid: _calls.remotecall(_mirror.missing, pid, token, wanted))
    lacking: dict[int, bytes] = {}
    errors = []
    for call in asked:
        values, failed = _groups.values_of([call])
        errors += failed
        if values:
            lacking[call[0]] = archives.of(values[0])
    while lacking:
        again: dict[int, bytes] = {}
        given = _groups.call_each(lacking, functools.partial(_apply, token, lacking, wanted, reload))
        for call in given:
            pid = call[0]
            values, failed = _groups.values_of([call])
            if values:
                copies[pid] = values[0]
            elif isinstance(failed[0][1], _mirror.MissingFilesError) and lacking[pid] is not archives.of(
                wanted
            ):
                # What was there has been removed meanwhile: all is sent.
                again[pid] = archives.of(wanted)
            else:
                errors += failed
        lacking = again
    return errors
