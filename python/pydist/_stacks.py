"""What the processes run, and what those that wait are waiting for."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

from . import _config, _core, _interrupts, _log, _refs, _session

ANSWER_SECONDS = 5.0
"""A process that has not answered after this time is stopped, or cannot be reached."""

_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
_EXECUTOR = os.path.join(_FOLDER, "_executor.py")
_RUN_CALLS = ("_call", "_run_plain_call")
_lock = threading.Lock()
_reported = -float("inf")


class Stacks(dict[int, str]):
    """A text for each process; as a string, all of them."""

    def __str__(self) -> str:
        parts = []
        for pid, text in self.items():
            lines = (text.rstrip() or "runs nothing, and nothing waits").splitlines()
            parts += [f"process {pid}:", *(f"  {line}" for line in lines)]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        from . import _html

        rows = ((str(pid), text.rstrip() or "runs nothing, and nothing waits") for pid, text in self.items())
        return _html.blocks(["process", "runs, and waits for"], rows)


def stacks(pids: int | Iterable[int] | None = None) -> Stacks:
    """The Python stack of every running call, and what each that is blocked waits for.

    The cores are asked: a process whose Python is stuck in C code is told of as well, by its core.

    Parameters:
        pids: an id, or several; all processes by default.

    Returns:
        A dict of one text for each process, whose string shows all of them.

    Raises:
        ValueError: there is no such process.
        ProcessExitedException: it has gone.
        NotConnectedError: the topology does not connect it to this one.

    >>> import pydist as d
    >>> print(d.stacks(1))
    process 1:
      runs nothing, and nothing waits
    """
    _session.ensure_started()
    chosen = _chosen(pids)
    queue = _core.Queue()
    asked = {pid: _core.ask_stacks(pid, queue, pid) for pid in chosen if pid != _core.me()}
    found = {pid: _own() for pid in chosen if pid == _core.me()}
    until = time.monotonic() + ANSWER_SECONDS
    while asked and (left := until - time.monotonic()) > 0:
        for pid, outcome in queue.wait(left):
            del asked[pid]
            found[pid] = (
                bytes(outcome.data).decode("utf-8", "replace")
                if outcome.status == _refs.VALUE
                else str(_refs.error_of(outcome))
            )
    for pid, request in asked.items():
        _core.abandon(request)
        found[pid] = f"no answer within {ANSWER_SECONDS:g} s: it is stopped, or cannot be reached"
    return Stacks((pid, found[pid]) for pid in chosen)


def _chosen(pids: int | Iterable[int] | None) -> list[int]:
    if pids is None:
        return [member[0] for member in _core.members()]
    several = pids if isinstance(pids, Iterable) else [pids]
    return [_session.as_pid(pid) for pid in several]


def answer(src: int, request: int) -> None:
    """Tells a process what this one runs and waits for."""
    _core.answer_stacks(src, request, _own())


def prepare() -> None:
    """Has the core of this worker tell its stacks where Python is stuck."""
    number = signal.SIGRTMAX - 2
    fd = os.memfd_create("pydist-stacks", os.MFD_CLOEXEC)
    faulthandler.register(number, file=fd, all_threads=True)
    _core.dump_stacks_by(fd, number)


def warn() -> None:
    """A wait takes long: logs one warning with all stacks, and one for all waits of the same time."""
    global _reported
    seconds = _config.hang_report()
    with _lock:
        if time.monotonic() - _reported < seconds:
            return
        _reported = time.monotonic()
    threading.Thread(target=_warn, args=(seconds,), name="pydist-stacks", daemon=True).start()


def _warn(seconds: float) -> None:
    try:
        report = str(stacks())
    except Exception as error:
        report = f"the stacks cannot be had: {error}"
    _log.logger().warning(
        "process %d waits for more than %g s (PYDIST_HANG_REPORT)\n%s", _core.me(), seconds, report
    )


def _own() -> str:
    """What this process runs and waits for, but for the calling thread."""
    calls = {thread: key for key, thread in list(_interrupts._running.items())}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        key, name = calls.get(ident), names.get(ident, "")
        idles = key is None and (ident in _interrupts._executors or name.startswith("pydist-"))
        if idles or ident == threading.get_ident():
            continue
        frames = _users(frame)
        waits = _wait_of(frames)
        if key is not None:
            parts.append(_part(_title(key), frames, waits))
        elif waits:
            parts.append(_part(f"thread {name!r}", frames, waits))
    for key, frames in _coroutines():
        parts.append(_part(f"{_title(key)}, async", frames, ""))
    return "\n".join(parts)


def _title(key: tuple[int, int]) -> str:
    return f"call {key[1]} of process {key[0]}"


def _part(title: str, frames: list[FrameType], waits: str) -> str:
    import traceback

    summary = traceback.StackSummary.extract(((f, f.f_lineno or 0) for f in frames), lookup_lines=True)
    text = f"{title}:\n{''.join(summary.format())}"
    return f"{text}  it waits: {waits}\n" if waits else text


def _users(frame: FrameType) -> list[FrameType]:
    """The frames of a thread, the outermost first, without those that run a call."""
    frames: list[FrameType] = []
    inner: FrameType | None = frame
    while inner is not None:
        if runs_call(inner):
            break
        frames.append(inner)
        inner = inner.f_back
    frames.reverse()
    return frames


def runs_call(frame: FrameType) -> bool:
    """Whether a frame is the one that runs a call: its `f` with its `args`."""
    return frame.f_code.co_filename == _EXECUTOR and frame.f_code.co_name in _RUN_CALLS


def _wait_of(frames: list[FrameType]) -> str:
    """What a thread whose innermost frames are those of pydist waits for."""
    own = None
    for frame in reversed(frames):
        if not frame.f_code.co_filename.startswith(_FOLDER):
            break
        own = frame
    if own is None:
        return ""
    name, values = own.f_code.co_name, own.f_locals
    if name == "sleep":
        return f"sleep of {values.get('seconds')} s"
    if "self" in values:
        return f"{name} of {_shown(values['self'])}"
    for key in ("where", "pid", "pids"):
        if key in values:
            return f"{name} on process {_shown(values[key])}"
    return name


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__name__}"


def _coroutines() -> Iterator[tuple[tuple[int, int], list[FrameType]]]:
    """The calls that go on as coroutines, with the frames in which they are suspended."""
    loop = sys.modules.get(f"{__package__}._loop")
    # It may just be imported.
    if loop is None or not hasattr(loop, "_alive"):
        return
    for task in list(loop._alive):
        frames: list[FrameType] = []
        key = None
        coroutine: Any = task.get_coro()
        while (frame := getattr(coroutine, "cr_frame", None)) is not None:
            if isinstance(running := frame.f_locals.get("self"), loop.Running):
                key = running._key
            else:
                frames.append(frame)
            coroutine = coroutine.cr_await
        if key is not None:
            yield key, frames
