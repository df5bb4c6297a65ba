"""A worker that dials in under the id that it was given, on whatever machine it was started."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, NoReturn

from . import _dialin, _network, _session, _tls, _worker


def main(cookie: bytes, config: dict[str, Any]) -> None:
    """Runs a worker until it is asked to end.

    Parameters:
        cookie: the secret of the cluster, in hex.
        config: the line that the process which started it wrote to its standard input.
    """
    until = time.monotonic() + config["timeout"]
    _worker.detach_streams()
    _session.start_node(
        config["pid"],
        cookie=bytes.fromhex(cookie.decode()),
        cluster=bytes.fromhex(config["cluster"]),
        inst=os.urandom(16),
        address="",
        host=_session.host(),
        topology=config["topology"],
        lazy=config["lazy"],
    )
    del cookie
    tls, files = _tls.take(config["tls"])
    try:
        _tls.use(files)
    except (OSError, ValueError) as error:
        _fail(config, f"cannot join the cluster: {error}")
    _worker.watch_parent(config["parent"])
    targets = [_network.split(head) for head in config["heads"]]
    plaintext = config["allow_plaintext"]
    failure = _dialin.dial(targets, bytes.fromhex(config["head_inst"]), until, plaintext, tls)
    if failure is not None:
        _fail(config, failure)
    del config
    _worker.run(_dialin.listen("", plaintext, tls))


def _fail(config: dict[str, Any], message: str) -> NoReturn:
    sys.stderr.write(f"worker {config['pid']} {message}\n")
    sys.stderr.flush()
    os._exit(1)
