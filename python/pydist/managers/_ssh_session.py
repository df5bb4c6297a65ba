"""The end in process 1 of the ssh session of a host: what comes over it, and what is sent."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .. import _cluster, _output
from .._errors import LaunchWorkerError
from . import _address_lines, _frames

POLL_SECONDS = 0.1
"""How often somebody who waits looks whether the launch has been given up."""
END_SECONDS = 2.0
"""So long ssh has to end by itself once its session is over."""
STATUS_SECONDS = 2.0
"""So long the exit status of a worker is awaited once it is lost."""
KILL_SECONDS = 2.0
"""So long it may take until the other host tells that a worker has been killed."""
HELD_MAX = 1 << 16
"""So much of what a worker prints before it has an id is kept."""


class RemoteProcess:
    """A worker on another host, as `subprocess.Popen` shows one that is here.

    Parameters:
        session: the ssh session of its host.
        index: its number on that host.
    """

    def __init__(self, session: Session, index: int) -> None:
        self.session = session
        self.index = index
        self.address: _address_lines.Address | None = None
        self.status: int | None = None
        self.abandoned = False
        self._streams: dict[bytes, _output.Stream] = {}
        self._held: list[tuple[bytes, bytes]] = []
        self._held_bytes = 0

    def poll(self) -> int | None:
        """Its exit status; that of ssh where the session has ended before it; None while it runs."""
        return self.status if self.status is not None else self.session.poll()

    def has_ended(self) -> bool:
        """Whether it has ended, or nothing can be heard of it any more."""
        return self.abandoned or self.poll() is not None

    def exit_reason(self, seconds: float) -> str:
        """How it ended, which its host tells, in so many seconds, after its connections have closed."""
        self.session.wait(self.has_ended, time.monotonic() + min(seconds, STATUS_SECONDS))
        if self.status is None:
            return f"the ssh session of {self.session.host} has ended" if self.session.ended else ""
        if self.status >= 0:
            return f"exit code {self.status}"
        try:
            return f"signal {-self.status} ({signal.Signals(-self.status).name})"
        except ValueError:
            return f"signal {-self.status}"

    def send_signal(self, number: int) -> None:
        """Sends a signal to it and its process group."""
        self.session.send(f"{self.index} {number}\n")

    def kill(self) -> None:
        """Ends it; where its host does not answer, it counts as ended then."""
        self.send_signal(signal.SIGKILL)
        self.session.wait(self.has_ended, time.monotonic() + KILL_SECONDS)
        self.abandoned = True

    def follow(self, pid: int) -> None:
        """Passes on what it prints, from now on under this id."""

        def begin() -> None:
            self._streams = {
                b"O": _output.attach(pid, _output.stdout),
                b"E": _output.attach(pid, _output.stderr),
            }
            for kind, data in self._held:
                self._streams[kind].feed(data)
            self._held.clear()
            if self.status is not None or self.session.ended:
                self.finish()

        _output.launcher().run(begin)

    def feed(self, kind: bytes, data: bytes) -> None:
        """Takes what it has printed; called on the thread of the output."""
        if self._streams:
            self._streams[kind].feed(data)
        elif self._held_bytes < HELD_MAX:
            self._held.append((kind, data))
            self._held_bytes += len(data)

    def finish(self) -> None:
        """Nothing more comes; called on the thread of the output."""
        for stream in self._streams.values():
            stream.finish()


class _Pipe:
    """A pipe of ssh, for the thread of the output."""

    def __init__(self, fd: int, feed: Callable[[bytes], None], finish: Callable[[], None]) -> None:
        self.fd = fd
        self.feed = feed
        self.finish = finish


class Session:
    """A running ssh that serves the workers of one host.

    Parameters:
        host: the name of the host, for errors.
        exename: the Python executable there, for errors.
        command: the command line.
        hello: what the other end reads first.
        master: the socket at which ssh takes tunnels, if it does; a killed one leaves it behind.
    """

    def __init__(
        self, host: str, exename: str, command: list[str], hello: bytes, master: str | None = None
    ) -> None:
        self.host = host
        self.exename = exename
        self._master = master
        self.workers: list[RemoteProcess] | None = None
        self.ended = False
        self._error: Exception | None = None
        self._decoder = _frames.Decoder()
        self._said = bytearray()
        self._left = 0
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        try:
            # A session of its own keeps Ctrl-C in a terminal from it, and questions for a password.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except OSError as error:
            raise LaunchWorkerError(f"{command[0]} cannot be run: {error}", host=host) from None
        self._watch()
        self._stdin = self._process.stdin
        assert self._stdin is not None
        os.set_blocking(self._stdin.fileno(), False)
        self._unsent = bytearray(hello)
        self.send("")

    def _watch(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        thread = _output.launcher()
        for pipe, feed, finish in (
            (self._process.stderr, self._read_errors, lambda: None),
            (self._process.stdout, self._read, self._end),
        ):
            watched: Any = _Pipe(os.dup(pipe.fileno()), feed, finish)
            pipe.close()
            thread.run(partial(thread.watch, watched))

    def _read(self, data: bytes) -> None:
        try:
            for kind, index, payload in self._decoder.feed(data):
                self._take(kind, index, payload)
        except (LaunchWorkerError, ValueError, IndexError, TypeError) as error:
            self._error = self._error or error
            self._kill()
        with self._changed:
            self._changed.notify_all()

    def _take(self, kind: bytes, index: int, payload: bytes) -> None:
        if kind == b"N":
            count = int(payload)
            self._left = count
            self.workers = [RemoteProcess(self, i) for i in range(count)]
        elif kind == b"F":
            self._error = LaunchWorkerError(payload.decode("utf-8", "replace"))
        elif self.workers is not None:
            worker = self.workers[index]
            if kind == b"A":
                worker.address = _address_lines.parse_line(payload)
            elif kind == b"X":
                worker.status = int(payload)
                worker.finish()
                _tell_of_ends()
            else:
                worker.feed(kind, payload)

    def _read_errors(self, data: bytes) -> None:
        self._said += data
        del self._said[: -_output.TAIL_BYTES]

    def _end(self) -> None:
        with self._changed:
            self.ended = True
            self._changed.notify_all()
        for worker in self.workers or ():
            if worker.status is None:
                worker.feed(b"E", bytes(self._said))
                worker.finish()
        _tell_of_ends()

    def wait(self, condition: Callable[[], bool], until: float, given_up: Callable[[], bool] = bool) -> bool:
        """Waits for a condition until a deadline, or until the launch is given up; whether it is true."""
        with self._changed:
            while not condition():
                left = until - time.monotonic()
                if left <= 0 or given_up():
                    return False
                self._changed.wait(min(left, POLL_SECONDS))
                if self._unsent:
                    self.send("")
        return True

    def await_workers(
        self, until: float, timeout: float, given_up: Callable[[], bool]
    ) -> list[RemoteProcess]:
        """Waits until the workers of the host are being started.

        Raises:
            LaunchWorkerError: the host does not get there.
        """
        self.wait(lambda: self.workers is not None or self._error is not None or self.ended, until, given_up)
        if self.workers is not None and self._error is None:
            return self.workers
        ended, error = self.ended, self._error
        status = self.close(1.0 if ended or error is not None else 0.0)
        if error is None and not ended:
            raise LaunchWorkerError(
                f"{self.host} did not start workers within {timeout:g} s",
                host=self.host,
                output=self.output(),
            )
        message = str(error) if error is not None else self._reason()
        raise LaunchWorkerError(message, host=self.host, status=status, output=self.output())

    def _reason(self) -> str:
        text = f"ssh could not start workers on {self.host} with {self.exename}"
        if b"No module named 'pydist'" in self._said:
            text += "; pydist has to be installed for that Python, or exename names another one"
        return text

    def output(self) -> str:
        """The end of what ssh and the shell there have said."""
        return (bytes(self._decoder.banner) + bytes(self._said)).decode("utf-8", "replace")

    def poll(self) -> int | None:
        """The exit status of ssh, once the session is over."""
        return self._process.poll() if self.ended else None

    def send(self, text: str) -> None:
        """Sends to the other end; what the connection does not take is kept."""
        with self._writing:
            self._unsent += text.encode()
            assert self._stdin is not None
            try:
                while self._unsent and not self._stdin.closed:
                    written = self._stdin.write(self._unsent)
                    if written is None:
                        return
                    del self._unsent[:written]
            except OSError:
                # The session is over, which its output tells.
                self._unsent.clear()

    def leave(self) -> None:
        """One worker has gone for good; with the last one the session ends."""
        with self._changed:
            self._left -= 1
            last = self._left <= 0
        if last:
            self.close(END_SECONDS)

    def close(self, patience: float) -> int | None:
        """Ends the session, and the workers with it; returns the exit status where ssh ended by itself."""
        assert self._stdin is not None
        with self._writing:
            self._unsent.clear()
            try:
                self._stdin.close()
            except OSError:
                # It was closed at the other end.
                pass
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
            return None
        finally:
            if self._master is not None and os.path.exists(self._master):
                os.unlink(self._master)

    def _kill(self) -> None:
        """Kills ssh, and what it has started to reach the host."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def _tell_of_ends() -> None:
    """Has the cluster let go of workers that have ended; on a thread that does not pass on output."""
    threading.Thread(target=_cluster.members_changed, name="pydist-ended", daemon=True).start()
