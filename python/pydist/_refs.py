"""Futures: values that live on some process and that any process can wait for."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import _core, _errors, _serialize, _session, _timeouts
from ._errors import FutureAlreadySetError, dump_exception, load_exception, local_exception
from ._reference import Reference

if TYPE_CHECKING:
    from ._channels import RemoteChannel

Waitable = TypeVar("Waitable", "Future", "RemoteChannel")

VALUE, ERROR, CANCELLED, YES, NO, ALREADY_SET, UNKNOWN_REF, EXITED, CLOSED, LOST = range(10)
GONE = (EXITED, LOST)

# Those that have been passed on, or have come from elsewhere: others stay out, since the table never shrinks.
_futures: weakref.WeakValueDictionary[tuple[int, int], Future] = weakref.WeakValueDictionary()
_futures_lock = threading.RLock()
_locks_lock = threading.RLock()
_local_calls: dict[int, tuple[Future, Any, tuple[Any, ...], dict[str, Any]]] = {}


class Future(Reference):
    """A value that is or will be on some process; it is set once.

    `remotecall` returns one; `Future(pid)` makes an empty one, for `put`.

    Parameters:
        pid: the process that keeps the value; this one by default.

    Raises:
        ValueError: there is no such process.
        ProcessExitedException: the process has gone.

    Two futures are equal where they name the same value, whatever process they are on.

    Distributed.jl: `Future`.

    >>> import pydist as d
    >>> future = d.Future()
    >>> future.put(42).fetch()
    42
    """

    __slots__ = ("__weakref__", "_done", "_exported", "_outcome", "_own_lock", "_raw")

    _own_lock: threading.RLock
    _outcome: tuple[Any, BaseException | None]

    def __init__(self, pid: int | None = None) -> None:
        _session.ensure_started()
        self._init(_core.create_future(_core.me() if pid is None else _session.as_pid(pid)))

    def _init(self, ref: _core.Ref) -> None:
        self._ref = ref
        self._done = False
        self._exported = False
        self._raw: _core.Outcome | None = None

    @property
    def _lock(self) -> threading.RLock:
        """Its lock, which few futures need: making one is dear beside a short call."""
        try:
            return self._own_lock
        except AttributeError:
            with _locks_lock:
                if not hasattr(self, "_own_lock"):
                    self._own_lock = threading.RLock()
                return self._own_lock

    def __repr__(self) -> str:
        state = "done" if self._done else "pending"
        return f"<Future {self.whence}.{self.id} on process {self.where}, {state} here>"

    def _repr_html_(self) -> str:
        from . import _html

        facts: dict[str, object] = {"process": self.where, "state": "pending here"}
        if self._done:
            value, error = self._outcome
            facts["state"] = "done" if error is None else "failed"
            facts["value" if error is None else "error"] = value if error is None else error
        return _html.card(f"Future {self.whence}.{self.id}", facts)

    def fetch(self, timeout: float | None = None) -> Any:
        """Waits for the value and returns it; it is kept here, and the owner lets go of it.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the time is over; nothing has changed.
            RemoteException: what the call raised, as a subclass of its class too.
            ProcessExitedException: the process that was to set the value is gone.
            CancelledError: the call was cancelled.

        Distributed.jl: `fetch`.
        """
        if _session._forked:
            _session.refuse_in_forked_child()
        if timeout is not None:
            timeout = _timeouts.seconds(timeout)
        if not self._done:
            if self._raw is None and not self._ref.fetch(timeout, self):
                self._await_other_thread(timeout)
            elif not self._done:
                self._load()
        value, error = self._outcome
        if error is not None:
            raise error.with_traceback(None)
        return value

    def wait(self, timeout: float | None = None) -> Future:
        """Waits until there is a value, and returns the future; the value stays where it is.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the time is over; nothing has changed.
            ProcessExitedException: the process that was to set the value is gone.

        Distributed.jl: `wait`.
        """
        timeout = _timeouts.seconds(timeout)
        if not self._done:
            self._ref.wait(timeout)
        return self

    def isready(self) -> bool:
        """Whether there is a value; where this process does not know, its owner's core is asked.

        Raises:
            ProcessExitedException: the owner is gone.

        Distributed.jl: `isready`.
        """
        return self._done or self._ref.isready()

    def put(self, value: Any) -> Future:
        """Sets the value, at its owner and here; returns the future.

        Raises:
            RuntimeError: it has a value.
            pickle.PicklingError: the value cannot be pickled.
            ProcessExitedException: the owner is gone.

        Distributed.jl: `put!`.
        """
        with self._lock:
            if self._done:
                raise FutureAlreadySetError(f"{self!r} has a value already")
            if self.where == _core.me():
                if self._ref.isready():
                    raise FutureAlreadySetError(f"{self!r} has a value already")
                # Another process may have put a value since.
                if not self._settle_local(value, None):
                    raise FutureAlreadySetError(f"{self!r} has a value already")
                return self
            data, buffers, refs = _serialize.dumps(value)
            done = self._ref.put(data, [b.raw() for b in buffers], refs)
            if not done:
                raise FutureAlreadySetError(f"{self!r} has a value already")
            self._outcome = (value, None)
            self._done = True
        return self

    def cancel(self) -> bool:
        """Cancels the call that is to set the value: it never starts, or is interrupted.

        Returns:
            Whether it took effect; if so, `fetch` raises `CancelledError`.

        Raises:
            ProcessExitedException: the owner is gone.
        """
        if self._done:
            return False
        if self.where == _core.me():
            _local_calls.pop(self.id, None)
        return self._ref.cancel()

    def cancel_call(self) -> None:
        """Cancels the call of this process that is to set the value, without waiting for word of it."""
        if self.where == _core.me():
            self.cancel()
        elif self.whence == _core.me():
            _core.cancel_fetch(self.id)

    def _failed(self) -> bool:
        """Whether the call behind it, which has ended, raised."""
        return self._outcome[1] is not None if self._done else self._ref.has_failed()

    def __getitem__(self, index: Any) -> Any:
        """Item `index` of the value; where the value is elsewhere, that item alone is moved."""
        if self._done or self.where == _core.me():
            return self.fetch()[index]
        from ._calls import remotecall_fetch

        return remotecall_fetch(_item, self.where, self, index)

    def __await__(self) -> Generator[Any, None, Any]:
        from . import _aio

        if not self._done:
            yield from _aio.arrival(self).__await__()
        return self.fetch()

    def __reduce__(self) -> tuple[Any, ...]:
        ref = (self.where, self.whence, self.id)
        if not _serialize.dumping():
            return _invalid, (self.whence, self.id)
        _register(self)
        pin: _core.Ref | None = None
        with self._lock:
            if self.where == _core.me():
                self._export()
            else:
                pin = self._ref.pin()
                if pin is None:
                    return _with_outcome, (ref, *self._carried())
        _serialize.note_ref(*ref, pin)
        return _rebuild, ref

    def _carried(self) -> tuple[Any, Any]:
        try:
            return self.fetch(), None
        except BaseException as error:
            return None, (*dump_exception(error, _core.me())[:2],)

    def accept(self, outcome: _core.Outcome) -> None:
        """Keeps the value that a wait has brought; it may be here already, or never come."""
        if outcome.status not in (YES, *GONE):
            self._raw = outcome

    def _await_other_thread(self, timeout: float | None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while not self._done:
            if self._raw is not None:
                self._load()
            elif until is not None and time.monotonic() > until:
                raise TimeoutError(f"no value after {timeout} s")
            else:
                time.sleep(0.0005)

    def _load(self) -> None:
        with self._lock:
            raw = self._raw
            if self._done or raw is None:
                return
            self._outcome = load_outcome(raw)
            self._done = True
            self._raw = None

    def _settle_local(self, value: Any, error: BaseException | None) -> bool:
        """Sets the value of a future of this process; False where it has one."""
        with self._lock:
            if not self._ref.put_local():
                return False
            self._outcome = (value, error)
            self._done = True
            if self._exported:
                self._hand_over()
        return True

    def _export(self) -> None:
        """Other processes may ask for the value from now on: the core gets its bytes once it is there."""
        if self._exported:
            return
        self._exported = True
        if self._done:
            self._hand_over()

    def _hand_over(self) -> None:
        value, error = self._outcome
        status, (data, buffers, refs) = _dump_outcome(value, error)
        _core.exported(self.whence, self.id, status, data, [b.raw() for b in buffers], refs)


def _dump_outcome(value: Any, error: BaseException | None) -> tuple[int, _serialize.Dumped]:
    if error is None:
        try:
            return VALUE, _serialize.dumps(value)
        except BaseException as failure:
            error = failure
    return ERROR, dump_exception(error, _core.me())


class InvalidFuture:
    """What a future becomes that was pickled outside of the cluster: any use raises ValueError."""

    def __init__(self, whence: int, id: int) -> None:
        self.__dict__["_name"] = f"{whence}.{id}"

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            f"the future {self.__dict__.get('_name', '?')} was pickled outside of its cluster "
            "and refers to nothing; send futures in arguments, results and channels of pydist"
        )

    def __getitem__(self, index: Any) -> Any:
        return self.__getattr__("[]")

    def __await__(self) -> Any:
        return self.__getattr__("await")

    def __reduce__(self) -> tuple[Any, ...]:
        whence, id = self.__dict__["_name"].split(".")
        return _invalid, (int(whence), int(id))

    def __repr__(self) -> str:
        return f"<invalid Future {self.__dict__.get('_name', '?')}>"


def _invalid(whence: int, id: int) -> InvalidFuture:
    return InvalidFuture(whence, id)


def _item(future: Future, index: Any) -> Any:
    return future.fetch()[index]


def wrap(ref: _core.Ref) -> Future:
    """The future of a handle that the core has just made."""
    future = Future.__new__(Future)
    future._ref = ref
    future._done = future._exported = False
    future._raw = None
    return future


def _register(future: Future) -> None:
    """Has a future found again by what names it: one that is passed on may come back."""
    with _futures_lock:
        _futures[future.whence, future.id] = future


def _rebuild(owner: int, whence: int, id: int) -> Any:
    if not _serialize.loading():
        return InvalidFuture(whence, id)
    with _futures_lock:
        known = _futures.get((whence, id))
        if known is not None:
            return known
        future = _futures[whence, id] = wrap(_core.reference(owner, whence, id))
        # Others hold it: a value set here must outlive the objects of this process.
        future._exported = owner == _core.me()
        return future


def _with_outcome(ref: tuple[int, int, int], value: Any, error: Any) -> Any:
    future = _rebuild(*ref)
    if isinstance(future, Future) and not future._done:
        with future._lock:
            future._outcome = (value, None if error is None else load_exception(*error))
            future._done = True
    return future


def load_outcome(outcome: _core.Outcome) -> tuple[Any, BaseException | None]:
    """The value of an outcome of the core, or the error to raise."""
    if outcome.status == VALUE:
        try:
            return _serialize.loads(outcome.data, outcome.buffers), None
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return None, error
    return None, error_of(outcome)


def error_of(outcome: _core.Outcome) -> BaseException:
    """The error that an outcome without a value stands for."""
    if outcome.status == ERROR:
        return load_exception(outcome.data, outcome.buffers)
    if outcome.status == CANCELLED:
        return _errors.CancelledError("the call was cancelled")
    if outcome.status in GONE:
        from ._cluster import process_exited

        reason = bytes(outcome.data).decode("utf-8", "replace")
        return process_exited(outcome.pid, reason, outcome.status == LOST)
    return ValueError("the value of this reference is gone: its owner was told that nobody holds it")


def call_here(f: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future:
    """Queues a call to this process itself, without pickling."""
    ref = _core.local_call()
    future = wrap(ref)
    _local_calls[ref.id] = (future, f, args, kwargs)
    ref.queue()
    return future


def take_local_call(id: int) -> tuple[Future, Any, tuple[Any, ...], dict[str, Any]] | None:
    """The call to this process itself of that number, unless it was cancelled."""
    return _local_calls.pop(id, None)


def finish_local_call(future: Future, value: Any, error: BaseException | None) -> None:
    """A call to this process itself has ended."""
    if error is not None:
        error = local_exception(error, _core.me())
        if _session.failed is not None:
            _session.failed.append(future.id)
    if future._ref.finish():
        future._settle_local(value, error)


def export(whence: int, id: int) -> None:
    """Another process asks for a value that is a Python object here."""
    future = _futures.get((whence, id))
    if future is not None:
        with future._lock:
            future._export()


def fetch(x: Any) -> Any:
    """The value of a future, or the first item of a channel; of a callable, its value on some worker.

    Parameters:
        x: a `Future`, a `RemoteChannel` or a callable without parameters; anything else is itself.

    Raises:
        What `fetch` of a `Future` or a `RemoteChannel` raises.

    Distributed.jl: `fetch`, and `@fetch` for a callable.

    >>> import pydist as d
    >>> d.fetch(7)
    7
    """
    from ._channels import RemoteChannel

    if isinstance(x, Future | RemoteChannel):
        return x.fetch()
    if isinstance(x, InvalidFuture):
        return x.fetch
    if callable(x):
        from . import _calls

        return _calls.remotecall_fetch(x, "any")
    return x


@overload
def wait(x: Waitable, timeout: float | None = None) -> Waitable: ...
@overload
def wait(x: Iterable[Waitable], timeout: float | None = None) -> list[Waitable]: ...
def wait(x: Any, timeout: float | None = None) -> Any:
    """Waits until a future has a value, or a channel an item; for several, until all have.

    Parameters:
        x: the future or channel, or an iterable of them.
        timeout: seconds to wait, for several together; None for as long as it takes.

    Returns:
        The future or channel; for several a list of them.

    Raises:
        TimeoutError: the time is over; nothing has changed.
        ProcessExitedException: the process that was to set the value, or that keeps the channel, is gone.
        ChannelClosedError: the channel is closed and empty.
        TypeError: `x` is neither.

    Distributed.jl: `wait`.

    >>> import pydist as d
    >>> futures = [d.spawn(abs, n) for n in (-1, -2)]
    >>> [future.fetch() for future in d.wait(futures)]
    [1, 2]
    """
    from ._channels import RemoteChannel

    one = isinstance(x, Future | RemoteChannel | InvalidFuture)
    if not one and not isinstance(x, list | tuple | set | frozenset | Iterator):
        raise TypeError(f"wait() takes a Future or a RemoteChannel, or several, not {type(x).__name__}")
    several = [x] if one else list(x)
    for each in several:
        if not isinstance(each, Future | RemoteChannel | InvalidFuture):
            raise TypeError(
                f"wait() takes a Future or a RemoteChannel, or several, not {type(each).__name__}"
            )
    limit = _timeouts.seconds(timeout)
    until = None if limit is None else time.monotonic() + limit
    for each in several:
        each.wait(timeout if one or until is None else max(0.0, until - time.monotonic()))
    return x if one else several


def as_completed(futures: Iterable[Future], timeout: float | None = None) -> Iterator[Future]:
    """Yields futures as they finish, whether with a value or with an error.

    Parameters:
        futures: the futures; one that is there twice is yielded once.
        timeout: seconds for all of them together; None for as long as it takes.

    Raises:
        TimeoutError: the time is over; the message says how many have not finished.

    >>> import pydist as d
    >>> future = d.Future().put(1)
    >>> [f.fetch() for f in d.as_completed([future])]
    [1]
    """
    waiting = dict(enumerate(dict.fromkeys(futures)))
    for future in waiting.values():
        if isinstance(future, InvalidFuture):
            future.wait()
        if not isinstance(future, Future):
            raise TypeError(f"as_completed() takes futures, not {type(future).__name__}")
    return _as_completed(waiting, _timeouts.seconds(timeout))


def _as_completed(waiting: dict[int, Future], timeout: float | None) -> Iterator[Future]:
    until = None if timeout is None else time.monotonic() + timeout
    total = len(waiting)
    for key in [k for k, f in waiting.items() if f._done]:
        yield waiting.pop(key)
    if not waiting:
        return
    queue = _core.Queue()
    watches = {key: future._ref.tell(queue, key, False) for key, future in waiting.items()}
    try:
        while waiting:
            left = None if until is None else max(0.0, until - time.monotonic())
            ready = queue.wait(left)
            if not ready:
                raise TimeoutError(f"{len(waiting)} of {total} futures have not finished after {timeout} s")
            for key, _ in ready:
                watches.pop(key, None)
                if key in waiting:
                    yield waiting.pop(key)
    finally:
        for key, future in waiting.items():
            watch = watches.get(key)
            if watch is not None:
                future._ref.untell(watch)
