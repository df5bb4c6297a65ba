"""Connections that Python makes: sockets that the core takes over, and byte streams that are pumped to it."""

from __future__ import annotations

import io
import os
import pickle
import socket
import sys
import threading
from typing import Any

from . import _cookies, _core, _interrupts, _log, _network, _output, _session, _tls
from .managers import _address_lines
from .managers.base import ClusterManager, WorkerConfig

_PUMP_BYTES = 1 << 18

_manager: ClusterManager | None = None
_cookie = b""
_pumped: dict[int, socket.socket] = {}
_taken: list[socket.socket] = []
_lock = threading.Lock()


def attach_worker(pid: int, connection: Any, config: WorkerConfig) -> None:
    """Hands the connection to a new worker to the core.

    Parameters:
        pid: the id that the worker is given.
        connection: what `ClusterManager.connect` returned.
        config: what the manager tells of the worker.
    """
    assert _session.session is not None
    inst, secured = _session.session.join_tag(), False
    if isinstance(connection, _address_lines.Dialled):
        inst, secured = connection.inst, connection.tls
        if config.io is not None:
            fd = config.io if isinstance(config.io, int) else config.io.fileno()
            _output.follow(pid, os.dup(fd), _output.stdout, connection.left_over)
        connection = connection.socket
    _core.attach_worker(_descriptor(connection), pid, inst, secured)
    _keep(connection)


def _descriptor(connection: Any) -> int:
    """A descriptor for the core: of a socket, or of one whose other end is pumped to two byte streams."""
    if isinstance(connection, socket.socket):
        return os.dup(connection.fileno())
    try:
        read, write = connection
    except TypeError:
        raise TypeError(
            "connect() must return a connected socket, a pair of byte streams or None, "
            f"not {type(connection).__name__}"
        ) from None
    if read is write and isinstance(read, socket.socket):
        return os.dup(read.fileno())
    ours, theirs = socket.socketpair()
    for stream in (read, write):
        _pumped[id(stream)] = theirs.dup()
    _Pump(ours, read, write)
    return theirs.detach()


def _keep(connection: Any) -> None:
    """Keeps a socket that the core has a duplicate of, so that it can be told whose it is."""
    close_taken()
    if isinstance(connection, socket.socket):
        with _lock:
            _taken.append(connection)


def close_taken() -> None:
    """Closes the sockets whose connections have ended."""
    with _lock:
        for old in list(_taken):
            if old.fileno() < 0 or _core.peer_of_socket(old.fileno()) is None:
                old.close()
                _taken.remove(old)


class _Pump:
    """Copies between a socket and two byte streams until one of them ends, on two threads."""

    def __init__(self, end: socket.socket, read: Any, write: Any) -> None:
        self._end = end
        self._read = read
        self._write = write
        self._lock = threading.Lock()
        self._running = 2
        for copy in (self._copy_in, self._copy_out):
            threading.Thread(target=copy, name="pydist-pump", daemon=True).start()

    def _copy_in(self) -> None:
        try:
            while data := _read_some(self._read):
                self._end.sendall(data)
        except (OSError, ValueError):
            pass
        self._finish(self._read)

    def _copy_out(self) -> None:
        try:
            while data := self._end.recv(_PUMP_BYTES):
                _write_all(self._write, data)
        except (OSError, ValueError):
            pass
        self._finish(self._write)

    def _finish(self, stream: Any) -> None:
        """One direction has ended, so the other does; each closes the stream that it has used."""
        _shut(self._end)
        with self._lock:
            self._running -= 1
            last = self._running == 0
        if last:
            self._end.close()
            for used in (self._read, self._write):
                if (duplicate := _pumped.pop(id(used), None)) is not None:
                    duplicate.close()
        try:
            if isinstance(stream, socket.socket):
                _shut(stream)
                if last:
                    stream.close()
            else:
                stream.close()
        except (OSError, ValueError):
            return


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _read_some(read: Any) -> bytes:
    if isinstance(read, socket.socket):
        return read.recv(_PUMP_BYTES)
    if hasattr(read, "read1"):
        return bytes(read.read1(_PUMP_BYTES))
    if hasattr(read, "fileno"):
        try:
            return os.read(read.fileno(), _PUMP_BYTES)
        except (OSError, ValueError):
            return b""
    return bytes(read.read(1))


