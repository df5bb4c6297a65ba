"""The threads that start local workers and pass on what workers print."""

from __future__ import annotations

import os
import queue
import selectors
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO, TypeAlias, TypeVar, cast

from . import _config, _core
from ._fork_lock import ForkLock

T = TypeVar("T")
_Done: TypeAlias = "queue.SimpleQueue[tuple[Any, BaseException | None]]"

TAIL_BYTES = 4096
"""How much of the end of a worker's output is kept for its error."""
LINE_BYTES = 1 << 16
"""A line longer than this is passed on in parts."""

DRAIN_SECONDS = 2.0
"""So long what has been printed may take to be passed on at once."""
DRAIN_MOST = 10.0
"""So long a worker's output is waited for at most once it has ended."""
DRAIN_ROUNDS = 64
"""So often what has been printed is read when it is to be passed on at once: a worker may print for ever."""


tap: Callable[[int, bool, list[str]], None] | None = None
"""Is called with what workers print, while somebody watches: the id, whether it is an error, the lines."""


class Stream:
    """One pipe of a worker: its lines go to a stream of this process, its end is kept."""

    def __init__(self, pid: int, fd: int, target: Callable[[], TextIO | None], prefixed: bool = True) -> None:
        self.pid = pid
        self.fd = fd
        self.tail = bytearray()
        self.ended = threading.Event()
        self.passed_on = 0
        self._target = target
        how = _config.output()
        self._is_off = how == "off"
        self._prefix = f"      From worker {pid}:\t" if prefixed and how == "prefix" else ""
        self._partial = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes what was read, and passes on the whole lines."""
        self.passed_on += len(data)
        self.tail += data
        del self.tail[:-TAIL_BYTES]
        self._partial += data
        end = self._partial.rfind(b"\n") + 1
        if not end and len(self._partial) >= LINE_BYTES:
            end = len(self._partial)
        if end:
            whole = bytes(self._partial[:end])
            del self._partial[:end]
            self._print(whole)

    def skip(self, dropped: int) -> None:
        """Tells that so many bytes are not passed on, since they came faster than they could be."""
        self._print_partial()
        self._print(f"... dropped {dropped} bytes, which came too fast to be passed on ...".encode())

    def finish(self) -> None:
        """The worker has closed its end."""
        self._print_partial()
        self.ended.set()

    def _print_partial(self) -> None:
        if self._partial:
            self._print(bytes(self._partial))
            self._partial.clear()

    def _print(self, data: bytes) -> None:
        lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
        if tap is not None:
            tap(self.pid, self._target is stderr, lines)
        if self._is_off:
            return
        text = "".join(f"{self._prefix}{line}\n" for line in lines)
        target = self._target()
        try:
            if target is not None:
                _write(target, text)
        except Exception:
            # Whatever is wrong with the output of this process, its workers are not to suffer from it.
            return


_writing = ForkLock()


def _write(target: TextIO, text: str) -> None:
    """Writes whole lines, above the bars of tqdm where there are some, which are torn else."""
    bars = sys.modules.get("tqdm.std")
    with _writing:
        if bars is not None and getattr(bars.tqdm, "_instances", None):
            bars.tqdm.write(text, file=target, end="")
        else:
            target.write(text)
        target.flush()


class Followed(Protocol):
    """Something to read from: a stream, or whatever else is there until its other end is closed."""

    fd: int

    def feed(self, data: bytes) -> None:
        """Takes what was read."""

    def finish(self) -> None:
        """The other end is closed, and so is the descriptor."""


class Launcher:
    """The thread, which lives as long as the process: a worker ends with the thread that started it."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._jobs: queue.SimpleQueue[tuple[_Done, Callable[[], Any]]] = queue.SimpleQueue()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        threading.Thread(target=self._run, name="pydist-launcher", daemon=True).start()

    def run(self, job: Callable[[], T]) -> T:
        """Runs something on the thread, and returns what it returns."""
        done: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()
        self._jobs.put((done, job))
        os.write(self._wake_write, b"x")
        value, error = done.get()
        if error is not None:
            raise error
        return cast(T, value)

    def drain(self) -> None:
        """Passes on what workers have printed until now."""
        self.run(self._drain)
        _core.catch_up_output(DRAIN_SECONDS)

    def _drain(self) -> None:
        for _ in range(DRAIN_ROUNDS):
            ready = [key.data for key, _ in self._selector.select(0) if key.data is not None]
            if not ready:
                return
            for stream in ready:
                self._read(stream)

    def watch(self, stream: Followed) -> None:
        """Passes on a stream from now on; called on the thread itself."""
        self._selector.register(stream.fd, selectors.EVENT_READ, stream)

    def _run(self) -> None:
        while True:
            ready = [key.data for key, _ in self._selector.select()]
            for stream in ready:
                if stream is not None:
                    self._read(stream)
            # After the streams, as a job may read them too.
            if None in ready:
                self._run_jobs()

    def _run_jobs(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
        while not self._jobs.empty():
            done, job = self._jobs.get()
            try:
                done.put((job(), None))
            except BaseException as error:
                done.put((None, error))

    def _read(self, stream: Followed) -> None:
        try:
            data = os.read(stream.fd, 1 << 16)
        except OSError:
            data = b""
        if data:
            stream.feed(data)
            return
        self._selector.unregister(stream.fd)
        os.close(stream.fd)
        stream.finish()


class Printer:
    """The thread that passes on what the core has read from the pipes of workers.

    The core reads on while this process is busy, or its own output stands still, and drops what is too much.
    """

    def __init__(self) -> None:
        self._followed: dict[int, Stream] = {}
        self._lock = threading.Lock()
        self._started = False
        self._jobs: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()

    def before_next(self, job: Callable[[], Any]) -> None:
        """Runs something on the thread before it passes on what comes next."""
        self._jobs.put(job)

    def follow(self, stream: Stream) -> None:
        """Passes on a stream from now on."""
        with self._lock:
            self._followed[_core.follow_output(stream.fd)] = stream
            if not self._started:
                threading.Thread(target=self._run, name="pydist-output", daemon=True).start()
                self._started = True

    def _run(self) -> None:
        while True:
            key, dropped, data, ended = _core.take_output()
            while not self._jobs.empty():
                self._jobs.get()()
            with self._lock:
                stream = self._followed[key] if not ended else self._followed.pop(key)
            if dropped:
                stream.skip(dropped)
            if data:
                stream.feed(data)
            if ended:
                stream.finish()


printer = Printer()
_streams: dict[int, list[Stream]] = {}


def follow(
    pid: int, fd: int, target: Callable[[], TextIO | None], begun: bytes = b"", prefixed: bool = True
) -> None:
    """Passes on what a worker prints, from now on; the descriptor is closed at its end.

    Parameters:
        pid: the worker.
        fd: what it prints to.
        target: gives the stream of this process.
        begun: what has been read of it already.
        prefixed: begin each line with the worker's id.
    """
    stream = Stream(pid, fd, target, prefixed)
    if begun:
        stream.feed(begun)
    _streams.setdefault(pid, []).append(stream)
    printer.follow(stream)


def attach(pid: int, target: Callable[[], TextIO | None]) -> Stream:
    """A stream of a worker without a descriptor of its own: what it prints is fed on the thread."""
    stream = Stream(pid, -1, target)
    _streams.setdefault(pid, []).append(stream)
    return stream


def add(pid: int, stream: Stream) -> None:
    """Keeps a stream of a worker that something else feeds."""
    _streams.setdefault(pid, []).append(stream)


def await_end(pid: int, seconds: float) -> None:
    """Waits until all that a worker printed has been passed on, as long as that goes on."""
    until = time.monotonic() + DRAIN_MOST
    for stream in _streams.get(pid, ()):
        passed_on = -1
        while passed_on != stream.passed_on and time.monotonic() < until:
            passed_on = stream.passed_on
            if stream.ended.wait(seconds):
                break


def tail(pid: int) -> str:
    """The end of what a worker printed, on all its streams."""
    return b"".join(bytes(stream.tail) for stream in reversed(_streams.get(pid, []))).decode(
        "utf-8", "replace"
    )


def forget(pid: int) -> None:
    """Keeps the output of a worker no longer."""
    _streams.pop(pid, None)


_launcher: Launcher | None = None
_lock = threading.Lock()


def launcher() -> Launcher:
    """The thread of this process, started at first use."""
    global _launcher
    with _lock:
        if _launcher is None:
            _launcher = Launcher()
            if "IPython" in sys.modules:
                _follow_cells()
        return _launcher


def _follow_cells() -> None:
    from . import _ipython

    _ipython.follow_cells()


def started_launcher() -> Launcher | None:
    """The thread, if there is one."""
    return _launcher


def stdout() -> TextIO | None:
    """Where the output of workers goes now."""
    return sys.stdout


def stderr() -> TextIO | None:
    """Where the errors of workers go now."""
    return sys.stderr
