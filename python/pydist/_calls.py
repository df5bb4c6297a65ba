"""Calling functions on other processes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, TypeVar

from . import _core, _refs, _serialize, _session
from ._refs import Future

T = TypeVar("T")

_turns = itertools.count()


def _dump(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, list[Any], list[Any]]:
    if not callable(f):
        raise TypeError(f"the first argument must be callable, not {type(f).__name__}")
    data, buffers, refs = _serialize.dumps_call(f, args, kwargs)
    return data, [b.raw() for b in buffers] if buffers else [], refs


def _where(where: Any) -> int:
    if where == "any":
        return pick_worker()
    _session.ensure_started()
    return _session.as_pid(where)


def pick_worker() -> int:
    """The worker whose turn it is."""
    from ._cluster import workers

    pids = workers()
    return pids[next(_turns) % len(pids)]


def remotecall(f: Callable[..., Any], where: int, /, *args: Any, **kwargs: Any) -> Future:
    """Calls a function on a process and returns at once.

    Parameters:
        f: any callable; one that is not importable there is sent by value.
        where: the id of a process.
        args: passed to `f`.
        kwargs: passed to `f`.

    Returns:
        A `Future` of the value, which stays with the process until it is fetched.

    Raises:
        ValueError: there is no such process.
        ProcessExitedException: it has gone.
        pickle.PicklingError: `f` or an argument cannot be pickled; the message names the path to it.

    Distributed.jl: `remotecall`.

    >>> import pydist as d
    >>> d.remotecall(pow, d.workers()[0], 2, 5).fetch()
    32
    """
    pid = _where(where)
    if pid == _core.me():
        _check_callable(f)
        return _refs.call_here(f, args, kwargs)
    data, buffers, refs = _dump(f, args, kwargs)
    future = _refs.wrap(_core.call_future(pid, data, buffers, refs))
    return future


def _check_callable(f: Any) -> None:
    if not callable(f):
        raise TypeError(f"the first argument must be callable, not {type(f).__name__}")


def remotecall_fetch(f: Callable[..., T], where: int, /, *args: Any, **kwargs: Any) -> T:
    """Calls a function on a process and waits for its value, in one message each way.

    Parameters:
        f: any callable.
        where: the id of a process.
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
    pid = _where(where)
    if pid == _core.me():
        _check_callable(f)
        here: T = _refs.call_here(f, args, kwargs).fetch()
        return here
    data, buffers, refs = _dump(f, args, kwargs)
    outcome = _core.call_fetch(pid, data, buffers, refs)
    if outcome.status == _refs.VALUE:
        value: T = _serialize.loads(outcome.data, outcome.buffers)
        return value
    raise _refs.error_of(outcome)


def remotecall_wait(f: Callable[..., Any], where: int, /, *args: Any, **kwargs: Any) -> Future:
    """Calls a function on a process and waits until it has finished; the value stays there.

    Parameters:
        f: any callable.
        where: the id of a process.
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
    future = remotecall(f, where, *args, **kwargs)
    future.wait()
    if future._failed():
        future.fetch()
    return future


def remote_do(f: Callable[..., Any], where: int, /, *args: Any, **kwargs: Any) -> None:
    """Calls a function on a process and hears nothing of it; an error is printed there.

    Parameters:
        f: any callable.
        where: the id of a process.
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
    pid = _where(where)
    if pid == _core.me():
        _check_callable(f)
        _refs.call_here(_printing, (f, args, kwargs), {})
        return
    data, buffers, refs = _dump(f, args, kwargs)
    _core.call_do(pid, data, buffers, refs)


def _printing(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    from ._executor import print_error

    try:
        f(*args, **kwargs)
    except BaseException as error:
        print_error(error)


def remote(f: Callable[..., T], pool: Any = None) -> Callable[..., T]:
    """A function that runs another on a free worker and returns its value.

    Parameters:
        f: any callable.
        pool: the ids of the workers to choose from; all workers by default.

    Returns:
        A function with the parameters of `f`.

    Distributed.jl: `remote`.

    >>> import pydist as d
    >>> d.remote(len)("abc")
    3
    """
    _check_callable(f)
    pids = None if pool is None else [_session.as_pid(pid) for pid in pool]

    @functools.wraps(f, updated=())
    def call(*args: Any, **kwargs: Any) -> T:
        pid = pick_worker() if pids is None else pids[next(_turns) % len(pids)]
        return remotecall_fetch(f, pid, *args, **kwargs)

    return call