def _write_all(write: Any, data: bytes) -> None:
    if isinstance(write, socket.socket):
        write.sendall(data)
        return
    view = memoryview(data)
    while view:
        written = write.write(view)
        view = view[len(view) if written is None else written :]
    write.flush()


def init_worker(cookie: bytes | str, manager: ClusterManager | None = None) -> None:
    """Makes this process a worker that is connected by a transport of its manager's own.

    Parameters:
        cookie: the secret of the cluster, `cluster_cookie()` of process 1.
        manager: by its `connect` this worker reaches other workers.

    Raises:
        RuntimeError: this process belongs to a cluster already.
        ValueError: the cookie has less than 16 bytes.

    Distributed.jl: `init_worker`.
    """
    global _manager, _cookie
    if _session._started:
        raise RuntimeError("this process belongs to a cluster already")
    _cookie = _cookies.check(cookie)
    _manager = manager
    _session.start_unnamed(_cookie)
    if manager is not None:
        _core.use_transport()
    if threading.current_thread() is threading.main_thread():
        _interrupts.install_handler()


def process_messages(read: Any, write: Any = None) -> None:
    """Serves a connection in the background, and returns at once.

    The first connection is that of process 1. The worker ends with it.

    Parameters:
        read: the byte stream from which the other end is read, or a connected socket.
        write: the byte stream to which is written; for a socket it may be left out.

    Raises:
        RuntimeError: `init_worker` has not been called.

    Distributed.jl: `process_messages`.
    """
    if not _cookie:
        raise RuntimeError("call init_worker() before process_messages()")
    fd = _descriptor((read, read if write is None else write))
    _core.attach_incoming(fd, _cookies.join_tag(_cookie))
    _keep(read)
    if _core.me() == 0:
        threading.Thread(target=_join, name="pydist-join", daemon=True).start()


