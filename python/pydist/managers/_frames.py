"""What a host's program sends over ssh: frames, after a line that marks their beginning.

A login shell may print before that line. A frame is a header `KIND INDEX LENGTH` with a newline, and so many
bytes. INDEX is the worker's number on its host.

| kind | bytes |
|---|---|
| N | how many workers are being started |
| A | the address line of a worker |
| O, E | what a worker printed to standard output, to standard error |
| X | the exit status of a worker, as `subprocess` has it |
| F | why none is started |
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .._errors import LaunchWorkerError
from ._address_lines import LINE_BYTES, LINES_MAX

MARK = b"pydist_host:1"
PAYLOAD_MAX = 1 << 16
HEADER_MAX = 32

_HEADER = re.compile(rb"([NAOEXF]) (\d{1,7}) (\d{1,6})\Z")


def frame(kind: bytes, index: int, payload: bytes) -> bytes:
    """Makes a frame.

    >>> frame(b"X", 3, b"-9")
    b'X 3 2\\n-9'
    """
    return b"%b %d %d\n%b" % (kind, index, len(payload), payload)


class Decoder:
    """Reads the output of a host: what comes before the mark is kept for errors, then come frames.

    >>> decoder = Decoder()
    >>> list(decoder.feed(b"welcome\\n" + MARK + b"\\n" + frame(b"X", 3, b"-9")))
    [(b'X', 3, b'-9')]
    >>> decoder.banner
    bytearray(b'welcome\\n')
    """

    def __init__(self) -> None:
        self.begun = False
        self.banner = bytearray()
        self._rest = bytearray()
        self._lines = 0

    def feed(self, data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
        """Takes what was read, and yields the frames that are whole.

        Raises:
            LaunchWorkerError: it is something else.
        """
        self._rest += data
        while not self.begun:
            if not self._skip_line():
                return
        while (found := self._frame()) is not None:
            yield found

    def _skip_line(self) -> bool:
        end = self._rest.find(b"\n")
        if end < 0 and len(self._rest) <= LINE_BYTES:
            return False
        line = bytes(self._rest[:end]) if end >= 0 else bytes(self._rest)
        del self._rest[: len(line) + 1]
        self.begun = line.rstrip(b"\r").endswith(MARK)
        if not self.begun:
            self.banner += line + b"\n"
            del self.banner[:-LINE_BYTES]
            self._lines += 1
            if self._lines > LINES_MAX:
                raise LaunchWorkerError(f"the first {LINES_MAX} lines from the host are not those of pydist")
        return True

    def _frame(self) -> tuple[bytes, int, bytes] | None:
        end = self._rest.find(b"\n", 0, HEADER_MAX)
        if end < 0 and len(self._rest) < HEADER_MAX:
            return None
        header = _HEADER.match(bytes(self._rest[: max(end, 0)]))
        if header is None or int(header[3]) > PAYLOAD_MAX:
            raise LaunchWorkerError("what comes from the host is no frame; does its shell print at its end?")
        size = int(header[3])
        if len(self._rest) < end + 1 + size:
            return None
        payload = bytes(self._rest[end + 1 : end + 1 + size])
        del self._rest[: end + 1 + size]
        return header[1], int(header[2]), payload
