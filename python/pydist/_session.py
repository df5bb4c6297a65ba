"""This process's part in a cluster: process 1 unless it was started as a worker."""

from __future__ import annotations

import atexit
import operator
import os
import sys
import threading
from collections import deque
from typing import Any

from . import _config, _cookies, _core, _folders, _log

_lock = threading.Lock()
_started = False
_forked = False
_leaving = False
trace: Any = None
"""The trace that process 1 records."""
failed: deque[int] | None = None
"""While one is recorded, the numbers of calls of this process to itself that have raised."""


FOLDER_MAX = 68
"""The longest folder, in bytes, whose sockets' paths fit into an address of the system (108 bytes)."""


def _socket_folder() -> tuple[str, int]:
    """Makes a folder that only its owner may enter, where the paths of sockets are not too long.

    Returns:
        Its path, and the descriptor that keeps it locked.

    Raises:
        OSError: there is no such place; the message names those that were tried.
    """
    tried = []
    for parent in dict.fromkeys((*_folders.temporary(), os.environ.get("XDG_RUNTIME_DIR", ""), "/var/tmp")):
        if not parent or len(os.fsencode(parent)) > FOLDER_MAX:
            continue
        try:
            made = _folders.make_owned(parent)
        except OSError as error:
            tried.append(str(error))
            continue
        _folders.sweep(parent)
        return made
    raise OSError(
        f"no folder for the sockets of the cluster can be made: {'; '.join(tried) or 'paths too long'}"
    )


class Session:
    """What process 1 keeps for its cluster."""

    def __init__(self) -> None:
        self.cookie = os.urandom(32)
        self.cluster = os.urandom(16)
        self.inst = os.urandom(16)
        self.folder, self._lock = _socket_folder()
        self.address = f"unix:{os.path.join(self.folder, '1')}"
        self.host = host()
        self._cookie_file = ""

    def set_cookie(self, cookie: bytes) -> None:
        """Changes the secret of a cluster that has no workers."""
        self.cookie = cookie
        _core.set_cookie(_cookies.secret(cookie))
        self.remove_cookie_file()

    def cookie_text(self) -> str:
        """The cookie in the form in which workers get it."""
        return _cookies.text(self.cookie)

    def join_tag(self) -> bytes:
        """The tag of connections whose ends know nothing of each other but the cookie."""
        return _cookies.join_tag(self.cookie)

    def cookie_file(self) -> str:
        """The path of a file with the cookie, which its owner alone can read; it is removed at the end."""
        if not self._cookie_file:
            path = os.path.join(self.folder, "cookie")
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, self.cookie_text().encode() + b"\n")
            os.close(fd)
            self._cookie_file = path
        return self._cookie_file

    def remove_cookie_file(self) -> None:
        """Removes what `cookie_file` made."""
        if self._cookie_file:
            try:
                os.unlink(self._cookie_file)
            except FileNotFoundError:  # somebody else has removed it
                pass
            self._cookie_file = ""

    def unlock(self) -> None:
        """Lets go of the lock of the folder, which is to last no longer than its owner, in a forked child."""
        _folders.unlock(self._lock)
        self._lock = -1

    def close(self) -> None:
        """Removes the folder."""
        _folders.remove(self.folder)
        self.unlock()


session: Session | None = None


def host() -> str:
    """The name of this machine."""
    return os.uname().nodename


def start_node(
    pid: int,
    *,
    cookie: bytes,
    cluster: bytes,
    inst: bytes,
    address: str,
    host: str,
    topology: str = "all_to_all",
    lazy: bool = True,
    transport_inst: bytes = bytes(16),
) -> None:
    """Starts the core of this process, and its listener where it has an address."""
    global _started
    heartbeat = _config.heartbeat()
    _log.start()
    _core.start(
        pid,
        ospid=os.getpid(),
        cookie=cookie,
        cluster=cluster,
        inst=inst,
        address=address,
        host=host,
        python=sys.version_info[:3],
        package=_core.__version__,
        allow_python_mismatch=_config.allow_python_mismatch(),
        topology=topology,
        lazy=lazy,
        message_max=_config.message_max(),
        shared_max=_config.shared_max(),
        transport_inst=transport_inst,
    )
    _core.set_heartbeat(*heartbeat)
    if address:
        _core.listen(address)
    os.register_at_fork(after_in_child=_after_fork)
    _started = True


def start_unnamed(cookie: bytes) -> bytes:
    """Starts the core of a worker that knows the cookie alone, and is given the rest by process 1.

    Returns:
        The tag of the listeners that it may open.
    """
    inst = os.urandom(16)
    start_node(
        0,
        cookie=_cookies.secret(cookie),
        cluster=bytes(16),
        inst=inst,
        address="",
        host=host(),
        transport_inst=_cookies.join_tag(cookie),
    )
    return inst


def ensure_started() -> None:
    """Makes this process the first of a cluster, unless it belongs to one."""
    global session
    if _started:
        refuse_in_forked_child()
        return
    with _lock:
        if _started:
            return
        from . import _executor

        new = Session()
        try:
            start_node(
                1,
                cookie=new.cookie,
                cluster=new.cluster,
                inst=new.inst,
                address=new.address,
                host=new.host,
            )
        except BaseException:
            new.close()
            raise
        session = new
        atexit.register(_at_exit)
        _executor.start(leads=False)
    if (port := _config.dashboard()) is not None:
        from . import _dashboard

        _dashboard.announced(port)


def refuse_in_forked_child() -> None:
    """Fails in a forked child of a process of the cluster.

    Raises:
        RuntimeError: this is one.
    """
    if _forked:
        raise RuntimeError(
            "pydist cannot be used in a forked child process: the connections belong to its parent; "
            "start a new interpreter instead"
        )


def is_forked() -> bool:
    """Whether this is a forked child of a process of the cluster."""
    return _forked


def is_head() -> bool:
    """Whether this process is process 1."""
    refuse_in_forked_child()
    return not _started or session is not None


def as_pid(pid: Any) -> int:
    """A process id as an int.

    Raises:
        TypeError: it is no integer.
        ValueError: there can be no such process.
    """
    if isinstance(pid, bool):
        raise TypeError("a process id must be an int, not bool")
    try:
        number = operator.index(pid)
    except TypeError:
        raise TypeError(f"a process id must be an int, not {type(pid).__name__}") from None
    if not 0 < number < 1 << 32:
        raise ValueError(f"there is no process {number} in this cluster")
    return number


def _after_fork() -> None:
    global _forked
    _forked = True
    if session is not None:
        session.unlock()
    _core.after_fork_in_child()


def is_leaving() -> bool:
    """Whether this process, the first of a cluster, ends."""
    return _leaving


def stay_at_exit() -> None:
    """Keeps threads but the main one from telling, while the process ends, that all workers have gone."""
    while _leaving and threading.current_thread() is not threading.main_thread():
        threading.Event().wait(3600)


def _at_exit() -> None:
    global _leaving
    if _forked:
        return
    _leaving = True
    from . import _cluster
    from .managers import _forks

    _core.park_other_threads()
    try:
        _cluster.shut_down()
    finally:
        _forks.end()
        _core.close()
        _log.stop()
        if session is not None:
            session.close()
