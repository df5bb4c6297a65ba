"""The other end of the bare-socket floor: `python -m benches.answer FD [SIZE_IN SIZE_OUT]`.

Without sizes whatever comes is echoed; with sizes each body of SIZE_IN bytes is received whole and
answered by SIZE_OUT bytes of it.
"""

import socket
import sys


def echo(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(1 << 20))
    while received := connection.recv_into(buffer):
        connection.sendall(buffer[:received])


def answer_bodies(connection: socket.socket, size_in: int, size_out: int) -> None:
    body = memoryview(bytearray(size_in))
    filled = 0
    while received := connection.recv_into(body[filled:]):
        filled += received
        if filled == size_in:
            connection.sendall(body[:size_out])
            filled = 0


def main(descriptor: str, *sizes: str) -> None:
    with socket.socket(fileno=int(descriptor)) as connection:
        if sizes:
            answer_bodies(connection, *map(int, sizes))
        else:
            echo(connection)


if __name__ == "__main__":
    main(*sys.argv[1:])
