"""What the tests did to pydist, and what came of it: counted over the whole run, printed at its end.

Signals are counted by an audit hook, so that a test has only to send them; for all else a test, or the
helper that does it, says so with `fault`. Only this process counts: what a script under test or a worker
does to itself is not seen, so that the numbers are lower bounds.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

LEAKS = ("processes", "threads", "descriptors", "references", "shared-memory segments", "sockets")
SENDS = {"os.kill", "os.killpg", "signal.pthread_kill"}
FAULTY = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}

_lock = threading.RLock()
_bad_inputs = 0
_faults: Counter[str] = Counter()
_recovery = 0.0
_leaks: Counter[str] = Counter(dict.fromkeys(LEAKS, 0))
_tidying = threading.local()


def bad_input(n: int = 1) -> None:
    """Count inputs that no honest peer or caller sends: garbage, truncations, wrong cookies."""
    global _bad_inputs
    with _lock:
        _bad_inputs += n


def fault(kind: str, n: int = 1) -> None:
    """Count faults that were injected, by kind: "SIGKILL", "interrupt", "link cut", "launch failure" ..."""
    with _lock:
        _faults[kind] += n


def recovery(seconds: float) -> None:
    """Note how long it took from a fault until everything that it hit had raised, or worked again."""
    global _recovery
    with _lock:
        _recovery = max(_recovery, seconds)


def leak(kind: str, n: int) -> None:
    """Count what was left behind; kinds are those of `LEAKS`."""
    if kind not in LEAKS:
        raise ValueError(f"a leak is one of {', '.join(LEAKS)}, not {kind!r}")
    with _lock:
        _leaks[kind] += n


@contextmanager
def recovering() -> Iterator[None]:
    """Note as a recovery the time that a block takes which begins with a fault."""
    begin = time.monotonic()
    yield
    recovery(time.monotonic() - begin)


@contextmanager
def tidying() -> Iterator[None]:
    """Mark a block, or a function, whose signals only clear away what a test has used."""
    before = getattr(_tidying, "active", False)
    _tidying.active = True
    try:
        yield
    finally:
        _tidying.active = before


def counted(kind: str, f: Callable[..., Any], error: type[BaseException] | None = None) -> Callable[..., Any]:
    """Return a function that does what `f` does and counts it as a fault, or where it raises `error`."""

    @wraps(f)
    def call(*args: Any, **kwargs: Any) -> Any:
        if error is None:
            fault(kind)
            return f(*args, **kwargs)
        try:
            return f(*args, **kwargs)
        except error:
            fault(kind)
            raise

    return call


def lines() -> list[str]:
    """Return the table, a line per entry."""
    with _lock:
        rows = [("bad inputs tried", f"{_bad_inputs:,}")]
        rows += [("faults injected", f"{_faults.total():,}")]
        rows += [(f"    {kind}", f"{n:,}") for kind, n in sorted(_faults.items())]
        rows += [("longest recovery", f"{_recovery:.2f} s")]
        rows += [("leaks", f"{_leaks.total():,}")]
        rows += [(f"    {kind}", f"{n:,}") for kind, n in _leaks.items()]
    return [f"{name:<28}{value:>12}" for name, value in rows]


def watch_signals(product: Path) -> None:
    """Count from now on the signals that tests send, not those that the product does.

    An audit hook cannot be removed; it is there for the rest of the process.
    """
    ours = os.getpid()
    tests, product_folder = f"{Path(__file__).parent}/", f"{product}/"

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event not in SENDS or args[1] not in FAULTY or getattr(_tidying, "active", False):
            return
        if os.getpid() != ours:
            return
        frame = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith(product_folder):
                return
            if name.startswith(tests):
                return fault(signal.Signals(args[1]).name)
            frame = frame.f_back

    sys.addaudithook(heard)
