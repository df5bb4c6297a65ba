"""`sync`: a block that ends once all calls made in it have."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

from . import _errors, _groups
from ._refs import Future

_block: contextvars.ContextVar[list[Future] | None] = contextvars.ContextVar("pydist_sync", default=None)


def note(future: Future) -> Future:
    """A call has been made: the innermost block that is open in this context waits for it."""
    futures = _block.get()
    if futures is not None:
        futures.append(future)
    return future


@contextlib.contextmanager
def sync() -> Iterator[None]:
    """Waits, at the end of a block, for every call that was made in it.

    That is every `spawn`, `spawnat`, `remotecall` and `distributed` made by this thread, or this asyncio task
    and those that it starts; where blocks are nested, the innermost waits. Values stay where they are.

    Raises:
        ExceptionGroup: what calls raised, once all have ended, also where it is a single one. Calls that were
            cancelled count for nothing.

    Where the block itself raises, that is raised, and the calls that have not ended are cancelled, as
    `asyncio.TaskGroup` does; but they are not waited for, since a call cannot always be interrupted. So it is
    with Ctrl-C.

    Distributed.jl: `@sync`.

    >>> import pydist as d
    >>> with d.sync():
    ...     futures = [d.spawn(pow, 2, n) for n in range(4)]
    >>> [future.isready() for future in futures]
    [True, True, True, True]
    """
    futures: list[Future] = []
    token = _block.set(futures)
    try:
        try:
            yield
        finally:
            _block.reset(token)
        errors = _errors_of(futures)
    except BaseException:
        _groups.cancel_all(futures)
        raise
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(futures)} calls in a sync block failed", errors)


def _errors_of(futures: list[Future]) -> list[Exception]:
    """Waits for all futures, and returns the errors."""
    errors: list[Exception] = []
    for future in dict.fromkeys(futures):
        error = _error_of(future)
        if error is not None:
            errors.append(error)
    return errors


def _error_of(future: Future) -> Exception | None:
    try:
        future.wait()
        if future._failed():
            future.fetch()
    except _errors.CancelledError:
        return None
    except Exception as error:
        return error.with_traceback(None)
    return None
