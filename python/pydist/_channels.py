"""Channels: queues that live in the core of one process and that every process can use."""

from __future__ import annotations

import math
import numbers
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

from . import _core, _refs, _serialize, _session, _timeouts
from ._abstract_channel import AbstractChannel
from ._errors import ChannelClosedError
from ._reference import Reference

CREATE, PUT, TAKE, FETCH, WAIT, IS_READY, IS_OPEN, CLOSE = range(7, 15)
_UNBOUNDED = (1 << 64) - 1

_channels: weakref.WeakValueDictionary[tuple[int, int], RemoteChannel] = weakref.WeakValueDictionary()
_lock = threading.RLock()
_customs: dict[tuple[int, int], AbstractChannel] = {}


class Channel:
    """What the factory of a `RemoteChannel` returns: a first-in, first-out queue of a certain size.

    Parameters:
        size: how many items it holds; 0 hands each item over from putter to taker, `math.inf` has no limit.

    Raises:
        TypeError: the size is no number.
        ValueError: it is negative, NaN, or between two integers.

    Distributed.jl: `Channel`.

    >>> Channel(3)
    Channel(3)
    """

    __slots__ = ("size",)

    def __init__(self, size: float = 0) -> None:
        self.size: float = _as_size(size)

    @property
    def _capacity(self) -> int:
        return _UNBOUNDED if self.size == math.inf else min(int(self.size), _UNBOUNDED)

    def __repr__(self) -> str:
        return f"Channel({self.size})"


def _as_size(size: Any) -> Any:
    number: Any = size
    if isinstance(size, bool) or not isinstance(size, numbers.Real):
        raise TypeError(f"the size of a channel must be a number, not {type(size).__name__}")
    if not number >= 0:
        raise ValueError(f"the size of a channel must be at least 0, not {size}")
    if not math.isinf(number) and number % 1 != 0:
        raise ValueError(f"the size of a channel must be an integer or math.inf, not {size}")
    return number


class RRID(NamedTuple):
    """The identity of a future or a channel.

    Distributed.jl: `RRID`.

    >>> RRID(1, 7)
    RRID(whence=1, id=7)
    """

    whence: int
    id: int


def _no_more(timeout: float | None = None) -> float | None:
    return timeout


