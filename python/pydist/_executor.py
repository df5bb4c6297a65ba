"""The threads that run calls: each takes one, unpickles it, runs it and answers."""

from __future__ import annotations

import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any

from . import (
    _batches,
    _channels,
    _config,
    _core,
    _free_workers,
    _imports,
    _interrupts,
    _lines,
    _log,
    _otel,
    _recording,
    _refs,
    _serialize,
)
from ._errors import ThreadLimitError, dump_exception
from ._traceback_text import format_traceback

if TYPE_CHECKING:
    from . import _loop

_VALUE, _ERROR = 0, 1
_DO = 2

_threads = 0
_threads_lock = threading.Lock()
_leads = False
_retry_at = 0.0

_printing = threading.Lock()
"""Held while the error of a call is printed that nobody waits for."""
PRINT_SECONDS = 1.0
"""So long the end of a worker waits for an error that is being printed."""

RETRY_SECONDS = 0.1
"""So long no thread is started after the system had none."""


def start(*, leads: bool) -> None:
    """Starts the first thread; with `leads`, idle threads read the sockets themselves."""
    global _leads
    _leads = leads
    _core.limit_threads(_config.threads_max())
    _core.limit_calls(_config.calls_max())
    if _config.hang_report():
        _core.report_hangs(_config.hang_report())
    _spawn()


def _spawn() -> None:
    global _threads, _retry_at
    with _threads_lock:
        if _threads >= _config.threads_max():
            return
        _threads += 1
    try:
        threading.Thread(target=_thread, name="pydist-call", daemon=True).start()
    except RuntimeError:
        # The system has no thread now: the calls wait for one that is there, or are refused.
        with _threads_lock:
            _threads -= 1
            _core.limit_threads_for(max(2, _threads), RETRY_SECONDS)
            _retry_at = time.monotonic() + RETRY_SECONDS


def _thread() -> None:
    global _threads
    try:
        run(stays=False)
    finally:
        with _threads_lock:
            _threads -= 1


def run(*, stays: bool) -> None:
    """Runs calls on this thread until the process ends; without `stays`, until too many threads are idle."""
    try:
        executor = _interrupts.register(stays=stays)
    except RuntimeError:
        return
    try:
        # The signal to leave may have come where all that is raised is caught.
        while not _interrupts.leaving() and _step(executor):
            pass
    finally:
        _interrupts.unregister()
        executor.leave()


def _step(executor: _core.Executor) -> bool:
    kind, lonely, what = executor.next(_leads)
    if kind == "stop":
        return False
    if lonely:
        _spawn()
    if kind == "plain call":
        _run_plain_call(executor, *what)
    elif kind == "call":
        _run_call(executor, *what)
    elif kind == "local":
        _run_local(executor, what)
    elif kind == "export":
        _refs.export(*what)
    elif kind == "freed":
        _channels.drop_custom(*what)
    elif kind == "interrupt":
        _interrupts.interrupt(what)
    elif kind == "members":
        _free_workers.members_changed()
        from . import _cluster

        _cluster.members_changed()
    elif kind == "silent":
        from . import _cluster

        _cluster.worker_silent(what)
    elif kind == "stacks":
        from . import _stacks

        _stacks.answer(*what)
    elif kind == "joined":
        from . import _cluster

        _cluster.worker_joined(*what)
    elif kind == "connect":
        from . import _transport

        _transport.connect_worker(*what)
    elif kind == "log":
        _log.hand_over()
    elif kind == "lost call":
        _lose_call(executor, *what)
    elif kind == "refused call":
        _refuse_call(executor, *what)
    elif kind == "refused local":
        _refuse_local(executor, what)
    elif kind == "exit":
        _interrupts.leave_main()
        return False
    return True


def _limit_error() -> ThreadLimitError:
    missing = "raise the limit with the environment variable PYDIST_MAX_THREADS"
    if time.monotonic() < _retry_at + RETRY_SECONDS:
        missing = "the system lets it start no more; raise the limit (`ulimit -u`, or that of its container)"
    return ThreadLimitError(
        f"process {_core.me()} has no thread left for this call: all {_threads} wait for other calls or "
        f"processes; {missing}"
    )


def _refuse_call(
    executor: _core.Executor, src: int, id: int, mode: int, data: Any, buffers: list[Any], hold: Any
) -> None:
    executor.started(src, id)
    _answer_error(executor, (src, id), mode, _limit_error())


def _lose_call(executor: _core.Executor, src: int, id: int, mode: int, error: BaseException) -> None:
    executor.started(src, id)
    _answer_error(executor, (src, id), mode, error)


def _refuse_local(executor: _core.Executor, id: int) -> None:
    call = _refs.take_local_call(id)
    executor.started(_core.me(), id)
    if call is not None:
        _refs.finish_local_call(call[0], None, _limit_error())


