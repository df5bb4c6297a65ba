"""The backend "pydist" of joblib; importing this module registers it.

import pydist.joblib

with joblib.parallel_config(backend="pydist"):
    joblib.Parallel(n_jobs=4)(joblib.delayed(f)(x) for x in data)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

try:
    from joblib._parallel_backends import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
    )
    from joblib.parallel import cpu_count, register_parallel_backend
except ModuleNotFoundError as error:
    if error.name != "joblib":
        raise
    raise ImportError(
        'pydist.joblib needs joblib, which is not installed: pip install "pydist[joblib]"'
    ) from error

from ._cluster import shared_workers
from .executor import Executor
from .executor import Future as ExecutorFuture

OF_MEMORY_MAPPING = ("context", "max_nbytes", "mmap_mode", "temp_folder", "verbose")
"""What `Parallel` passes on to a backend for temporary files and messages that this one does without."""

OF_INITIALIZER = ("initializer", "initargs")
"""What serves workers that are there already, too."""


class _Kept:
    """Executors with own workers, which serve one `Parallel` after the other until others are wanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executors: dict[Any, Executor] = {}
        self._users: dict[int, int] = {}

    def take(self, key: Any, make: Callable[[], Executor]) -> Executor:
        """The executor of a key, made unless there is one that can be used; ends others that nobody uses."""
        with self._lock:
            idle = [k for k, e in self._executors.items() if not self._users[id(e)] and k != key]
            dropped = [self._executors.pop(k) for k in idle]
            executor = self._executors.get(key)
            if executor is None or not executor.is_usable():
                executor = self._executors[key] = make()
            self._users[id(executor)] = self._users.get(id(executor), 0) + 1
        for old in dropped:
            del self._users[id(old)]
            old.shutdown(wait=False)
        return executor

    def put(self, executor: Executor) -> None:
        """Tells that a user has done with an executor."""
        with self._lock:
            self._users[id(executor)] -= 1
            if not self._users[id(executor)] and executor not in self._executors.values():
                del self._users[id(executor)]

    def is_shared(self, executor: Executor) -> bool:
        """Whether several use an executor."""
        with self._lock:
            return self._users.get(id(executor), 0) > 1


_kept = _Kept()


class PydistBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs the tasks of `joblib.Parallel` on workers of pydist.

    It uses the workers that there are; where there are none it starts `n_jobs`, which stay for the next
    `Parallel`. Large arrays go through shared memory in the place of memory-mapped files, and are writable.

    Parameters:
        nesting_level: how deep in other `Parallel` it runs.
        inner_max_num_threads: how many threads BLAS and OpenMP may use in a worker that it starts.
        backend_kwargs: for workers that it starts, as for `addprocs`. `initializer` and `initargs`, a
            function to call on each worker first and its arguments, also serve workers that are there:
            there it is called anew by each `Parallel`.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False
    default_n_jobs = -1
    # A message costs little: short tasks need smaller batches than joblib takes for its own processes.
    MIN_IDEAL_BATCH_DURATION = 0.02
    MAX_IDEAL_BATCH_DURATION = 0.5

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        **backend_kwargs: Any,
    ) -> None:
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads, **backend_kwargs
        )
        self._workers: Executor | None = None
        self._is_kept = False
        self._under_way: set[ExecutorFuture[Any]] = set()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.nesting_level, self.inner_max_num_threads, self.backend_kwargs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many tasks run at once: -1 for all workers, or for all CPUs where there are no workers."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        there = shared_workers()
        if n_jobs < 0:
            return max((len(there) or cpu_count()) + 1 + n_jobs, 1)
        return min(n_jobs, len(there)) if there else n_jobs

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,
        require: str | None = None,
        **backend_kwargs: Any,
    ) -> int:
        """Gets the workers ready, and returns how many."""
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        self._release()
        given = {**self.backend_kwargs, **backend_kwargs}
        there = shared_workers()
        if there:
            first = {name: given[name] for name in OF_INITIALIZER if name in given}
            self._workers, self._is_kept = Executor(workers=there[:count], **first), False
            return count
        params = {name: value for name, value in given.items() if name not in OF_MEMORY_MAPPING}
        params["env"] = {**self._prepare_worker_env(n_jobs=count), **params.get("env", {})}
        key = (count, repr(sorted(params.items())))
        self._workers, self._is_kept = _kept.take(key, lambda: Executor(count, **params)), True
        return count

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], Any] | None = None) -> Any:
        """Has a worker run a batch; the callback is called with the future once it is done."""
        assert self._workers is not None
        future = self._workers.submit(func)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: ExecutorFuture[Any]) -> Any:
        """The results of a batch, or what it raised."""
        return future.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Cancels what waits, and interrupts what runs, of this `Parallel` alone."""
        if self._workers is not None:
            if self._is_kept and _kept.is_shared(self._workers):
                self._workers.abort_calls(list(self._under_way))
            else:
                self._workers.abort()
        self._under_way.clear()
        self._release()
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def terminate(self) -> None:
        """Lets go of the workers; those that it has started stay for the next `Parallel`."""
        self._release()
        self.reset_batch_stats()

    def _release(self) -> None:
        executor, self._workers = self._workers, None
        if executor is None:
            return
        if self._is_kept:
            _kept.put(executor)
        else:
            executor.shutdown(wait=False)

    def get_nested_backend(self) -> tuple[ParallelBackendBase, int | None]:
        """A `Parallel` inside a task uses the workers too, where it asks for several jobs; one in that, none.

        So a task that calls itself by a `Parallel` ends by a `RecursionError`, not by taking all threads.
        """
        level = (self.nesting_level or 0) + 1
        if level > 1:
            return SequentialBackend(nesting_level=level), None
        return PydistBackend(nesting_level=level, **self.backend_kwargs), 1


def _restore(nesting_level: int | None, threads: int | None, kwargs: dict[str, Any]) -> PydistBackend:
    return PydistBackend(nesting_level, threads, **kwargs)


register_parallel_backend("pydist", PydistBackend)