def _timeout(method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """The timeout among the arguments of a built-in channel, which takes no others."""
    try:
        timeout = _no_more(*args, **kwargs)
    except TypeError:
        raise TypeError(f"{method}() of a built-in channel takes a timeout and no other arguments") from None
    return _timeouts.seconds(timeout)


class RemoteChannel(Reference):
    """A channel on some process, which any process can put into and take from.

    `RemoteChannel(pid)` makes one for a single item; `RemoteChannel(factory, pid)` has the factory run there.
    Items come out first in, first out, each to exactly one taker. Built-in channels are served by the owner's
    core: a process that is deep in a computation still answers. An item whose taker dies before the owner has
    heard that it came goes back to the front: it is never lost, and seen twice where the taker had used it.

    Parameters:
        factory: called without arguments on the process; it returns a `Channel`, or an object of a subclass
            of `AbstractChannel`, whose methods then get whatever further arguments are given here.
        pid: the process that keeps the channel; this one by default.

    Raises:
        ValueError: there is no such process.
        TypeError: the factory returns something else.
        ProcessExitedException: the process has gone.

    Two channels are equal where they name the same one, whatever process they are on. A channel that contains
    itself is never freed.

    Distributed.jl: `RemoteChannel`.

    >>> import pydist as d
    >>> channel = d.RemoteChannel(lambda: d.Channel(10))
    >>> channel.put("a").put("b").take()
    'a'
    """

    __slots__ = ("__weakref__", "_custom")

    _custom: bool

    def __new__(
        cls, factory: Callable[[], Channel | AbstractChannel] | int | None = None, pid: int | None = None
    ) -> RemoteChannel:
        _session.ensure_started()
        if factory is not None and not callable(factory):
            if pid is not None:
                raise TypeError(f"the factory must be callable, not {type(factory).__name__}")
            pid, factory = factory, None
        where = _core.me() if pid is None else _session.as_pid(pid)
        if factory is None:
            return _wrap(_core.channel_create(where, 1), False)
        from ._calls import remotecall_fetch

        made: RemoteChannel = remotecall_fetch(_make, where, factory)
        return made

    def __repr__(self) -> str:
        return f"<RemoteChannel {self.whence}.{self.id} on process {self.where}>"

    def _repr_html_(self) -> str:
        from . import _html

        return _html.card(f"RemoteChannel {self.whence}.{self.id}", {"process": self.where})

    def put(self, value: Any, /, *args: Any, **kwargs: Any) -> RemoteChannel:
        """Puts an item, once there is room; returns the channel.

        Parameters:
            value: the item.
            args: for a built-in channel `timeout`, the seconds to wait for room; else passed to its `put`.
            kwargs: as `args`.

        Raises:
            TimeoutError: the time is over; the item is not in the channel. Where the owner stays silent for a
                second more, the message says so: it drops the item once it goes on, unless it was taken.
            ChannelClosedError: the channel is closed; or what it was closed with.
            ProcessExitedException: the owner is gone.
            pickle.PicklingError: the item cannot be pickled.

        Distributed.jl: `put!`.
        """
        if self._custom:
            self._call("put", (value, *args), kwargs)
            return self
        timeout = _timeout("put", args, kwargs) if args or kwargs else None
        done = _core.plain_put(self._ref, value, timeout)
        if done is not True:
            _check(done or self._ask(PUT, timeout, _serialize.dumps(value)))
        return self

    def take(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the first item, once there is one.

        Parameters:
            args: for a built-in channel `timeout`, the seconds to wait; else passed to its `take`.
            kwargs: as `args`.

        Raises:
            TimeoutError: the time is over; nothing has been taken.
            ChannelClosedError: the channel is closed and empty; or what it was closed with.
            ProcessExitedException: the owner is gone.

        Distributed.jl: `take!`.
        """
        if self._custom:
            return self._call("take", args, kwargs)
        timeout = _timeout("take", args, kwargs) if args or kwargs else None
        taken = _core.plain_take(self._ref, timeout)
        return taken[0] if type(taken) is tuple else _value(taken or self._ask(TAKE, timeout))  # type: ignore[arg-type]

    def fetch(self, *args: Any, **kwargs: Any) -> Any:
        """The first item, once there is one; it stays in the channel.

        Parameters:
            args: for a built-in channel `timeout`, the seconds to wait; else passed to its `fetch`.
            kwargs: as `args`.

        Raises:
            What `take` raises.

        Distributed.jl: `fetch`.
        """
        if self._custom:
            return self._call("fetch", args, kwargs)
        return _value(self._ask(FETCH, _timeout("fetch", args, kwargs)))

    def isready(self, *args: Any, **kwargs: Any) -> bool:
        """Whether there is an item; further arguments are for `isready` of a custom channel.

        Raises:
            ProcessExitedException: the owner is gone.

        Distributed.jl: `isready`.
        """
        if self._custom:
            return bool(self._call("isready", args, kwargs))
        if args or kwargs:
            raise TypeError("isready() of a built-in channel takes no arguments")
        return _check(self._ask(IS_READY)).status == _refs.YES

    def isempty(self) -> bool:
        """Whether there is no item.

        Raises:
            ProcessExitedException: the owner is gone.

        Distributed.jl: `isempty`.
        """
        return not self.isready()

    def isopen(self) -> bool:
        """Whether it has not been closed.

        Raises:
            ProcessExitedException: the owner is gone.

        Distributed.jl: `isopen`.
        """
        if self._custom:
            return bool(self._call("isopen", (), {}))
        return _check(self._ask(IS_OPEN)).status == _refs.YES

    def wait(self, timeout: float | None = None) -> RemoteChannel:
        """Waits until there is an item, and returns the channel.

        Parameters:
            timeout: seconds to wait; None for as long as it takes.

        Raises:
            TimeoutError: the time is over.
            ChannelClosedError: the channel is closed and empty; or what it was closed with.
            ProcessExitedException: the owner is gone.

        Distributed.jl: `wait`.
        """
        timeout = _timeouts.seconds(timeout)
        if self._custom:
            self._call("wait", (timeout,), {})
        else:
            _check(self._ask(WAIT, timeout))
        return self

    def close(self, exc: BaseException | type[BaseException] | None = None) -> None:
        """Closes the channel: items in it can still be taken, then takers and putters fail.

        Parameters:
            exc: what they raise; `ChannelClosedError` by default.

        Raises:
            TypeError: `exc` is no exception.
            pickle.PicklingError: it cannot be pickled.
            ProcessExitedException: the owner is gone.

        Distributed.jl: `close`.
        """
        if isinstance(exc, type) and issubclass(exc, BaseException):
            exc = exc()
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(f"a channel is closed with an exception, not {type(exc).__name__}")
        if self._custom:
            self._call("close", () if exc is None else (exc,), {})
        else:
            reason = _NOTHING if exc is None else _serialize.dumps(exc)
            _check(self._ask(CLOSE, None, reason))

    def __iter__(self) -> Iterator[Any]:
        while True:
            try:
                item = self.take()
            except ChannelClosedError:
                return
            yield item

    async def __aiter__(self) -> AsyncIterator[Any]:
        while True:
            try:
                item = await self.take_async()
            except ChannelClosedError:
                return
            yield item

    async def put_async(self, value: Any, /, *args: Any, **kwargs: Any) -> RemoteChannel:
        """Puts an item as `put` does, without blocking the event loop."""
        if self._custom:
            await self._call_async("put", (value, *args), kwargs)
        else:
            timeout = _timeout("put_async", args, kwargs)
            _check(await self._ask_async(PUT, timeout, _serialize.dumps(value)))
        return self

    async def take_async(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the first item as `take` does, without blocking the event loop."""
        if self._custom:
            return await self._call_async("take", args, kwargs)
        return _value(await self._ask_async(TAKE, _timeout("take_async", args, kwargs)))

    def __getitem__(self, index: Any) -> Any:
        """Item `index` of the first value, which stays; that item alone is moved."""
        if self.where == _core.me():
            return self.fetch()[index]
        from ._calls import remotecall_fetch

        return remotecall_fetch(_item, self.where, self, index)

    def __reduce__(self) -> tuple[Any, ...]:
        if not _serialize.dumping():
            return _invalid, (self.whence, self.id)
        ref = (self.where, self.whence, self.id)
        pin = self._ref.pin()
        if pin is not None:
            _serialize.note_ref(*ref, pin)
        return _rebuild, (*ref, self._custom)

    def _ask(
        self, op: int, timeout: float | None = None, dumped: _serialize.Dumped | None = None
    ) -> _core.Outcome:
        data, buffers, refs = dumped or _NOTHING
        return _core.channel_ask(self._ref, op, data, [b.raw() for b in buffers], refs, timeout)

    async def _ask_async(
        self, op: int, timeout: float | None, dumped: _serialize.Dumped | None = None
    ) -> _core.Outcome:
        from . import _aio

        outcome = await _aio.channel_outcome(self._ref, op, dumped or _NOTHING, timeout)
        if outcome.status == _refs.CANCELLED:
            raise TimeoutError(f"the channel did not get to it within {timeout} s")
        return outcome

    def _call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from ._calls import remotecall_fetch

        return remotecall_fetch(_call_custom, self.where, self, method, args, kwargs)

    async def _call_async(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        from ._calls import remotecall

        return await remotecall(_call_custom, self.where, self, method, args, kwargs)


_NOTHING: _serialize.Dumped = (b"", [], [])


def _check(outcome: _core.Outcome) -> _core.Outcome:
    if outcome.status == _refs.CLOSED:
        if not len(outcome.data):
            raise ChannelClosedError("the channel is closed")
        raise _serialize.loads(outcome.data, outcome.buffers)
    if outcome.status in _refs.GONE:
        raise _refs.error_of(outcome)
    if outcome.status == _refs.UNKNOWN_REF:
        raise ValueError("this channel is gone: its owner was told that nobody holds it")
    return outcome


def _value(outcome: _core.Outcome) -> Any:
    _check(outcome)
    return _serialize.loads(outcome.data, outcome.buffers)


def _item(channel: RemoteChannel, index: Any) -> Any:
    return channel.fetch()[index]


def _make(factory: Callable[[], Any]) -> RemoteChannel:
    """Runs on the owner: the channel that a factory describes."""
    made = factory()
    if isinstance(made, Channel):
        return _wrap(_core.channel_create(_core.me(), made._capacity), False)
    if not isinstance(made, AbstractChannel):
        raise TypeError(
            "the factory of a RemoteChannel must return a Channel or an AbstractChannel, "
            f"not {type(made).__name__}"
        )
    return keep_custom(made)


def keep_custom(custom: AbstractChannel) -> RemoteChannel:
    """Makes the channel through which others reach an object that is kept here while they hold it."""
    ref = _core.channel_custom()
    _customs[ref.whence, ref.id] = custom
    return _wrap(ref, True)


def custom_of(channel: RemoteChannel) -> AbstractChannel:
    """The object behind a channel that is kept here."""
    return _customs[channel.whence, channel.id]


def _call_custom(channel: RemoteChannel, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = getattr(custom_of(channel), method)(*args, **kwargs)
    return None if method in ("put", "wait", "close") else result


def drop_custom(whence: int, id: int) -> None:
    """Nobody holds a channel any more that is kept here."""
    _customs.pop((whence, id), None)


def _wrap(ref: _core.Ref, custom: bool) -> RemoteChannel:
    channel = object.__new__(RemoteChannel)
    channel._ref = ref
    channel._custom = custom
    with _lock:
        _channels[ref.whence, ref.id] = channel
    return channel


def _rebuild(owner: int, whence: int, id: int, custom: bool) -> Any:
    if not _serialize.loading():
        return InvalidChannel(whence, id)
    with _lock:
        known = _channels.get((whence, id))
        return _wrap(_core.reference(owner, whence, id), custom) if known is None else known


class InvalidChannel(_refs.InvalidFuture):
    """What a channel becomes that was pickled outside of the cluster: any use raises ValueError."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            f"the channel {self.__dict__.get('_name', '?')} was pickled outside of its cluster "
            "and refers to nothing; send channels in arguments, results and channels of pydist"
        )

    def __iter__(self) -> Any:
        return self.__getattr__("iter")

    def __aiter__(self) -> Any:
        return self.__getattr__("aiter")

    def __reduce__(self) -> tuple[Any, ...]:
        whence, id = self.__dict__["_name"].split(".")
        return _invalid, (int(whence), int(id))

    def __repr__(self) -> str:
        return f"<invalid RemoteChannel {self.__dict__.get('_name', '?')}>"


def _invalid(whence: int, id: int) -> InvalidChannel:
    return InvalidChannel(whence, id)


def remoteref_id(ref: _refs.Future | RemoteChannel) -> RRID:
    """The identity of a future or a channel.

    Parameters:
        ref: the future or the channel.

    Raises:
        TypeError: it is neither.

    Distributed.jl: `remoteref_id`.

    >>> import pydist as d
    >>> channel = d.RemoteChannel()
    >>> d.remoteref_id(channel) == (channel.whence, channel.id)
    True
    """
    if not isinstance(ref, _refs.Future | RemoteChannel):
        raise TypeError(f"remoteref_id() takes a Future or a RemoteChannel, not {type(ref).__name__}")
    return RRID(ref.whence, ref.id)


def channel_from_id(rrid: tuple[int, int]) -> RemoteChannel:
    """The channel of that identity, on the process that keeps it.

    Parameters:
        rrid: what `remoteref_id` returned.

    Raises:
        KeyError: this process keeps no such channel.

    Distributed.jl: `channel_from_id`.

    >>> import pydist as d
    >>> channel = d.RemoteChannel()
    >>> d.channel_from_id(d.remoteref_id(channel)) is channel
    True
    """
    _session.ensure_started()
    whence, id = rrid
    try:
        found = _core.channel_here(whence, id)
    except OverflowError:
        found = None
    if found is None:
        raise KeyError(RRID(whence, id))
    with _lock:
        known = _channels.get((whence, id))
        return _wrap(*found) if known is None else known
