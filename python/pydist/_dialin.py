"""The command line of a worker: `python -m pydist worker`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from . import _config, _cookies, _core, _network, _session, _tls

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
        tls = _tls_of(options)
        cookie = _cookies.find(options.cookie_file)
        if not targets:
            from . import _transport

            _transport.serve_dialled(
                options.bind_to or "127.0.0.1:0",
                cookie,
                stderr_to_stdout=False,
                tls=tls,
                allow_plaintext=options.allow_plaintext,
                timeout=options.timeout,
            )
            return 0
        return _join(targets, cookie, tls, options)
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
    parser.add_argument("--tls", action="store_true", help="encrypt connections on loopback, too")
    parser.add_argument(
        "--tls-ca", metavar="FILE", help="the authority of all certificates, in place of keys made for it"
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="the certificate of this worker")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="give up after this time")
    return parser


def _tls_of(options: argparse.Namespace) -> _tls.Choice:
    paths = options.tls_ca, options.tls_cert, options.tls_key
    if not any(paths):
        return _tls.check(options.tls or None, options.allow_plaintext)
    if not all(paths):
        raise ValueError("--tls-ca, --tls-cert and --tls-key belong together")
    files = _tls.TlsFiles(ca=options.tls_ca, cert=options.tls_cert, key=options.tls_key)
    return _tls.check(files, options.allow_plaintext)


def _fail(message: str) -> int:
    sys.stderr.write(f"pydist worker: {message}\n")
    sys.stderr.flush()
    return 1


def _join(
    targets: list[tuple[str, int]], cookie: bytes, tls: _tls.Choice, options: argparse.Namespace
) -> int:
    from . import _worker

    timeout = _config.worker_timeout() if options.timeout is None else options.timeout
    until = time.monotonic() + timeout
    _session.start_unnamed(cookie)
    _tls.use(tls)
    tag = _cookies.join_tag(cookie)
    del cookie
    _leave_standard_input()
    error = dial(targets, tag, until, options.allow_plaintext, tls)
    if error is not None:
        _core.close()
        return _fail(error)
    _worker.serve(listen(options.bind_to, options.allow_plaintext, tls))
    return 0


def dial(
    targets: list[tuple[str, int]], tag: bytes, until: float, plaintext: bool, tls: _tls.Choice = None
) -> str | None:
    """Tries the addresses of process 1, again and again until a time; returns what is wrong, if it is.

    Parameters:
        targets: the hosts and ports.
        tag: the tag of the listener there.
        until: the deadline, by the monotonic clock.
        plaintext: whether addresses beyond loopback are used without encryption.
        tls: whether, and with what, connections on loopback are encrypted too.
    """
    while True:
        error, again = _try_all(targets, tag, until, tls, plaintext)
        if error is None:
            return None
        if not again or time.monotonic() + RETRY_SECONDS > until:
            names = ", ".join(_network.join(*target) for target in targets)
            return f"cannot join the cluster at {names}: {error}"
        time.sleep(RETRY_SECONDS)


def _try_all(
    targets: list[tuple[str, int]], tag: bytes, until: float, tls: _tls.Choice, plaintext: bool
) -> tuple[str | None, bool]:
    """Tries all addresses once; returns what is wrong, and whether to try again."""
    addresses: list[str] = []
    unknown: list[str] = []
    for host, port in targets:
        try:
            addresses += _network.resolve(host, port)
        except OSError as error:
            unknown.append(f"{host}: {error.strerror or error}")
    addresses = [f"{_tls.scheme(_network.split(a)[0], tls, plaintext)}:{a}" for a in addresses]
    if not addresses:
        return "; ".join(unknown), True
    failure: str | None
    try:
        _core.dial_head("\n".join(addresses), tag)
        failure = _core.wait_open(max(0.1, until - time.monotonic()))
    except OSError as refused:
        failure = str(refused)
    if failure is None:
        return None, False
    again = "no address answered" in failure or "took too long" in failure
    failure += _advice(failure)
    return "; ".join([failure, *unknown]), again


def _advice(failure: str) -> str:
    if "ended in its handshake" in failure:
        return "; is the cookie that of this cluster?"
    if "the other side speaks TLS" in failure:
        return "; say --tls"
    if "may speak no TLS" in failure or "speaks no TLS" in failure:
        return "; TLS is used where --tls is said, and beyond loopback unless --allow-plaintext is"
    return ""


def listen(bind_to: str | None, plaintext: bool, tls: _tls.Choice = None) -> str:
    """Listens where other workers reach this one: by default where process 1 is reached from."""
    here = _core.own_address_to(1)
    host, port = here or "127.0.0.1", 0
    if bind_to:
        host, port = _network.split_any(bind_to)
    target = _network.resolve(host, port)[0]
    scheme = _tls.scheme(_network.split_any(target)[0], tls, plaintext)
    return _network.dialable(_core.listen(f"{scheme}:{target}"), here)


def _leave_standard_input() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