def _run_plain_call(
    executor: _core.Executor, key: tuple[int, int], mode: int, f: Any, args: tuple[Any, ...]
) -> None:
    """Does what `_run_call` does, in one function, for a call that the core has unpickled."""
    running = value = None
    try:
        try:
            if (begun := executor.begin(key)) is not True:
                if begun is not None:
                    return
                _imports.load("_trace").note_name(key, f, args)
            if _recording.on:
                _recording.begin(key, f, args)
            value = f(*args)
            if value is not None and isinstance(value, types.CoroutineType):
                running = _take_up(key)
        finally:
            executor.end(key)
            if _recording.on and running is None:
                _recording.end(key, sys.exc_info()[1])
            if _lines.begun:
                _lines.end_call()
    except BaseException as error:
        del f, args
        _discard(running, value)
        _answer_error(executor, key, mode, error)
        return
    del f, args
    _answer(executor, key, mode, value, running)


def _answer(
    executor: _core.Executor, key: tuple[int, int], mode: int, value: Any, running: _loop.Running | None
) -> None:
    """Answers a call with what it has returned, once a coroutine that it returned has ended."""
    if running is not None:
        running.run(
            value,
            lambda result: _answer_value(executor, key, mode, result),
            lambda error: _answer_error(executor, key, mode, error),
        )
        return
    _answer_value(executor, key, mode, value)


def _run_call(
    executor: _core.Executor, src: int, id: int, mode: int, data: Any, buffers: list[Any], hold: Any
) -> None:
    key = (src, id)
    try:
        f, args, kwargs = _serialize.loads_call(data, buffers)
    except BaseException as error:
        executor.started(src, id)
        _answer_error(executor, key, mode, error)
        return
    # The caller of this function still has the list: the memory goes with the arguments alone.
    buffers.clear()
    del data, buffers, hold
    try:
        value, running = _call(executor, key, f, args, kwargs)
    except _NotWanted:
        return
    except BaseException as error:
        del f, args, kwargs
        _answer_error(executor, key, mode, error)
        return
    del f, args, kwargs
    _answer(executor, key, mode, value, running)


class _NotWanted(BaseException):
    """A call was cancelled before it began."""


def _call(
    executor: _core.Executor, key: tuple[int, int], f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """Calls a function; what goes on as a coroutine is taken up before the call could miss an interrupt."""
    running = value = None
    run = f
    if kwargs and _otel.KEY in kwargs:
        run = _otel.within(f, kwargs)
    try:
        try:
            # Nothing comes between this and the call itself, lest another one start first.
            if (begun := executor.begin(key)) is not True:
                if begun is not None:
                    raise _NotWanted
                _imports.load("_trace").note_name(key, f, args)
            if _recording.on:
                _recording.begin(key, f, args)
            value = run(*args, **kwargs)
            if value is not None and isinstance(value, types.CoroutineType):
                running = _take_up(key)
        finally:
            executor.end(key)
            if _recording.on and running is None:
                _recording.end(key, sys.exc_info()[1])
            if _lines.begun:
                _lines.end_call()
    except BaseException:
        _discard(running, value)
        raise
    return value, running


def _take_up(key: tuple[int, int]) -> _loop.Running:
    """Takes up a call that goes on as a coroutine."""
    running: _loop.Running = _imports.load("_loop").Running(key)
    return running


def _discard(running: _loop.Running | None, value: Any) -> None:
    """Lets go of a coroutine that is not to go on."""
    if running is not None:
        running.discard()
    if isinstance(value, types.CoroutineType):
        value.close()


def _answer_value(executor: _core.Executor, key: tuple[int, int], mode: int, value: Any) -> None:
    try:
        if executor.answer_plain(key, mode, value):
            return
        is_dumped = type(value) is _batches.Dumped
        dumped = value.parts if is_dumped else _serialize.dumps(value, root="result")
        del value
        data, buffers, refs = dumped
        executor.answer(*key, mode, _VALUE, data, [b.raw() for b in buffers] if buffers else [], refs)
    except BaseException as error:
        _answer_error(executor, key, mode, error)


def _answer_error(executor: _core.Executor, key: tuple[int, int], mode: int, error: BaseException) -> None:
    if _interrupts.leaving() and threading.current_thread() is threading.main_thread():
        raise error
    if mode == _DO:
        print_error(error)
    try:
        data, buffers, refs = dump_exception(error, _core.me())
        executor.answer(*key, mode, _ERROR, data, [b.raw() for b in buffers], refs)
    except BaseException:
        # Nobody can be answered any more: the process is ending.
        return


def print_error(error: BaseException) -> None:
    """Prints an error that nobody waits for, without ever raising one."""
    try:
        with _printing, _interrupts.staying():
            sys.stderr.write(format_traceback(error))
            sys.stderr.flush()
    except BaseException:
        return


def await_printed() -> None:
    """Waits until the error is out that is being printed, if there is one."""
    if _printing.acquire(timeout=PRINT_SECONDS):
        _printing.release()


def _run_local(executor: _core.Executor, id: int) -> None:
    call = _refs.take_local_call(id)
    key = (_core.me(), id)
    if call is None:
        executor.started(*key)
        return
    future, f, args, kwargs = call
    del call
    try:
        value, running = _call(executor, key, f, args, kwargs)
    except _NotWanted:
        return
    except BaseException as error:
        del f, args, kwargs
        _refs.finish_local_call(future, None, error)
        return
    del f, args, kwargs
    if running is not None:
        running.run(
            value,
            lambda result: _refs.finish_local_call(future, result, None),
            lambda error: _refs.finish_local_call(future, None, error),
        )
        return
    _refs.finish_local_call(future, value, None)