def _join() -> None:
    from . import _config, _worker

    error = _core.wait_open(_config.worker_timeout())
    if error is not None:
        sys.stderr.write(f"this worker cannot join the cluster: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    _worker.serve_in_background("")


def connect_worker(pid: int, fd: int) -> None:
    """Connects the core's socket to a worker by the manager of this one; on a thread of its own."""
    threading.Thread(target=_connect_worker, args=(pid, fd), name="pydist-connect", daemon=True).start()


def _connect_worker(pid: int, fd: int) -> None:
    end = socket.socket(fileno=fd)
    try:
        config = _core.config_of(pid)
        if _manager is None or not config:
            raise RuntimeError("there is no manager to connect with")
        connection = _manager.connect(pid, pickle.loads(config))
        if isinstance(connection, socket.socket):
            connection = connection, connection
        _Pump(end, *connection)
    except Exception as error:
        _log.logger().warning("worker %d cannot connect to worker %d: %r", _core.me(), pid, error)
        end.close()


def worker_id_from_socket(s: Any) -> int:
    """The id of the worker at the other end of a connection.

    Parameters:
        s: a socket, or one of the byte streams, that `connect` returned or `process_messages` was given.

    Returns:
        The id; -1 where it belongs to no worker.

    Distributed.jl: `worker_id_from_socket`.

    >>> import socket
    >>> import pydist as d
    >>> ours, theirs = socket.socketpair()
    >>> d.worker_id_from_socket(ours)
    -1
    >>> ours.close(); theirs.close()
    """
    _session.ensure_started()
    end = _pumped.get(id(s), s)
    if not hasattr(end, "fileno"):
        return -1
    try:
        fd = end.fileno()
    except (OSError, ValueError):
        return -1
    pid = _core.peer_of_socket(fd) if fd >= 0 else None
    return -1 if pid is None or pid == 0 else pid


def start_worker(
    out: Any = None,
    cookie: bytes | str | None = None,
    *,
    close_stdin: bool = True,
    stderr_to_stdout: bool = True,
) -> None:
    """Makes this process a worker that waits for process 1 to dial it; returns when the worker ends.

    It listens on 127.0.0.1, and prints its address line to `out`.

    Parameters:
        out: a text stream; standard output by default.
        cookie: the secret of the cluster; read from the first line of standard input where none is given.
        close_stdin: close standard input.
        stderr_to_stdout: print to standard output what goes to standard error.

    Raises:
        RuntimeError: this process belongs to a cluster already.
        ValueError: the cookie has less than 16 bytes.

    Distributed.jl: `start_worker`.
    """
    serve_dialled(
        "127.0.0.1:0",
        _cookies.read_line() if cookie is None else _cookies.check(cookie),
        out=out,
        close_stdin=close_stdin,
        stderr_to_stdout=stderr_to_stdout,
    )


def serve_dialled(
    bind: str,
    cookie: bytes,
    *,
    out: Any = None,
    close_stdin: bool = True,
    stderr_to_stdout: bool = True,
    tls: _tls.Choice = None,
    allow_plaintext: bool = False,
    timeout: float | None = None,
) -> None:
    """What `start_worker` does, at any address."""
    from . import _config, _worker

    address, inst = listen_dialled(bind, cookie, allow_plaintext, tls)
    out = sys.stdout if out is None else out
    scheme, _, bound = address.partition(":")
    host, port = _network.split(bound)
    out.write(_address_lines.format_line(port, host, inst, scheme == "tls") + "\n")
    out.flush()
    if close_stdin:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
    if stderr_to_stdout:
        sys.stderr.flush()
        os.dup2(1, 2)
        # The old stream remembers what kind of file it was for.
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), sys.stdout.encoding)
        sys.__stderr__ = sys.stderr  # type: ignore[misc]
    if await_head(_config.worker_timeout() if timeout is None else timeout):
        _worker.serve(_network.dialable(address, _core.own_address_to(1)))


def listen_dialled(
    bind: str,
    cookie: bytes,
    allow_plaintext: bool,
    tls: _tls.Choice = None,
    files: _tls.TlsFiles | None = None,
) -> tuple[str, bytes]:
    """Starts the core of a worker that process 1 is to dial.

    Parameters:
        bind: the address to listen on, `HOST[:PORT]`.
        cookie: the secret of the cluster.
        allow_plaintext: let one beyond loopback be without encryption.
        tls: whether, and with what, one on loopback is encrypted too.
        files: what encrypted connections are made with, also where `tls` does not ask for them.

    Returns:
        The address where it listens, and the tag of the listener.

    Raises:
        OSError: it cannot listen there, or a file cannot be read.
        RuntimeError: this process belongs to a cluster already.
        ValueError: the files cannot be used.
    """
    if _session._started:
        raise RuntimeError("this process belongs to a cluster already")
    host, port = _network.split_any(bind)
    target = _network.resolve(host, port)[0]
    scheme = _tls.scheme(_network.split_any(target)[0], tls, allow_plaintext)
    inst = _session.start_unnamed(cookie)
    _tls.use(tls if files is None else files)
    return _core.listen(f"{scheme}:{target}"), inst


def await_head(timeout: float) -> bool:
    """Whether process 1 has dialled this worker in time; where it has not, says so and closes the core."""
    error = _core.wait_open(timeout)
    if error is None:
        return True
    sys.stderr.write(f"this worker cannot join the cluster: {error}\n")
    sys.stderr.flush()
    _core.close()
    return False
