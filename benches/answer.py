"""The other end of the bare-socket limit: `python -m benches.answer FD [--spin] [--core N] [--sizes IN OUT]`.

Without sizes whatever comes is echoed; with sizes each body of IN bytes is received whole and answered
by OUT bytes of it.
"""

import argparse
import os
import socket


def echo(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(1 << 20))
    while received := connection.recv_into(buffer):
        connection.sendall(buffer[:received])


def echo_spinning(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(1 << 16))
    connection.setblocking(False)
    while True:
        try:
            received = connection.recv_into(buffer)
        except BlockingIOError:
            continue
        if not received:
            return
        connection.sendall(buffer[:received])


def answer_bodies(connection: socket.socket, size_in: int, size_out: int) -> None:
    body = memoryview(bytearray(size_in))
    filled = 0
    while received := connection.recv_into(body[filled:]):
        filled += received
        if filled == size_in:
            connection.sendall(body[:size_out])
            filled = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("descriptor", type=int)
    parser.add_argument("--spin", action="store_true")
    parser.add_argument("--core", type=int)
    parser.add_argument("--sizes", type=int, nargs=2)
    options = parser.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    with socket.socket(fileno=options.descriptor) as connection:
        if options.sizes:
            answer_bodies(connection, *options.sizes)
        elif options.spin:
            echo_spinning(connection)
        else:
            echo(connection)


if __name__ == "__main__":
    main()
