"""Settings from the environment: each public function reads one, and its docstring names the variable."""

from __future__ import annotations

import math
import os


def worker_timeout() -> float:
    """Seconds that a worker has for its start: `PYDIST_WORKER_TIMEOUT`, 60 by default."""
    return _number("PYDIST_WORKER_TIMEOUT", 60.0)


def heartbeat() -> tuple[float | None, float]:
    """The times of the heartbeat in seconds: the silence after which a process is given up; the interval."""
    return checked_heartbeat(heartbeat_timeout(), heartbeat_interval())


def heartbeat_timeout() -> float | None:
    """Seconds of silence after which a process is lost: `PYDIST_HEARTBEAT`, 30 by default, 0 for never."""
    return _number("PYDIST_HEARTBEAT", 30.0, zero=True) or None


def heartbeat_interval() -> float | None:
    """Seconds between heartbeats: `PYDIST_HEARTBEAT_INTERVAL`, by default a sixth of the time of silence."""
    return _number("PYDIST_HEARTBEAT_INTERVAL", 0.0, zero=True) or None


def checked_heartbeat(timeout: float | None, interval: float | None) -> tuple[float | None, float]:
    """Completes the times of a heartbeat.

    Raises:
        ValueError: they make no sense.
    """
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(
            f"the timeout of the heartbeat must be a positive number of seconds, not {timeout!r}"
        )
    if interval is None:
        interval = 5.0 if timeout is None else timeout / 6
    elif not 0 < interval < math.inf:
        raise ValueError(
            f"the interval of the heartbeat must be a positive number of seconds, not {interval!r}"
        )
    if timeout is not None and not interval < timeout / 2:
        raise ValueError(
            f"the interval of the heartbeat must be less than half of its timeout, {timeout:g} s, "
            f"not {interval:g} s"
        )
    return timeout, interval


def hang_report() -> float:
    """Seconds after which a wait is warned of, with all stacks: `PYDIST_HANG_REPORT`, never by default."""
    return _number("PYDIST_HANG_REPORT", 0.0, zero=True)


def message_max() -> int:
    """The largest message in bytes that is sent and accepted: `PYDIST_MESSAGE_MAX`, 64 GiB by default.

    At least 1 MiB, which messages of pydist itself may need.
    """
    most = int(_number("PYDIST_MESSAGE_MAX", float(64 << 30)))
    if most < 1 << 20:
        raise ValueError(
            f"the environment variable PYDIST_MESSAGE_MAX must be at least {1 << 20} bytes, not {most}"
        )
    return most


def calls_max() -> int:
    """The most calls and requests without an answer: `PYDIST_MAX_CALLS`, 1,000,000 by default."""
    return int(_number("PYDIST_MAX_CALLS", 1e6))


def shared_max() -> int:
    """Bytes of idle shared memory that a process keeps for a second: `PYDIST_SHARED_MAX`, 1 GiB by default.

    0 switches sharing off: large buffers are then streamed, and each process has a copy of its own.
    """
    return int(_number("PYDIST_SHARED_MAX", float(1 << 30), zero=True))


def output() -> str:
    """What becomes of lines that workers print: `PYDIST_OUTPUT`, `prefix` by default.

    `prefix` prints them here with the id of the worker in front, `plain` without it, `off` not at all. The
    last ones are in the error of a worker that dies in any case.
    """
    text = os.environ.get("PYDIST_OUTPUT", "") or "prefix"
    if text not in ("prefix", "plain", "off"):
        raise ValueError(f"the environment variable PYDIST_OUTPUT must be prefix, plain or off, not {text!r}")
    return text


def dashboard() -> int | None:
    """The port on 127.0.0.1 of a dashboard that programs have unasked: `PYDIST_DASHBOARD`, none by default.

    1 stands for any port that is free.
    """
    text = os.environ.get("PYDIST_DASHBOARD", "")
    if not text:
        return None
    if not text.isdecimal() or int(text) >= 1 << 16:
        raise ValueError(f"the environment variable PYDIST_DASHBOARD must be 1 or a port, not {text!r}")
    return None if int(text) == 0 else 0 if int(text) == 1 else int(text)


def threads_max() -> int:
    """The most threads that run calls in one process: `PYDIST_MAX_THREADS`, 4,096 by default."""
    return int(_number("PYDIST_MAX_THREADS", 4096.0))


def meeting_folder() -> str:
    """Where processes under `mpirun` meet: `PYDIST_MEETING_FOLDER`, `~/.cache/pydist` by default.

    All of them must share it, and nobody else may write there.
    """
    return os.environ.get("PYDIST_MEETING_FOLDER") or os.path.join(
        os.path.expanduser("~"), ".cache", "pydist"
    )


def uses_template() -> bool:
    """Whether local workers are forked from a template process: they are unless `PYDIST_TEMPLATE=0`.

    With 0, each is started as an interpreter of its own.
    """
    return os.environ.get("PYDIST_TEMPLATE", "") != "0"


def allow_python_mismatch() -> bool:
    """Whether processes of different CPython X.Y may connect: `PYDIST_ALLOW_PYTHON_MISMATCH=1`."""
    return os.environ.get("PYDIST_ALLOW_PYTHON_MISMATCH", "") == "1"


LEVELS = {"trace": 5, "debug": 10, "info": 20, "warning": 30, "warn": 30, "error": 40, "off": 60}


def log_levels() -> dict[str, int]:
    """What is logged to standard error: `PYDIST_LOG`, nothing by default.

    A level (`debug`), levels of parts (`pydist.handshake=debug,pydist.calls=trace`), or both. A part is the
    logger of that name, and that of the core, `pydist.core.handshake`.
    """
    found: dict[str, int] = {}
    text = os.environ.get("PYDIST_LOG", "")
    for directive in filter(None, (part.strip() for part in text.split(","))):
        name, _, word = directive.rpartition("=")
        name = name.strip() or "pydist"
        level = LEVELS.get(word.strip().lower())
        if level is None or name.split(".")[0] != "pydist":
            raise ValueError(
                "the environment variable PYDIST_LOG must be a level (error, warning, info, debug, trace, "
                f"off), or levels of parts such as pydist.handshake=debug, separated by commas, not {text!r}"
            )
        found[name] = level
        if name.startswith("pydist.") and name.split(".")[1] != "core":
            found[f"pydist.core.{name.removeprefix('pydist.')}"] = level
    return found


def _number(name: str, default: float, *, zero: bool = False) -> float:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"the environment variable {name} must be a number, not {text!r}") from None
    if not (value > 0 or (zero and value == 0)):
        kind = "at least 0" if zero else "positive"
        raise ValueError(f"the environment variable {name} must be {kind}, not {text!r}")
    return value
