"""Links that can be cut, and workers that dial in over them."""

from __future__ import annotations

import selectors
import shlex
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import pydist as d
import tally
from support import wait_until


class Relay:
    """Stands between those who dial `address` and `target`, and can stop passing on what they say.

    The ends are not told: to them it is as if a cable had been pulled, except that the system's own
    acknowledgements go on, so that only heartbeats notice it.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._passes = threading.Event()
        self._passes.set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wakes, self._wake = socket.socketpair()
        self._selector.register(self._wakes, selectors.EVENT_READ)
        self._sockets: list[socket.socket] = [self._listener, self._wakes, self._wake]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self) -> None:
        tally.fault("link cut")
        self._passes.clear()

    def heal(self) -> None:
        self._passes.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wake.send(b"x")
        self._passes.set()
        self._thread.join()
        self._selector.close()
        for s in self._sockets:
            s.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                self._passes.wait()
                if key.fileobj is self._wakes:
                    return
                if key.fileobj is self._listener:
                    self._connect()
                else:
                    self._pass_on(key.fileobj, key.data)  # type: ignore[arg-type]

    def _connect(self) -> None:
        one, _ = self._listener.accept()
        other = socket.create_connection(self._target)
        self._sockets += [one, other]
        self._selector.register(one, selectors.EVENT_READ, other)
        self._selector.register(other, selectors.EVENT_READ, one)

    def _pass_on(self, source: socket.socket, to: socket.socket) -> None:
        try:
            data = source.recv(1 << 16)
            if data:
                return to.sendall(data)
        except OSError:
            pass
        self._selector.unregister(source)
        try:
            to.shutdown(socket.SHUT_WR)
        except OSError:
            return


class DialIn:
    """Workers that dial in at an `ElasticManager`, which never kills them."""

    def __init__(self, manager: d.ElasticManager) -> None:
        self.manager = manager
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, address: str | None = None, prefix: Sequence[str] = ()) -> int:
        """Start one that dials an address, by default that of the manager; return its id."""
        words = shlex.split(self.manager.command())
        if address is not None:
            place = words.index("--connect")
            words[place + 1] = address
        process = subprocess.Popen([*prefix, *words], stderr=subprocess.DEVNULL)
        known = set(d.procs())

        def joined() -> set[int]:
            assert process.poll() is None, "the worker ended before it joined"
            return set(d.procs()) - known

        try:
            (pid,) = wait_until(joined, 30, "a worker that joins")
        except BaseException:
            process.kill()
            process.wait(10)
            raise
        self.processes[pid] = process
        return pid

    @tally.tidying()
    def end(self) -> None:
        d.rmprocs([pid for pid in self.processes if pid in d.procs()])
        for process in self.processes.values():
            process.kill()
            process.wait(10)


@contextmanager
def dial_in(**options: object) -> Iterator[DialIn]:
    """Let workers dial in for the length of a block."""
    with d.ElasticManager(**options) as manager:  # type: ignore[arg-type]
        d.addprocs(manager)
        workers = DialIn(manager)
        try:
            yield workers
        finally:
            workers.end()


def error_of(run: Callable[[], object]) -> BaseException:
    """Return what a call raises; fail where it raises nothing."""
    try:
        value = run()
    except BaseException as error:
        return error
    raise AssertionError(f"it returned {value!r}")
