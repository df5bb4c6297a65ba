"""What the machine itself takes: a bare socket pair, a copy in memory, bare interpreters, ideal times."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from itertools import repeat

import numpy as np
import psutil

from benches.model import Contestant, Operation, Reading, Scale, Work
from benches.work import add_one, make_array

MESSAGE = bytes(64)
WINDOW = 256


def limit(name: str, open_: Callable[..., AbstractContextManager], **options: object) -> Contestant:
    return Contestant(name, "limit", partial(open_, **options))


@contextmanager
def answering_process(*arguments: object) -> Iterator[socket.socket]:
    """Yield a Unix socket whose other end is a second interpreter that runs `benches.answer`."""
    near, far = socket.socketpair()
    with near, far:
        command = [sys.executable, "-m", "benches.answer", str(far.fileno()), *map(str, arguments)]
        with subprocess.Popen(command, pass_fds=[far.fileno()]):
            far.close()
            yield near
            near.close()


def receive_into(connection: socket.socket, buffer: memoryview) -> None:
    while buffer:
        with suppress(BlockingIOError):
            received = connection.recv_into(buffer)
            if not received:
                raise EOFError("the other end is gone")
            buffer = buffer[received:]


@contextmanager
def on_cores(mine: int | None) -> Iterator[None]:
    """Keep this process on one of the cores that it may use, by number; None: on any."""
    allowed = os.sched_getaffinity(0)
    if mine is not None:
        os.sched_setaffinity(0, {core_number(mine)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def core_number(which: int) -> int:
    cores = sorted(os.sched_getaffinity(0))
    return cores[which % len(cores)]


@contextmanager
def ping_pong(
    scale: Scale, size: int = len(MESSAGE), theirs: int | None = None, spins: bool = False
) -> Iterator[Operation]:
    """Two processes that sleep in `recv`, this one on the first core and the other on core `theirs`."""
    message = bytes(size)
    reply = memoryview(bytearray(size))

    def once() -> None:
        connection.sendall(message)
        receive_into(connection, reply)

    arguments = () if theirs is None else ("--core", core_number(theirs))
    with (
        answering_process(*["--spin"] * spins, *arguments) as connection,
        on_cores(None if theirs is None else 0),
    ):
        connection.setblocking(not spins)
        once()
        yield Operation(once)


@contextmanager
def stream(scale: Scale, count: Callable[[Scale], int]) -> Iterator[Work]:
    """Send each message by itself, and read the answers of a window of them at a time."""
    replies = memoryview(bytearray(WINDOW * len(MESSAGE)))

    def run(left: int) -> None:
        while left:
            window = min(left, WINDOW)
            for _ in repeat(None, window):
                connection.sendall(MESSAGE)
            receive_into(connection, replies[: window * len(MESSAGE)])
            left -= window

    with answering_process() as connection:
        yield Work(run, count(scale))


@contextmanager
def loop(scale: Scale) -> Iterator[Work]:
    yield Work(lambda count: list(map(add_one, range(count))), scale.items)


@contextmanager
def memory_copy(scale: Scale, copies: int, warm: bool = True) -> Iterator[Operation]:
    """Copy an array, to pages that have been written to before unless `warm` is false."""
    source = make_array(scale.array_bytes)
    targets = [np.ones_like(source) if warm else np.empty_like(source) for _ in range(copies)]

    def once() -> None:
        for target in targets:
            np.copyto(target, source)

    yield Operation(once)


@contextmanager
def socket_body(scale: Scale, size: Callable[[Scale], int], back: bool) -> Iterator[Operation]:
    body = memoryview(make_array(size(scale))).cast("B")
    answer = memoryview(bytearray(len(body) if back else 1))

    def once() -> None:
        connection.sendall(body)
        receive_into(connection, answer)

    with answering_process("--sizes", len(body), len(answer)) as connection:
        yield Operation(once)


@contextmanager
def interpreters(scale: Scale, count: Callable[[Scale], int]) -> Iterator[Operation]:
    """Start interpreters that say one word, and wait for it from each."""

    def once() -> None:
        command = [sys.executable, "-c", "print(flush=True); input()"]
        pipe = subprocess.PIPE
        started = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(count(scale))]
        for process in started:
            process.stdout.readline()
        running.extend(started)

    def after() -> None:
        while running:
            running.pop().communicate(b"\n")

    running: list[subprocess.Popen] = []
    yield Operation(once, after)


@contextmanager
def interpreter_memory(scale: Scale) -> Iterator[Reading]:
    """Read off the proportional set size of two bare interpreters."""
    command = [sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe) for _ in range(2)]
    for process in started:
        process.stdout.readline()
    yield Reading(lambda: sum(psutil.Process(each.pid).memory_full_info().pss for each in started) / 2)
    for process in started:
        process.communicate(b"\n")


@contextmanager
def ideal(scale: Scale, seconds: Callable[[Scale], float]) -> Iterator[Reading]:
    """Say how long the work takes where it costs nothing to hand it out."""
    yield Reading(lambda: seconds(scale))


@contextmanager
def sleeping(scale: Scale) -> Iterator[Reading]:
    """Read off the processor time that this process takes while it sleeps."""

    def take() -> float:
        before = time.process_time()
        time.sleep(scale.idle_seconds)
        return time.process_time() - before

    yield Reading(take)
