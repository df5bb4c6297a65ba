"""The executor of `concurrent.futures` on workers of pydist."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, InvalidStateError
from concurrent.futures import Executor as StandardExecutor
from concurrent.futures import Future as StandardFuture
from typing import Any, TypeVar

from . import _calls, _cluster, _core, _otel, _refs, _session
from ._abstract_pool import AbstractWorkerPool
from ._errors import LaunchWorkerError, ProcessExitedException
from ._remote_error import RemoteException
from .managers.local import LocalManager

T = TypeVar("T")

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"
WAKE = (1 << 63) - 1
"""The key under which the thread of an executor is woken with no more to say."""
THREADS_END_WITH_MAIN = sys.version_info[:2] == (3, 12)
"""Whether no thread can begin once the main one has ended: what starts workers has to be done by then."""


class BrokenWorkers(BrokenExecutor):
    """The executor can run nothing any more: a worker of it has died, or none could be made ready.

    `__cause__` tells what happened, for a worker that has died as a `ProcessExitedException`.
    """


class RemoteTraceback(Exception):
    """The traceback in the worker, as the cause of an exception that was raised there.

    Parameters:
        tb: its text.
    """

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb.rstrip()}\n"""'


class Future(StandardFuture[T]):
    """A future of the standard library that can be awaited; cancelling the task that awaits cancels it."""

    def __await__(self) -> Generator[Any, None, T]:
        import asyncio

        return asyncio.wrap_future(self).__await__()


