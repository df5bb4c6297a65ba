"""Calling functions on other processes."""

from __future__ import annotations

import functools
import itertools
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from . import _core, _function_cache, _log, _otel, _refs, _serialize, _session
from ._abstract_pool import AbstractWorkerPool
from ._refs import Future

T = TypeVar("T")

_turns = itertools.count()
_modules = sys.modules


def _dump(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, list[Any], list[Any]]:
    _check_callable(f)
    data, buffers, refs = _serialize.dumps_call(f, args, kwargs)
    return data, [b.raw() for b in buffers] if buffers else [], refs


def _send(send: Callable[..., T], pid: int, f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Pickles a call and sends it; a process that knows the function already is sent its key."""
    _check_callable(f)
    if _log.calls:
        _log.call(f, pid)
    (data, buffers, refs), sending = _function_cache.dumps_call(f, pid, args, kwargs)
    if sending is None:
        result = send(pid, data, [b.raw() for b in buffers] if buffers else [], refs)
    elif sending.defines and send is _core.call_fetch:
        result = _fetch_defining(pid, (data, buffers, refs), sending)  # type: ignore[assignment]
    else:
        with sending:
            result = send(pid, data, [b.raw() for b in buffers] if buffers else [], refs)
    return result


def _fetch_defining(pid: int, dumped: _serialize.Dumped, sending: _function_cache.Sending) -> _core.Outcome:
    """Does what `_core.call_fetch` does, but says that the function has been sent before the call ends."""
    data, buffers, refs = dumped
    queue = _core.Queue()
    with sending:
        call = _core.call_queue(pid, data, [b.raw() for b in buffers], refs, queue, 0)
    try:
        while True:
            for _, outcome in queue.wait():
                return outcome
    except BaseException:
        _core.abandon(call)
        raise


def _where(where: Any) -> int:
    if isinstance(where, str) and where == "any":
        return pick_worker()
    _session.ensure_started()
    return _session.as_pid(where)


def pick_worker() -> int:
    """The worker whose turn it is."""
    from ._cluster import shared_workers

    _session.ensure_started()
    pids = shared_workers() or [1]
    return pids[next(_turns) % len(pids)]


def _is_pool(where: Any) -> bool:
    return type(where) is not int and isinstance(where, AbstractWorkerPool)


def remotecall(f: Callable[..., Any], where: Any, /, *args: Any, **kwargs: Any) -> Future:
    """Calls a function on a process and returns at once.

    Parameters:
        f: any callable; one that is not importable there is sent by value.
        where: the id of a process, or a pool, whose first free worker is taken, and put back at the end.
        args: passed to `f`.
        kwargs: passed to `f`.

    Returns:
        A `Future` of the value, which stays with the process until it is fetched.

    Raises:
        ValueError: there is no such process.
        ProcessExitedException: it has gone.
        NoWorkersError: every worker of the pool has gone.
        pickle.PicklingError: `f` or an argument cannot be pickled; the message names the path to it.

    Distributed.jl: `remotecall`.

    >>> import pydist as d
    >>> d.remotecall(pow, d.workers()[0], 2, 5).fetch()
    32
    """
    if "opentelemetry.trace" in _modules:
        kwargs.update(_otel.carried())
    if not kwargs:
        ref = _core.plain_future(f, where, args)
        if ref is not None:
            return _sync.note(_refs.wrap(ref))
    return _sync.note(_remotecall(f, where, args, kwargs))


def _remotecall(f: Callable[..., Any], where: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future:
    if _is_pool(where):
        return _pool_calls.remotecall(f, where, args, kwargs)
    pid = _where(where)
    if pid == _core.me():
        _check_callable(f)
        return _refs.call_here(f, args, kwargs)
    return _refs.wrap(_send(_core.call_future, pid, f, args, kwargs))


def same_call(f: Callable[..., Any], args: tuple[Any, ...]) -> Callable[[int], Future]:
    """Makes one call on each process it is given: pickled once, with one copy of large buffers for all."""
    sent: tuple[bytes, _core.Shared] | None = None
    kwargs = _otel.carried()

    def call(pid: int) -> Future:
        nonlocal sent
        if pid == _core.me():
            return _remotecall(f, pid, args, dict(kwargs))
        if sent is None:
            data, buffers, refs = _dump(f, args, kwargs)
            if refs:  # what a future pickles to depends on whether its value has come
                return _remotecall(f, pid, args, dict(kwargs))
            sent = data, _core.share(buffers)
        return _refs.wrap(_core.call_future(pid, *sent, []))

    return call


def _check_callable(f: Any) -> None:
    if not callable(f):
        raise TypeError(f"the first argument must be callable, not {type(f).__name__}")


def remotecall_fetch(f: Callable[..., T], where: Any, /, *args: Any, **kwargs: Any) -> T:
    """Calls a function on a process and waits for its value, in one message each way.

    Parameters:
        f: any callable.
        where: the id of a process, or a pool of workers.
        args: passed to `f`.
        kwargs: passed to `f`.

    Returns:
        What `f` returns.

    Raises:
        RemoteException: what `f` raised, as a subclass of its class too.
        ValueError: there is no such process.
        ProcessExitedException: the process has gone, or goes meanwhile.
        pickle.PicklingError: `f` or an argument cannot be pickled.

    Distributed.jl: `remotecall_fetch`.

    >>> import pydist as d
    >>> d.remotecall_fetch(sorted, d.workers()[0], [3, 1, 2], reverse=True)
    [3, 2, 1]
    """
    if "opentelemetry.trace" in _modules:
        kwargs.update(_otel.carried())
    if not kwargs:
        answer = _core.plain_fetch(f, where, args)
        if answer is not None:
            got: T = answer[0] if type(answer) is tuple else _value_of(answer)  # type: ignore[arg-type]
            return got
    if _is_pool(where):
        fetched: T = _pool_calls.remotecall_fetch(f, where, args, kwargs)
        return fetched
    pid = _where(where)
    if pid == _core.me():
        _check_callable(f)
        here: T = _refs.call_here(f, args, kwargs).fetch()
        return here
    value: T = _value_of(_send(_core.call_fetch, pid, f, args, kwargs))
    return value


def _value_of(outcome: _core.Outcome) -> Any:
    if outcome.status == _refs.VALUE:
        return _serialize.loads(outcome.data, outcome.buffers)
    raise _refs.error_of(outcome)


def remotecall_wait(f: Callable[..., Any], where: Any, /, *args: Any, **kwargs: Any) -> Future:
    """Calls a function on a process and waits until it has finished; the value stays there.

    Parameters:
        f: any callable.
        where: the id of a process, or a pool of workers.
        args: passed to `f`.
        kwargs: passed to `f`.

    Returns:
        The `Future` of the value.

    Raises:
        RemoteException: what `f` raised.
        ValueError: there is no such process.
        ProcessExitedException: the process has gone, or goes meanwhile.

    Distributed.jl: `remotecall_wait`.

    >>> import pydist as d
    >>> d.remotecall_wait(len, d.workers()[0], "abc").isready()
    True
    """
    kwargs.update(_otel.carried())
    future = _remotecall(f, where, args, kwargs)
    future.wait()
    if future._failed():
        future.fetch()
    return future


def remote_do(f: Callable[..., Any], where: Any, /, *args: Any, **kwargs: Any) -> None:
    """Calls a function on a process and hears nothing of it; an error is printed there.

    Parameters:
        f: any callable.
        where: the id of a process, or a pool of workers.
        args: passed to `f`.
        kwargs: passed to `f`.

    Raises:
        ValueError: there is no such process.
        ProcessExitedException: it has gone.
        pickle.PicklingError: `f` or an argument cannot be pickled.

    Distributed.jl: `remote_do`.

    >>> import pydist as d
    >>> d.remote_do(len, d.workers()[0], "abc")
    """
    if "opentelemetry.trace" in _modules:
        kwargs.update(_otel.carried())
    if not kwargs and _core.plain_do(f, where, args):
        return
    if _is_pool(where):
        _pool_calls.remote_do(f, where, args, kwargs)
        return
    pid = _where(where)
    if pid == _core.me():
        _check_callable(f)
        carried = {_otel.KEY: kwargs.pop(_otel.KEY)} if _otel.KEY in kwargs else {}
        _refs.call_here(_printing, (f, args, kwargs), carried)
        return
    _send(_core.call_do, pid, f, args, kwargs)


def _printing(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from ._executor import print_error

    async def finish(coroutine: Any) -> None:
        try:
            await coroutine
        except BaseException as error:
            print_error(error)

    try:
        value = f(*args, **kwargs)
    except BaseException as error:
        print_error(error)
        return None
    return finish(value) if isinstance(value, types.CoroutineType) else None


def remote(f: Callable[..., T], pool: AbstractWorkerPool | Iterable[int] | None = None) -> Callable[..., T]:
    """A function that runs another on a free worker and returns its value.

    Parameters:
        f: any callable.
        pool: the pool from which a worker is taken for each call, or the ids of its workers; by default the
            one that is the default pool when the call is made.

    Returns:
        A function with the parameters of `f`. It waits for a free worker, and raises what `remotecall_fetch`
        raises.

    Distributed.jl: `remote`.

    >>> import pydist as d
    >>> d.remote(len)("abc")
    3
    """
    _check_callable(f)
    if pool is not None and not isinstance(pool, AbstractWorkerPool):
        pool = _pools.WorkerPool(pool)

    @functools.wraps(f, updated=())
    def call(*args: Any, **kwargs: Any) -> T:
        return remotecall_fetch(f, _pools.default_worker_pool() if pool is None else pool, *args, **kwargs)

    return call


from . import _pool_calls, _pools, _sync  # noqa: E402 - they make calls themselves
