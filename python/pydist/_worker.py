"""A worker process: joins the cluster, runs calls, and ends with process 1."""

from __future__ import annotations

import atexit
import fcntl
import linecache
import os
import signal
import sys
import time
import types
from typing import Any

from . import _core, _executor, _interrupts, _lines, _log, _session, _stacks, _tls


def main(cookie: bytes, config: dict[str, Any]) -> None:
    """Runs a worker until it is asked to end.

    Parameters:
        cookie: the secret of the cluster, in hex.
        config: the line that the process which started it wrote to its standard input.
    """
    detach_streams()
    _session.start_node(
        config["pid"],
        cookie=bytes.fromhex(cookie.decode()),
        cluster=bytes.fromhex(config["cluster"]),
        inst=bytes.fromhex(config["inst"]),
        address=config["address"],
        host=config["host"],
        topology=config["topology"],
        lazy=config["lazy"],
    )
    if config["tls"] is not None:
        _tls.use(_tls.TlsFiles(**dict(zip(("ca", "cert", "key"), config["tls"], strict=True))))
    watch_parent(config["parent"])
    _core.dial_head(config["head"], bytes.fromhex(config["head_inst"]))
    error = _core.wait_open(config["timeout"])
    if error is not None:
        sys.stderr.write(f"worker {config['pid']} cannot join the cluster: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    address = config["address"]
    del cookie, config
    run(address)


def serve(address: str) -> None:
    """Runs calls on this thread until the worker is asked to end; the connection to process 1 is open.

    Parameters:
        address: where others dial it; empty where they cannot.
    """
    sys.stdout = sys.__stdout__ = _lines.install(sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _lines.install(sys.stderr)  # type: ignore[misc]
    run(address)


def run(address: str) -> None:
    """What `serve` does, where `detach_streams` has been called."""
    # Who started this process may have blocked signals, which interrupts and the end of a worker need.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _core.share_heaps()
    _interrupts.install_handler()
    _patch_sleep()
    _fresh_main()
    atexit.register(_close)
    _executor.start(leads=True)
    _stacks.prepare()
    _core.announce_ready(address)
    _run()


def serve_in_background(address: str) -> None:
    """Runs calls on threads of their own; the connection to process 1 is open."""
    _patch_sleep()
    atexit.register(_close)
    _executor.start(leads=False)
    _core.announce_ready(address)


def _close() -> None:
    _executor.await_printed()
    _core.close()
    _log.stop()


def _run() -> None:
    while True:
        try:
            _executor.run(stays=True)
        except KeyboardInterrupt:
            # It came too late for the call that it was for.
            continue
        return


_parent_pipe = -1


def detach_streams() -> None:
    """Keeps the pipe to the parent, whose end tells that it is gone, out of the way of the user's code."""
    global _parent_pipe
    _parent_pipe = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, 100)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout = sys.__stdout__ = _lines.install(sys.stdout)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _lines.install(sys.stderr)  # type: ignore[misc]


def watch_parent(ospid: int) -> None:
    """Has this process end with its parent, whose id is given as a check that it is there; 0 for none.

    Called after `detach_streams`.
    """
    _core.die_with_parent(_parent_pipe, ospid)


def _fresh_main() -> None:
    """Gives the user's code an empty `__main__`, and no lines of the text that started this process."""
    linecache.cache.pop("<string>", None)
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main
    sys.argv = [""]


def _patch_sleep() -> None:
    """Makes `time.sleep` one that an interrupt ends on every thread that runs calls."""
    system_sleep = time.sleep

    def sleep(seconds: float, /) -> None:
        executor = _interrupts.current()
        if executor is None or seconds <= 0:
            system_sleep(seconds)
        else:
            executor.sleep(float(seconds))

    sleep.__module__ = "time"
    sleep.__qualname__ = "sleep"
    sleep.__doc__ = system_sleep.__doc__
    time.sleep = sleep  # type: ignore[assignment]
