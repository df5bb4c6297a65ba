"""What ssh starts on another host: it starts the workers there, and ends with the ssh session.

Standard input brings the cookie, a line of settings, and then signals for workers. Standard output carries
frames, which `_frames` describes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from .. import _cookies, _network, _tls, _transport, _worker
from . import _address_lines, _frames
from .local import environment_of

PENDING_MAX = 1 << 18
"""So much is read from the workers ahead of what ssh takes."""
DRAIN_SECONDS = 0.2
"""So long what a worker printed is waited for after its end: a child of it may hold the pipe for ever."""

_BOOTSTRAP = (
    "import os,sys\n"
    "b=b''\n"
    "while b.count(b'\\n')<2:\n"
    " c=os.read(0,65536)\n"
    " if not c: os._exit(1)\n"
    " b+=c\n"
    "cookie,config=b.split(b'\\n')[:2]\n"
    "sys.path[:]=[p for p in sys.path if p]\n"
    "import json\n"
    "config=json.loads(config)\n"
    "sys.path+=config['more_path']\n"
    "from pydist.managers import _remote_host\n"
    "_remote_host.serve(cookie,config)\n"
)


class Refused(Exception):
    """The workers cannot be started as they were asked for."""


class _Child:
    """A worker, with the pipes between it and this process."""

    def __init__(self, index: int, process: subprocess.Popen[bytes], address: int) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.index = index
        self.process = process
        self.pipes = {address: b"A", process.stdout.fileno(): b"O", process.stderr.fileno(): b"E"}
        self.ended_at: float | None = None
        self.address = address


class _Host:
    """The loop that serves the workers of this host."""

    def __init__(self) -> None:
        self._children: dict[int, _Child] = {}
        self._pending = bytearray()
        self._commands = bytearray()
        os.set_blocking(1, False)
        self._wake, wake = os.pipe()
        for fd in (self._wake, wake):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def send(self, kind: bytes, index: int, payload: bytes) -> None:
        self._pending += _frames.frame(kind, index, payload)

    def start(self, config: dict[str, Any], cookie: bytes) -> None:
        """Starts the workers."""
        targets = _targets(config)
        self._pending += _frames.MARK + b"\n"
        self.send(b"N", 0, str(len(targets)).encode())
        environment = environment_of(config)
        for index, (host, port) in enumerate(targets):
            told = {**config["worker"], "bind": host, "port": port, "reached": _reached(host)}
            try:
                self._children[index] = _start(index, config["exeflags"], environment, cookie, told)
            except OSError as error:
                self.send(b"E", index, f"it could not be started: {error}\n".encode())
                self.send(b"X", index, b"1")

    def run(self) -> None:
        """Serves until the workers have ended, or the ssh session has."""
        while self._children or self._pending:
            if not self._step():
                break
        self._end_all()

    def _step(self) -> bool:
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        poll.register(1, select.POLLOUT if self._pending else 0)
        pipes = {fd: child for child in self._children.values() for fd in child.pipes}
        if len(self._pending) < PENDING_MAX:
            for fd in pipes:
                poll.register(fd, select.POLLIN)
        ending = any(child.ended_at is not None for child in self._children.values())
        for fd, event in poll.poll(DRAIN_SECONDS * 500 if ending else None):
            if fd == self._wake:
                os.read(fd, 4096)
            elif fd == 0:
                if not self._obey():
                    return False
            elif fd == 1:
                if event & (select.POLLERR | select.POLLHUP | select.POLLNVAL) or not self._flush():
                    return False
            else:
                self._read(pipes[fd], fd)
        for child in list(self._children.values()):
            self._look_after(child)
        return True

    def _flush(self) -> bool:
        try:
            written = os.write(1, self._pending)
        except BlockingIOError:
            return True
        except OSError:
            return False
        del self._pending[:written]
        return True

    def _obey(self) -> bool:
        """Carries out what standard input asks for; false once it has ended."""
        try:
            data = os.read(0, 4096)
        except OSError:
            return False
        self._commands += data
        *lines, rest = self._commands.split(b"\n")
        self._commands = bytearray(rest[-256:])
        for line in lines:
            index, _, number = line.partition(b" ")
            child = self._children.get(int(index))
            if child is not None and child.process.poll() is None:
                os.killpg(child.process.pid, int(number))
        return bool(data)

    def _read(self, child: _Child, fd: int) -> None:
        data = os.read(fd, _frames.PAYLOAD_MAX)
        if data:
            self.send(child.pipes[fd], child.index, data)
        else:
            self._close(child, fd)

    @staticmethod
    def _close(child: _Child, fd: int) -> None:
        if child.pipes.pop(fd) == b"A":
            os.close(fd)

    def _look_after(self, child: _Child) -> None:
        status = child.process.poll()
        if status is None:
            return
        now = time.monotonic()
        if child.ended_at is None:
            child.ended_at = now
        if child.pipes and now < child.ended_at + DRAIN_SECONDS:
            return
        for fd in list(child.pipes):
            self._close(child, fd)
        for pipe in (child.process.stdin, child.process.stdout, child.process.stderr):
            if pipe is not None:
                pipe.close()
        del self._children[child.index]
        self.send(b"X", child.index, str(status).encode())

    def _end_all(self) -> None:
        for child in self._children.values():
            if child.process.poll() is None:
                os.killpg(child.process.pid, signal.SIGKILL)
        for child in self._children.values():
            child.process.wait()


def _start(
    index: int, exeflags: list[str], environment: dict[str, str], cookie: bytes, told: dict[str, Any]
) -> _Child:
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, *exeflags, "-c", _BOOTSTRAP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            bufsize=0,
            pass_fds=[write],
            start_new_session=True,
        )
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    told = {**told, "out": write, "parent": os.getpid()}
    assert process.stdin is not None
    try:
        process.stdin.write(cookie + b"\n" + json.dumps(told).encode() + b"\n")
    except BrokenPipeError:
        # It has ended already, which is told by its exit status.
        pass
    return _Child(index, process, read)


def _targets(config: dict[str, Any]) -> list[tuple[str, int]]:
    """Where each worker is to listen.

    Raises:
        Refused: there is no such address.
    """
    found = []
    for bind_addr, bind_port, count in config["groups"]:
        host = bind_addr or ("127.0.0.1" if config["tunnel"] else _reached("127.0.0.1"))
        number = len(os.sched_getaffinity(0)) if count == "auto" else count
        try:
            ip = _network.split_any(_network.resolve(host, 0)[0])[0]
        except OSError as error:
            raise Refused(f"its workers cannot listen on {host}: {error}") from None
        found += [(ip, bind_port + i if bind_port else 0) for i in range(number)]
    return found


def _reached(host: str) -> str:
    """Where the ssh client has reached this host, in the place of addresses that mean any, and loopback."""
    if host not in ("0.0.0.0", "::", "127.0.0.1"):
        return host
    words = os.environ.get("SSH_CONNECTION", "").split()
    if len(words) != 4 or not _network.is_address(words[2].partition("%")[0]):
        return host
    return words[2].partition("%")[0]


def main() -> None:
    """Starts the workers that standard input asks for, and serves them until they or the session end."""
    cookie, line = _read_lines()
    config = json.loads(line)
    if config["try_dir"]:
        try:
            os.chdir(config["try_dir"])
        except OSError:
            # This host has no such folder: the home folder serves.
            pass
    here = os.getcwd()
    config["worker"]["more_path"] = [here, *(p for p in config["more_path"] if os.path.isdir(p))]
    host = _Host()
    try:
        host.start(config, cookie)
    except Refused as error:
        host._pending[:] = _frames.MARK + b"\n" + _frames.frame(b"F", 0, str(error).encode())
    del cookie
    host.run()


def _read_lines() -> tuple[bytes, bytes]:
    data = bytearray()
    while data.count(b"\n") < 2:
        more = os.read(0, 1 << 16)
        if not more:
            sys.exit("standard input ended before it had told what to start")
        data += more
    cookie, line, _ = bytes(data).split(b"\n", 2)
    return cookie, line


def serve(cookie: bytes, config: dict[str, Any]) -> None:
    """Runs a worker until it is asked to end.

    Parameters:
        cookie: the secret of the cluster, in hex.
        config: the line that the process which started it wrote to its standard input.
    """
    _worker.detach_streams()
    # Process 1 has said it once for all workers.
    _network._warned = config["allow_plaintext"]
    target = _network.join(config["bind"], config["port"])
    tls, files = _tls.take(config["tls"])
    try:
        bound, inst = _transport.listen_dialled(
            target, _cookies.check(cookie), config["allow_plaintext"], tls, files
        )
    except (OSError, ValueError) as error:
        sys.exit(f"this worker cannot listen on {target}: {error}")
    del cookie
    scheme, _, rest = bound.partition(":")
    port = _network.split(rest)[1]
    reached = config["reached"] if config["bind"] in ("0.0.0.0", "::") else config["bind"]
    _worker.watch_parent(config["parent"])
    os.write(config["out"], _address_lines.format_line(port, reached, inst, scheme == "tls").encode())
    os.close(config["out"])
    if not _transport.await_head(config["timeout"]):
        sys.exit(1)
    _worker.run(f"{scheme}:{_network.join(reached, port)}")
