"""Exceptions in tests: raised, sent and printed."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from pydist import _errors
from pydist._errors import (
    dump_exception,
    load_exception,
)

PACKAGES = Path(_errors.__file__).parent.parent


def caught(f: Any, *args: Any) -> BaseException:
    try:
        f(*args)
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def output_of(code: str) -> bytes:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env={"PYTHONPATH": str(PACKAGES)},
        timeout=60,
        check=True,
    ).stdout


def throw(error: BaseException) -> None:
    raise error


def sent(error: BaseException, pid: int = 2) -> Any:
    """What arrives of an exception that was raised on another process."""
    data, buffers, _ = dump_exception(caught(throw, error), pid)
    return load_exception(data, [bytearray(buffer.raw()) for buffer in buffers])


def printed(error: BaseException) -> str:
    return "".join(traceback.format_exception(caught(throw, error)))