class _Task:
    """A call, from when it is submitted until its future is done."""

    __slots__ = ("args", "call", "f", "future", "here", "kwargs", "pid")

    def __init__(
        self, future: StandardFuture[Any], f: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> None:
        self.future = future
        self.f = f
        self.args = args
        self.kwargs = kwargs
        self.pid = 0
        self.call: int | None = None
        self.here: _refs.Future | None = None


class _Engine:
    """Sends the calls of one executor to its workers; its thread lives until it is closed and all is done.

    Parameters:
        own: how many workers to start, which end with it; None to use those that are given.
        pids: the workers that are there already.
        params: for `addprocs`.
        initializer: a function to call on each worker first, and its arguments.
    """

    def __init__(
        self,
        own: int | None,
        pids: list[int],
        params: dict[str, Any],
        initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None,
    ) -> None:
        self._own = own
        self._params = params
        self._initializer = initializer
        self._pids = pids
        self._queue = _core.Queue()
        self._lock = threading.Lock()
        self._keys = itertools.count()
        self._pending: deque[_Task] = deque()
        self._running: dict[int, _Task] = {}
        self._free: list[int] = []
        self._closed = False
        self._broken: BrokenWorkers | None = None
        self._started = threading.Event()
        self.thread = threading.Thread(target=self._run, name="pydist-executor", daemon=True)
        self.thread.start()

    def await_workers(self) -> None:
        """Waits until its workers have been started, or could not be, where they cannot be started later."""
        if THREADS_END_WITH_MAIN:
            self._started.wait()

    def submit(self, task: _Task) -> None:
        """Takes a call; it goes out at once where a worker is free.

        Raises:
            BrokenExecutor: nothing can be run any more.
            RuntimeError: the engine is closed.
        """
        with self._lock:
            if self._broken is not None:
                raise BrokenWorkers(*self._broken.args) from self._broken.__cause__
            if self._closed:
                raise RuntimeError(AFTER_SHUTDOWN)
            self._pending.append(task)
        self._dispatch()

    def close(self, cancel: bool = False) -> None:
        """Has the thread end once all is done; with `cancel`, calls that have not begun are cancelled."""
        with self._lock:
            self._closed = True
            dropped = list(self._pending) if cancel else []
            if cancel:
                self._pending.clear()
        for task in dropped:
            if task.future.cancel():
                task.future.set_running_or_notify_cancel()
        with contextlib.suppress(RuntimeError):
            self._queue.push(WAKE)

    def let_go(self) -> None:
        """Does what `close` does, for a finalizer, which may take no lock."""
        self._closed = True
        with contextlib.suppress(RuntimeError):
            self._queue.push(WAKE)

    def abort(self) -> None:
        """Cancels all calls, interrupts those that run, and closes."""
        self.close(cancel=True)
        with self._lock:
            tasks = list(self._running.values())
            self._running.clear()
        self._interrupt(tasks)

    def abort_calls(self, futures: Collection[StandardFuture[Any]]) -> None:
        """Cancels some calls, and interrupts those of them that run."""
        running = [future for future in futures if not future.cancel()]
        with self._lock:
            keys = [key for key, task in self._running.items() if task.future in running]
            tasks = [self._running.pop(key) for key in keys]
            self._free += [task.pid for task in tasks]
        self._interrupt(tasks)
        self._dispatch()

    def _interrupt(self, tasks: list[_Task]) -> None:
        for task in tasks:
            if task.here is not None:
                task.here.cancel()
            elif task.call is not None:
                _core.cancel_fetch(task.call)
            _settle(task.future, None, CancelledError())
        with contextlib.suppress(RuntimeError):
            self._queue.push(WAKE)

    def facts(self) -> dict[str, object]:
        """What it has and does, by name."""
        from . import _html

        with self._lock:
            state = "broken" if self._broken is not None else "shut down" if self._closed else "open"
            pids, running, waiting = list(self._pids), len(self._running), len(self._pending)
        return {
            "state": state,
            "workers": _html.several(pids),
            "calls running": running,
            "calls waiting": waiting,
        }

    def is_usable(self) -> bool:
        """Whether it takes calls."""
        with self._lock:
            return self._broken is None and not self._closed

    # --- the thread

    def _run(self) -> None:
        try:
            if self._own is not None:
                self._pids = _start(self._own, self._params)
            self._started.set()
            self._prepare()
        except BaseException as error:
            if isinstance(error, LaunchWorkerError):
                self._pids = error.started
            logging.getLogger("pydist").critical("the workers of an executor cannot be used: %s", error)
            self._break(f"its workers could not be made ready: {error}", error)
            self._started.set()
        with self._lock:
            self._free = list(reversed(self._pids)) if self._broken is None else []
        self._dispatch()
        while not self._is_done():
            try:
                self._take_all(self._queue.wait(None))
                self._dispatch()
            except BaseException as error:
                self._break(f"its thread has failed: {error!r}", error)
        if self._own is not None:
            with contextlib.suppress(Exception):
                _cluster.rmprocs(self._pids)

    def _is_done(self) -> bool:
        with self._lock:
            ends = self._closed or self._broken is not None
            return ends and not self._pending and not self._running

    def _prepare(self) -> None:
        if self._initializer is None:
            return
        f, args = self._initializer
        for future in [_calls._remotecall(f, pid, args, {}) for pid in self._pids]:
            future.fetch()

    def _dispatch(self) -> None:
        while True:
            with self._lock:
                if self._broken is not None or not self._pending or not self._free:
                    return
                task = self._pending.popleft()
                if not task.future.set_running_or_notify_cancel():
                    continue
                task.pid = self._free.pop()
                key = next(self._keys)
                self._running[key] = task
            try:
                self._send(key, task)
            except ProcessExitedException as error:
                self._break(f"{error}", error)
            except KeyboardInterrupt as error:
                self._finish(key, None, error)
                if threading.current_thread() is not self.thread:
                    raise
            except BaseException as error:
                self._finish(key, None, error)

    def _send(self, key: int, task: _Task) -> None:
        if task.pid == _core.me():
            task.here = _refs.call_here(task.f, task.args, task.kwargs)
            task.here._ref.tell(self._queue, key, False)
        else:

            def send(pid: int, data: Any, buffers: Any, refs: Any) -> int:
                return _core.call_queue(pid, data, buffers, refs, self._queue, key)

            task.call = _calls._send(send, task.pid, task.f, task.args, task.kwargs)
        # A future that is kept is not to keep what its call was given.
        del task.f, task.args, task.kwargs

    def _take_all(self, came: list[tuple[int, _core.Outcome]]) -> None:
        for key, outcome in came:
            if key != WAKE:
                self._take(key, outcome)

    def _take(self, key: int, outcome: _core.Outcome) -> None:
        task = self._running.get(key)
        if task is None:
            return
        value: Any = None
        error: BaseException | None = None
        if outcome.status in _refs.GONE:
            error = _refs.error_of(outcome)
            self._break(f"{error}", error)
            return
        try:
            if task.here is not None:
                value = task.here.fetch()
            else:
                value, error = _refs.load_outcome(outcome)
        except BaseException as raised:
            error = raised
        self._finish(key, value, error)

    def _finish(self, key: int, value: Any, error: BaseException | None) -> None:
        with self._lock:
            task = self._running.pop(key, None)
            if task is None:
                return
            self._free.append(task.pid)
        _settle(task.future, value, None if error is None else _as_raised_there(error))

    def _break(self, what: str, cause: BaseException) -> None:
        with self._lock:
            if self._broken is None:
                self._broken = BrokenWorkers(f"the executor can run nothing any more: {what}")
                self._broken.__cause__ = cause
            waiting = [task.future for task in self._pending if task.future.set_running_or_notify_cancel()]
            futures = [task.future for task in self._running.values()] + waiting
            self._pending.clear()
            self._running.clear()
        for future in futures:
            error = BrokenWorkers(*self._broken.args)
            error.__cause__ = cause
            _settle(future, None, error)
        with contextlib.suppress(RuntimeError):
            self._queue.push(WAKE)


def _settle(future: StandardFuture[Any], value: Any, error: BaseException | None) -> None:
    """Sets the result of a future; whatever a callback raises is none of the executor's."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    except InvalidStateError:
        return  # the call was aborted meanwhile
    except BaseException:
        logging.getLogger("pydist").exception("a callback of a future has raised")


def _start(count: int, params: dict[str, Any]) -> list[int]:
    manager = LocalManager(count)
    manager.for_executor = True
    return _cluster.addprocs(manager, **params)


def _as_raised_there(error: BaseException) -> BaseException:
    """The original of an exception, with the traceback of the worker as its cause."""
    original = error._info.captured if isinstance(error, RemoteException) else None
    if not isinstance(error, RemoteException) or original is None:
        return error
    cause = RemoteTraceback(error.remote_traceback)
    cause.__cause__, cause.__context__ = original.__cause__, original.__context__
    original.__cause__ = cause
    return original


_engines: weakref.WeakSet[_Engine] = weakref.WeakSet()
_ending = False


def _finish_all() -> None:
    """Lets calls that were submitted end before the interpreter does."""
    global _ending
    _ending = True
    engines = list(_engines)
    for engine in engines:
        engine.close()
    for engine in engines:
        engine.thread.join()


try:
    # Before the threads of the standard library's executors are waited for.
    threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
except AttributeError:
    atexit.register(_finish_all)


class Executor(StandardExecutor):
    """Runs calls on workers, each one call at a time, as the executors of `concurrent.futures` do.

    Parameters:
        max_workers: how many workers to start for it, with its first call; they end with it. None: it uses
            the workers that there are, and starts one for each CPU where there are none.
        initializer: a function to call on each worker first.
        initargs: its arguments.
        workers: ids, or a pool, whose workers it uses and leaves running, instead of own ones.
        params: for the workers that it starts, as for `addprocs`.

    What own workers print goes to the output of this process as it is.

    Raises:
        ValueError: `max_workers` is not above 0, or `workers` is empty.
        TypeError: `initializer` is not callable; or both `max_workers` and `workers` are given.
        RuntimeError: own workers are asked for on another process than 1.

    >>> import pydist as d
    >>> with d.Executor(workers=d.workers()) as executor:
    ...     list(executor.map(pow, [2, 3], [5, 2]))
    [32, 9]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        workers: AbstractWorkerPool | Iterable[int] | None = None,
        **params: Any,
    ) -> None:
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_workers is not None and workers is not None:
            raise TypeError("max_workers starts workers, workers names some: give one of them")
        self._initializer = None if initializer is None else (initializer, tuple(initargs))
        self._own, self._pids = _choose(max_workers, workers)
        if self._own is None and params:
            raise TypeError(f"workers that are there take no parameters: {', '.join(params)}")
        self._max_workers = len(self._pids) if self._own is None else self._own
        self._params = params
        self._engine: _Engine | None = None
        self._shut = False
        self._lock = threading.Lock()

    def _repr_html_(self) -> str:
        from . import _html

        engine = self._engine
        facts = {"state": "not begun"} if engine is None else engine.facts()
        return _html.card(f"{type(self).__name__} of {self._max_workers} workers", facts)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Has a worker call a function.

        Parameters:
            fn: any callable; one that is not importable there is sent by value.
            args: passed to it.
            kwargs: passed to it.

        Returns:
            A `concurrent.futures.Future`, which can be awaited too.

        Raises:
            BrokenExecutor: a worker of this executor has died, or its initializer has failed.
            RuntimeError: after `shutdown`, or at the end of the interpreter.
        """
        future: Future[T] = Future()
        kwargs.update(_otel.carried())
        engine = self._begun()
        engine.submit(_Task(future, fn, args, kwargs))
        engine.await_workers()
        return future

    def _begun(self) -> _Engine:
        with self._lock:
            if self._engine is None or self._shut or _ending:
                if self._shut:
                    raise RuntimeError(AFTER_SHUTDOWN)
                if _ending:
                    raise RuntimeError("cannot schedule new futures after interpreter shutdown")
                _session.refuse_in_forked_child()
                self._engine = _Engine(self._own, self._pids, self._params, self._initializer)
                _engines.add(self._engine)
                weakref.finalize(self, self._engine.let_go).atexit = False
            return self._engine

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Calls a function with the elements of iterables, and gives the values in order.

        Parameters:
            fn: the function.
            iterables: as many as it has parameters; the shortest ends the map.
            timeout: seconds from now; a value that has not come by then raises `TimeoutError`.
            chunksize: elements for each call that goes out.
            buffersize: calls that are under way, or whose values have not been taken, at most; None for all.

        Returns:
            An iterator; closing it cancels the calls that have not begun.

        Raises:
            ValueError: `chunksize` or `buffersize` is below 1.
            TypeError: `buffersize` is no integer.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        until = None if timeout is None else time.monotonic() + timeout
        rows = zip(*iterables, strict=False)
        if chunksize == 1:
            calls = (self.submit(fn, *row) for row in rows)
            return _values(calls, until, buffersize)
        chunks = iter(lambda: list(itertools.islice(rows, chunksize)), [])
        parts = (self.submit(_run_chunk, fn, chunk) for chunk in chunks)
        return _elements(_values(parts, until, buffersize))

    def abort(self) -> None:
        """Shuts down at once: calls that have not begun are cancelled, those that run are interrupted."""
        with self._lock:
            self._shut = True
        if self._engine is not None:
            self._engine.abort()

    def abort_calls(self, futures: Collection[StandardFuture[Any]]) -> None:
        """Cancels some of its calls, and interrupts those of them that run."""
        if self._engine is not None:
            self._engine.abort_calls(futures)

    def is_usable(self) -> bool:
        """Whether it takes calls: it has not been shut down, and none of its workers has died."""
        return not self._shut and (self._engine is None or self._engine.is_usable())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Takes no more calls; workers that it started end once its calls have.

        Parameters:
            wait: return only after that.
            cancel_futures: cancel the calls that have not begun.
        """
        with self._lock:
            self._shut = True
            engine = self._engine
        if engine is None:
            return
        engine.close(cancel_futures)
        if wait and engine.thread is not threading.current_thread():
            engine.thread.join()


