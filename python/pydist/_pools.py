"""Pools of workers: `WorkerPool`, `CachingPool`, and the default pool."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from . import _calls, _channels, _core, _free_workers, _log, _plain, _serialize, _session
from ._abstract_channel import AbstractChannel
from ._abstract_pool import AbstractWorkerPool
from ._errors import ChannelClosedError, ProcessExitedException
from ._free_workers import HEAD, FreeWorkers
from ._functions import SentFunction

_numbers = itertools.count(1)
_tickets = itertools.count(1)
_lock = threading.RLock()


class _Served(AbstractChannel):
    """Keeps the free workers of a pool for the processes that it was sent to, while one of them holds it."""

    def __init__(self, free: FreeWorkers) -> None:
        self.free = free

    def put(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("this channel belongs to a WorkerPool")

    take = fetch = put

    def isready(self, *args: Any, **kwargs: Any) -> bool:
        return self.free.isready()

    def isopen(self) -> bool:
        return True

    def close(self, exc: BaseException | None = None) -> None:
        raise ChannelClosedError("the channel of a WorkerPool cannot be closed")


class WorkerPool(AbstractWorkerPool):
    """A pool that works from every process it is sent to; the process that made it keeps it.

    Workers are handed out first come, first served, the one first that has been free longest. One that dies
    is dropped from the pool. Where a process dies that had taken a worker, that worker is free again. A call
    on a pool that itself waits for a call on the same pool needs a worker more than there are such calls.

    Parameters:
        pids: the ids of the workers; those that have gone are left out.

    Raises:
        ValueError: there is no such process.
        TypeError: an id is no integer.

    Distributed.jl: `WorkerPool`.

    >>> import pydist as d
    >>> pool = d.WorkerPool(d.workers())
    >>> pid = pool.take()
    >>> len(pool) == d.nworkers(), pool.put(pid).isready()
    (True, True)
    >>> d.remotecall_fetch(pow, pool, 2, 5)
    32
    """

    _free: FreeWorkers | None
    _channel: _channels.RemoteChannel | weakref.ref[_channels.RemoteChannel] | None

    def __init__(self, pids: Iterable[int] = ()) -> None:
        self._become(_core_me(), next(_numbers), FreeWorkers(_free_workers.check_pids(pids)), None)

    def _become(
        self,
        owner: int,
        number: int,
        free: FreeWorkers | None,
        channel: _channels.RemoteChannel | None,
    ) -> None:
        self._owner = owner
        self._number = number
        self._free = free
        self._channel = channel

    def push(self, pid: int) -> WorkerPool:
        """Adds a worker, which is free, and returns the pool; one that is in it stays as it is.

        Raises:
            ValueError: there is no such process.
            ProcessExitedException: it has gone; or the owner of the pool has.

        Distributed.jl: `push!`.
        """
        number = _session.as_pid(pid)
        _core.check_pid(number)
        self._ask("push", number)
        return self

    def put(self, pid: int) -> WorkerPool:
        """Puts a worker back that was taken, and returns the pool.

        Raises:
            ValueError: it is not in the pool.
            ProcessExitedException: the owner of the pool has gone.

        Distributed.jl: `put!`.
        """
        self._ask("put", _session.as_pid(pid))
        return self

    def take(self, timeout: float | None = None) -> int:
        """Takes a worker, once one is free, and returns its id; `put` puts it back.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the time is over; nothing has been taken.
            NoWorkersError: every worker of the pool has gone.
            ProcessExitedException: the owner of the pool has.

        Distributed.jl: `take!`.
        """
        holder = (_core.me(), next(_tickets))
        if self._free is not None:
            return self._free.take(holder, timeout)
        future = _calls._remotecall(_serve, self._owner, (*self._name(), "take", holder, timeout), {})
        try:
            pid: int = future.fetch()
        except BaseException:
            if not future._done:
                self._tell("withdraw", holder)
            raise
        return pid

    def wait(self, timeout: float | None = None) -> WorkerPool:
        """Waits until a worker is free, leaves it there, and returns the pool.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the time is over.
            NoWorkersError: every worker of the pool has gone.
            ProcessExitedException: the owner of the pool has.

        Distributed.jl: `wait`.
        """
        self._ask("wait", timeout)
        return self

    def isready(self) -> bool:
        """Whether a worker is free, so that `take` would not wait.

        Raises:
            ProcessExitedException: the owner of the pool has gone.

        Distributed.jl: `isready`.
        """
        return bool(self._ask("isready"))

    def __len__(self) -> int:
        return len(self.workers())

    def workers(self) -> list[int]:
        """The ids of all workers, free or not, sorted.

        Raises:
            ProcessExitedException: the owner of the pool has gone.

        Distributed.jl: `workers`.
        """
        pids: list[int] = self._ask("workers")
        return pids

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WorkerPool):
            return NotImplemented
        return self._owner == other._owner and self._number == other._number

    def __hash__(self) -> int:
        return hash((WorkerPool, self._owner, self._number))

    def __repr__(self) -> str:
        return f"<WorkerPool {self._number} of process {self._owner}>"

    def _repr_html_(self) -> str:
        from . import _html

        facts: dict[str, object] = {"kept by process": self._owner}
        if self._free is not None:
            # That of another process would have to be asked for.
            facts["workers"] = _html.several(self._free.workers())
            facts["one is free"] = "yes" if self._free.isready() else "no"
        return _html.card(f"WorkerPool {self._number}", facts)

    def __reduce__(self) -> tuple[Any, ...]:
        if not _serialize.dumping():
            raise TypeError("a WorkerPool can be sent within its cluster only, not pickled for elsewhere")
        return _rebuild, (self._owner, self._number, self._reference())

    def __copy__(self) -> WorkerPool:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> WorkerPool:
        return self

    def _reference(self) -> _channels.RemoteChannel | None:
        """The channel that keeps the free workers on the owner while other processes hold the pool."""
        if self._free is None:
            assert not isinstance(self._channel, weakref.ref)
            return self._channel
        with _lock:
            kept = self._channel() if isinstance(self._channel, weakref.ref) else None
            if kept is None:
                kept = _channels.keep_custom(_Served(self._free))
                self._channel = weakref.ref(kept)
            return kept

    def _name(self) -> tuple[int, _channels.RemoteChannel | None]:
        assert not isinstance(self._channel, weakref.ref)
        return self._number, self._channel

    def _ask(self, method: str, *args: Any) -> Any:
        if self._free is not None:
            return getattr(self._free, method)(*args)
        return _calls.remotecall_fetch(_serve, self._owner, *self._name(), method, *args)

    def _tell(self, method: str, *args: Any) -> None:
        if self._free is not None:
            getattr(self._free, method)(*args)
            return
        _calls.remote_do(_serve, self._owner, *self._name(), method, *args)

    def _put_later(self, pid: int) -> None:
        self._tell("put", pid)


def _core_me() -> int:
    _session.ensure_started()
    return _core.me()


def _rebuild(owner: int, number: int, channel: _channels.RemoteChannel | None) -> WorkerPool:
    pool = WorkerPool.__new__(WorkerPool)
    free = _free_of(channel) if owner == _core.me() else None
    pool._become(owner, number, free, channel if free is None else None)
    if free is not None and channel is not None:
        pool._channel = weakref.ref(channel)
    return pool


def _free_of(channel: _channels.RemoteChannel | None) -> FreeWorkers:
    """The free workers on this process, which owns them; without a channel those of its default pool."""
    if channel is None:
        pool = default_worker_pool()
        if not isinstance(pool, WorkerPool | CachingPool) or pool._free is None:
            raise TypeError(f"the default pool of process {HEAD}, a {type(pool).__name__}, is its own alone")
        return pool._free
    served = _channels.custom_of(channel)
    assert isinstance(served, _Served)
    return served.free


def _serve(number: int, channel: _channels.RemoteChannel | None, method: str, *args: Any) -> Any:
    """Runs on the owner of a pool: what another process asks of it."""
    if channel is not None or isinstance(default_worker_pool(), WorkerPool | CachingPool):
        return getattr(_free_of(channel), method)(*args)
    pool = default_worker_pool()
    if method == "take":
        return pool.take(args[1])
    result = None if method == "withdraw" else getattr(pool, method)(*args)
    return result if method in ("isready", "workers") else None


class CachingPool(AbstractWorkerPool):
    """A pool that sends a function, with what it captures, once to each worker.

    Functions are told apart by identity, and kept on the workers until `clear()`, or until the pool is gone.
    A change of what a function captures is not seen by workers that have it already.

    Parameters:
        pids: the ids of the workers; those that have gone are left out.

    Raises:
        ValueError: there is no such process.
        TypeError: an id is no integer. Also where the pool is sent: it works on its own process alone.

    Distributed.jl: `CachingPool`.

    >>> import pydist as d
    >>> table = list(range(100_000))
    >>> pool = d.CachingPool(d.workers())
    >>> def look_up(i):
    ...     return table[i]
    >>> [d.remotecall_fetch(look_up, pool, i) for i in (3, 5)]
    [3, 5]
    >>> pool.clear()
    """

    def __init__(self, pids: Iterable[int] = ()) -> None:
        _session.ensure_started()
        self._free = FreeWorkers(_free_workers.check_pids(pids))
        self._functions: dict[int, SentFunction] = {}
        self._sending = threading.Lock()

    def push(self, pid: int) -> CachingPool:
        """Adds a worker, which is free, and returns the pool; one that is in it stays as it is.

        Raises:
            ValueError: there is no such process.
            ProcessExitedException: it has gone.

        Distributed.jl: `push!`.
        """
        number = _session.as_pid(pid)
        _core.check_pid(number)
        self._free.push(number)
        return self

    def put(self, pid: int) -> CachingPool:
        """Puts a worker back that was taken, and returns the pool.

        Raises:
            ValueError: it is not in the pool.

        Distributed.jl: `put!`.
        """
        self._free.put(_session.as_pid(pid))
        return self

    def take(self, timeout: float | None = None) -> int:
        """Takes a worker, once one is free, and returns its id; `put` puts it back.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the time is over; nothing has been taken.
            NoWorkersError: every worker of the pool has gone.

        Distributed.jl: `take!`.
        """
        return self._free.take((_core.me(), next(_tickets)), timeout)

    def wait(self, timeout: float | None = None) -> CachingPool:
        """Waits until a worker is free, leaves it there, and returns the pool.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the time is over.
            NoWorkersError: every worker of the pool has gone.

        Distributed.jl: `wait`.
        """
        self._free.wait(timeout)
        return self

    def isready(self) -> bool:
        """Whether a worker is free, so that `take` would not wait.

        Distributed.jl: `isready`.
        """
        return self._free.isready()

    def __len__(self) -> int:
        return len(self._free.workers())

    def workers(self) -> list[int]:
        """The ids of all workers, free or not, sorted.

        Distributed.jl: `workers`.
        """
        return self._free.workers()

    def clear(self) -> None:
        """Has the workers forget all functions; calls that are under way end as if they had not.

        Distributed.jl: `clear!`.
        """
        with self._sending:
            functions = list(self._functions.values())
            self._functions.clear()
        for function in functions:
            function.forget()

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a CachingPool cannot be sent to another process: send a WorkerPool, or make one there"
        )

    def __repr__(self) -> str:
        return f"<CachingPool of {self.workers()}, {len(self._functions)} functions>"

    def _repr_html_(self) -> str:
        from . import _html

        facts = {
            "workers": _html.several(self.workers()),
            "one is free": "yes" if self.isready() else "no",
            "functions": len(self._functions),
        }
        return _html.card("CachingPool", facts)

    def _sent(self, f: Callable[..., Any]) -> SentFunction:
        with self._sending:
            # The entry keeps the function alive, and with it its id.
            known = self._functions.get(id(f))
            if known is None:
                known = self._functions[id(f)] = SentFunction(f)
            return known

    def _prepare(self, f: Callable[..., Any], pid: int) -> Callable[..., Any]:
        if _plain.name_opcodes(f) is not None:
            return f
        return self._sent(f).on(pid)


_default: AbstractWorkerPool | None = None
_taken_up: set[int] = set()
_ready: set[int] = set()
"""Workers that have run what persists."""


def default_worker_pool() -> AbstractWorkerPool:
    """The pool that `remote` and `pmap` use where none is given.

    Unless another has been set, it is a `WorkerPool` of all workers, which process 1 keeps; with no workers,
    process 1 does the work. Workers that come are added to the default pool of process 1, whichever it is.
    On a worker it is that of process 1.

    Distributed.jl: `default_worker_pool`.

    >>> import pydist as d
    >>> d.workers(d.default_worker_pool()) == d.workers()
    True
    """
    global _default
    me = _core_me()
    with _lock:
        if _default is None:
            pool = WorkerPool.__new__(WorkerPool)
            free = FreeWorkers((), falls_back=True) if me == HEAD else None
            pool._become(HEAD, 0, free, None)
            _default = pool
        if me == HEAD:
            take_up()
        return _default


def set_default_worker_pool(pool: AbstractWorkerPool) -> None:
    """Sets the pool that `remote` and `pmap` use on this process where none is given.

    Parameters:
        pool: the pool. On process 1 workers that come from now on are added to it.

    Raises:
        TypeError: it is no pool.

    Distributed.jl: `default_worker_pool!`.

    >>> import pydist as d
    >>> before = d.default_worker_pool()
    >>> d.set_default_worker_pool(d.CachingPool(d.workers()))
    >>> d.set_default_worker_pool(before)
    """
    global _default
    if not isinstance(pool, AbstractWorkerPool):
        raise TypeError(f"the default pool must be an AbstractWorkerPool, not {type(pool).__name__}")
    _session.ensure_started()
    _core.watch_members()
    with _lock:
        _default = pool
        _taken_up.update(member[0] for member in _core.members())


def is_behind(pool: AbstractWorkerPool) -> bool:
    """Whether this is the default pool of process 1, and a worker that has joined will be added to it."""
    from . import _cluster

    with _lock:
        if pool is not _default or _core.me() != HEAD:
            return False
        return any(pid not in _taken_up for pid in _cluster.shared_workers())


def take_up(ready: Iterable[int] = ()) -> None:
    """Adds the workers that have come, and have run what persists, to the default pool of process 1.

    Parameters:
        ready: workers that have just done so.
    """
    with _lock:
        _ready.update(ready)
        if _default is None or _core.me() != HEAD:
            return
        alive = {member[0] for member in _core.members()}
        new = _ready & alive - _taken_up
        _ready.intersection_update(alive)
        _taken_up.intersection_update(alive)
        _taken_up.update(new)
        for pid in sorted(new):
            try:
                _default.push(pid)
            except ProcessExitedException:
                continue  # It has left again.
            except Exception as error:
                _log.logger().warning("worker %d is not in the default pool: %r", pid, error)
