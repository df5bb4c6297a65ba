"""Calls to whichever worker of a pool is free: it is taken, called, and put back once the call has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from . import _calls, _core, _ends, _refs, _serialize
from ._abstract_pool import AbstractWorkerPool
from ._refs import Future


def remotecall(f: Callable[..., Any], pool: AbstractWorkerPool, args: Any, kwargs: Any) -> Future:
    """Calls a function on a worker of a pool, once one is free; returns the future."""
    return _start(f, pool, lambda sent, pid: _calls._remotecall(sent, pid, args, kwargs))


def remote_do(f: Callable[..., Any], pool: AbstractWorkerPool, args: Any, kwargs: Any) -> None:
    """Calls a function on a worker of a pool, once one is free, and hears nothing of it but its end."""
    _start(f, pool, lambda sent, pid: _calls._remotecall(_calls._printing, pid, (sent, args, kwargs), {}))


def _start(
    f: Callable[..., Any], pool: AbstractWorkerPool, call: Callable[[Callable[..., Any], int], Future]
) -> Future:
    _calls._check_callable(f)
    pid = pool.take()
    try:
        future = call(pool._prepare(f, pid), pid)
    except BaseException:
        pool.put(pid)
        raise
    _ends.watch(future, lambda: pool._put_later(pid))
    return future


def remotecall_fetch(f: Callable[..., Any], pool: AbstractWorkerPool, args: Any, kwargs: Any) -> Any:
    """Calls a function on a worker of a pool, once one is free, and waits for its value."""
    _calls._check_callable(f)
    pid = pool.take()
    call = _Call()
    try:
        call.send(pool._prepare(f, pid), pid, args, kwargs)
        call.wait()
    except BaseException:
        if call.is_under_way():
            # Ctrl-C: the call goes on, and the worker is free once it has ended.
            call.then(lambda: pool._put_later(pid))
        else:
            pool.put(pid)
        raise
    pool.put(pid)
    return call.value()


class _Call:
    """A call whose answer comes in one message, and whose end can be heard of by someone else."""

    def __init__(self) -> None:
        self._queue = _core.Queue()
        self._future: Future | None = None
        self._outcome: _core.Outcome | None = None

    def send(self, f: Callable[..., Any], pid: int, args: Any, kwargs: Any) -> None:
        """Makes the call."""
        if pid == _core.me():
            self._future = _refs.call_here(f, args, kwargs)
            return
        _calls._send(self._send_to_queue, pid, f, args, kwargs)

    def _send_to_queue(self, pid: int, data: Any, buffers: list[Any], refs: list[Any]) -> int:
        return _core.call_queue(pid, data, buffers, refs, self._queue, 0)

    def wait(self) -> None:
        """Waits for the end of the call."""
        if self._future is not None:
            self._future.wait()
        else:
            self._outcome = self._queue.wait()[0][1]

    def is_under_way(self) -> bool:
        """Whether the call has been made, and not been seen to end."""
        if self._future is not None:
            return not self._future._done
        return self._outcome is None and self._queue.expects()

    def value(self) -> Any:
        """The value of the call, which has ended."""
        if self._future is not None:
            return self._future.fetch()
        outcome = self._outcome
        assert outcome is not None
        if outcome.status == _refs.VALUE:
            return _serialize.loads(outcome.data, outcome.buffers)
        raise _refs.error_of(outcome)

    def then(self, act: Callable[[], None]) -> None:
        """Has something done once the call has ended, on a thread of its own."""

        def follow() -> None:
            try:
                self.wait()
                act()
            except Exception as error:
                _ends.log(error)

        threading.Thread(target=follow, name="pydist-pool-call", daemon=True).start()
