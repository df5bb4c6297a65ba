"""Workers for the length of a block, in plain code and in asyncio."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from . import _cluster

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


class Cluster(contextlib.ContextDecorator):
    """What `cluster` returns: a context manager, in plain code and in asyncio."""

    def __init__(self, n: Any, params: dict[str, Any]) -> None:
        self._n = n
        self._params = params
        self._entered: list[list[int]] = []

    def __enter__(self) -> list[int]:
        return self._enter(_cluster.addprocs(self._n, **self._params))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _cluster.rmprocs(self._entered.pop())

    def _enter(self, pids: list[int]) -> list[int]:
        self._entered.append(pids)
        return pids

    async def __aenter__(self) -> list[int]:
        import asyncio

        given_up = threading.Event()
        pids: list[int] = []

        def start() -> None:
            pids.extend(_cluster.start_workers(self._n, self._params, given_up))

        try:
            await in_thread(start, given_up.set)
        except asyncio.CancelledError:
            await in_thread(lambda: _cluster.rmprocs(pids))
            raise
        return self._enter(pids)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pids = self._entered.pop()
        await in_thread(lambda: _cluster.rmprocs(pids))


def cluster(n: Any = None, **params: Any) -> Cluster:
    """Starts workers for the length of a block, and ends just those.

    In asyncio, `async with` does so without blocking the loop; where the task is cancelled while they start,
    they are ended before it goes on.

    Parameters:
        n: as for `addprocs`.
        params: as for `addprocs`.

    Returns:
        A context manager that yields the new ids.

    >>> import pydist as d
    >>> with d.cluster(1) as pids:
    ...     d.remotecall_fetch(abs, pids[0], -3)
    3
    >>> import asyncio
    >>> async def main():
    ...     async with d.cluster(1) as pids:
    ...         return await d.remotecall(abs, pids[0], -3)
    >>> asyncio.run(main())
    3
    """
    return Cluster(n, params)


async def in_thread(act: Callable[[], T], give_up: Callable[[], None] = lambda: None) -> T:
    """Runs something on a thread of its own, and waits for its end even where the task is cancelled."""
    import asyncio

    from . import _aio

    loop = _aio.running_loop()
    done: asyncio.Future[tuple[T | None, BaseException | None]] = loop.create_future()

    def run() -> None:
        try:
            outcome: tuple[T | None, BaseException | None] = act(), None
        except BaseException as error:
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(done.set_result, outcome)

    threading.Thread(target=run, name="pydist-block", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError as error:
            cancelled = error
            give_up()
    value, failure = done.result()
    if cancelled is not None:
        raise cancelled
    if failure is not None:
        raise failure
    return value  # type: ignore[return-value]