def _choose(
    max_workers: int | None, workers: AbstractWorkerPool | Iterable[int] | None
) -> tuple[int | None, list[int]]:
    """How many workers to start, or else which ones to use."""
    if workers is not None:
        listed = workers.workers() if isinstance(workers, AbstractWorkerPool) else workers
        pids = list(dict.fromkeys(_session.as_pid(pid) for pid in listed))
        if not pids:
            raise ValueError("workers is empty: an executor needs at least one")
        _session.ensure_started()
        for pid in pids:
            _core.check_pid(pid)
        return None, pids
    there = _cluster.shared_workers()
    if max_workers is None and there:
        return None, there
    if not _session.is_head():
        raise RuntimeError(
            "Only process 1 can add and remove workers: name those to use, Executor(workers=…)"
        )
    return LocalManager(max_workers).count, []


def _run_chunk(f: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    return list(itertools.starmap(f, chunk))


def _values(calls: Iterator[StandardFuture[T]], until: float | None, buffersize: int | None) -> Iterator[T]:
    """Begins the calls now, and gives their values."""
    futures = deque(calls if buffersize is None else itertools.islice(calls, buffersize))
    return _values_of(futures, calls, until)


def _values_of(
    futures: deque[StandardFuture[T]], more: Iterator[StandardFuture[T]], until: float | None
) -> Iterator[T]:
    try:
        while futures:
            futures.extend(itertools.islice(more, 1))
            # No name is bound to the value, as the iterator is not to keep it.
            yield _take_value(futures, until)
    finally:
        for future in futures:
            future.cancel()


def _take_value(futures: deque[StandardFuture[T]], until: float | None) -> T:
    left = None if until is None else max(0.0, until - time.monotonic())
    future = futures.popleft()
    try:
        return future.result(left)
    finally:
        # Unless it is done; and an error of it is not to refer to this frame, which refers to it.
        future.cancel()
        del future


def _elements(chunks: Iterator[list[T]]) -> Iterator[T]:
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()
