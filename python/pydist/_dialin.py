"""The command line of a worker: `python -m pydist worker`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Sequence

from . import _config, _cookies, _core, _network, _session

RETRY_SECONDS = 0.2
"""The pause before the addresses of process 1 are tried again."""

_DESCRIPTION = """\
Starts a worker. With --connect it joins the cluster of a process that listens there, such as an
ElasticManager; otherwise it prints a line with its own address, and waits to be dialled. The cookie comes
from --cookie-file, else from the environment variable PYDIST_COOKIE, which is removed from the environment,
else from the first line of standard input."""


def main(argv: Sequence[str]) -> int:
    """Runs a worker until it is asked to end.

    Parameters:
        argv: the arguments behind `worker`.

    Returns:
        The exit status: 0 once it was asked to end, 1 where it could not join, 2 for wrong arguments.
    """
    options = _parser().parse_args(argv)
    try:
        targets = [_network.split(text) for text in options.connect]
        cookie = _cookies.find(options.cookie_file)
        if not targets:
            from . import _transport

            _transport.serve_dialled(
                options.bind_to or "127.0.0.1:0",
                cookie,
                stderr_to_stdout=False,
                allow_plaintext=options.allow_plaintext,
                timeout=options.timeout,
            )
            return 0
        return _join(targets, cookie, options)
    except (OSError, ValueError) as error:
        return _fail(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pydist worker", description=_DESCRIPTION)
    parser.add_argument(
        "--connect",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="an address of process 1; several may be given, and are tried in turn",
    )
    parser.add_argument("--cookie-file", metavar="FILE", help="a file with the cookie, of mode 0600")
    parser.add_argument("--bind-to", metavar="IP[:PORT]", help="where other workers reach this one")
    parser.add_argument(
        "--allow-plaintext", action="store_true", help="use addresses beyond loopback without encryption"
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this time")
    return parser


def _fail(message: str) -> int:
    sys.stderr.write(f"pydist worker: {message}\n")
    sys.stderr.flush()
    return 1


def _join(targets: list[tuple[str, int]], cookie: bytes, options: argparse.Namespace) -> int:
    from . import _worker

    timeout = _config.worker_timeout() if options.timeout is None else options.timeout
    until = time.monotonic() + timeout
    _session.start_unnamed(cookie)
    tag = _cookies.join_tag(cookie)
    del cookie
    _leave_standard_input()
    error = dial(targets, tag, until, options.allow_plaintext)
    if error is not None:
        _core.close()
        return _fail(error)
    address = listen(options.bind_to, options.allow_plaintext)
    _worker.serve(address)
    return 0


def dial(targets: list[tuple[str, int]], tag: bytes, until: float, plaintext: bool) -> str | None:
    """Tries the addresses of process 1, again and again until a time; returns what is wrong, if it is.

    Parameters:
        targets: the hosts and ports.
        tag: the tag of the listener there.
        until: the deadline, by the monotonic clock.
        plaintext: whether addresses beyond loopback may be used without encryption.
    """
    while True:
        error, again = _try_all(targets, tag, until, plaintext)
        if error is None:
            return None
        if not again or time.monotonic() + RETRY_SECONDS > until:
            names = ", ".join(_network.join(*target) for target in targets)
            return f"cannot join the cluster at {names}: {error}"
        time.sleep(RETRY_SECONDS)


def _try_all(
    targets: list[tuple[str, int]], tag: bytes, until: float, plaintext: bool
) -> tuple[str | None, bool]:
    """Tries all addresses once; returns what is wrong, and whether to try again."""
    addresses: list[str] = []
    unknown: list[str] = []
    for host, port in targets:
        try:
            addresses += _network.resolve(host, port)
        except OSError as error:
            unknown.append(f"{host}: {error.strerror or error}")
    for address in addresses:
        _network.check_plaintext(_network.split(address)[0], plaintext)
    if not addresses:
        return "; ".join(unknown), True
    failure: str | None
    try:
        _core.dial_head("\n".join(f"tcp:{address}" for address in addresses), tag)
        failure = _core.wait_open(max(0.1, until - time.monotonic()))
    except OSError as refused:
        failure = str(refused)
    if failure is None:
        return None, False
    again = "no address answered" in failure or "took too long" in failure
    if "ended in its handshake" in failure:
        failure += "; is the cookie that of this cluster?"
    return "; ".join([failure, *unknown]), again


def listen(bind_to: str | None, plaintext: bool) -> str:
    """Listens where other workers reach this one: by default where process 1 is reached from."""
    host, port = _core.own_address_to(1) or "127.0.0.1", 0
    if bind_to:
        host, port = _network.split_any(bind_to)
    _network.check_plaintext(socket.gethostbyname(host) if not _network.is_address(host) else host, plaintext)
    return _core.listen(f"tcp:{_network.resolve(host, port)[0]}")


def _leave_standard_input() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
