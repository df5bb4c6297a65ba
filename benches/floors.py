"""What the machine itself takes: a bare socket pair, a copy in memory, a bare interpreter."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import repeat

import numpy as np

from benches.model import Contestant, Operation, Scale
from benches.work import add_one, make_array

MESSAGE = bytes(64)
WINDOW = 256


@contextmanager
def answering_process(*sizes: int) -> Iterator[socket.socket]:
    """Yield a Unix socket whose other end is a second interpreter that runs `benches.answer`."""
    near, far = socket.socketpair()
    with near, far:
        command = [sys.executable, "-m", "benches.answer", *map(str, (far.fileno(), *sizes))]
        with subprocess.Popen(command, pass_fds=[far.fileno()]):
            far.close()
            yield near
            near.close()


def receive_into(connection: socket.socket, buffer: memoryview) -> None:
    while buffer:
        received = connection.recv_into(buffer)
        if not received:
            raise EOFError("the other end is gone")
        buffer = buffer[received:]


@contextmanager
def ping_pong(scale: Scale) -> Iterator[Operation]:
    reply = memoryview(bytearray(len(MESSAGE)))

    def once() -> None:
        connection.sendall(MESSAGE)
        receive_into(connection, reply)

    with answering_process() as connection:
        yield Operation(once)


@contextmanager
def stream(scale: Scale, count: Callable[[Scale], int]) -> Iterator[Operation]:
    """Send each message by itself, and read the answers of a window of them at a time."""
    replies = memoryview(bytearray(WINDOW * len(MESSAGE)))

    def once() -> None:
        left = count(scale)
        while left:
            window = min(left, WINDOW)
            for _ in repeat(None, window):
                connection.sendall(MESSAGE)
            receive_into(connection, replies[: window * len(MESSAGE)])
            left -= window

    with answering_process() as connection:
        yield Operation(once)


@contextmanager
def loop(scale: Scale) -> Iterator[Operation]:
    yield Operation(lambda: list(map(add_one, range(scale.items))))


@contextmanager
def memory_copy(scale: Scale, copies: int) -> Iterator[Operation]:
    source = make_array(scale.array_bytes)
    targets = [np.ones_like(source) for _ in range(copies)]

    def once() -> None:
        for target in targets:
            np.copyto(target, source)

    yield Operation(once)


@contextmanager
def socket_body(scale: Scale, back: bool) -> Iterator[Operation]:
    body = memoryview(make_array(scale.array_bytes)).cast("B")
    answer = memoryview(bytearray(len(body) if back else 1))

    def once() -> None:
        connection.sendall(body)
        receive_into(connection, answer)

    with answering_process(len(body), len(answer)) as connection:
        yield Operation(once)


@contextmanager
def interpreters(scale: Scale) -> Iterator[Operation]:
    def once() -> None:
        for process in [subprocess.Popen([sys.executable, "-c", ""]) for _ in range(2)]:
            process.wait()

    yield Operation(once)


def floor(
    name: str, open_: Callable[..., AbstractContextManager[Operation]], **options: object
) -> Contestant:
    return Contestant(name, "floor", partial(open_, **options))


ROUNDTRIP = (floor("bare socket", ping_pong),)
CALLS = (floor("bare socket, windows of 256", stream, count=lambda scale: scale.calls),)
MAP_SINGLE = (floor("bare socket, windows of 256", stream, count=lambda scale: scale.items),)
MAP_CHUNKED = (floor("loop in one process", loop),)
ARRAY_THERE = (floor("memcpy", memory_copy, copies=1), floor("bare socket", socket_body, back=False))
ARRAY_BACK = (floor("memcpy", memory_copy, copies=2), floor("bare socket", socket_body, back=True))
START = (floor("bare interpreters", interpreters),)
