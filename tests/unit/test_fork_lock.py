"""Locks that a fork waits for."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pydist import _fork_lock
from support import wait_until


@contextmanager
def held(lock: _fork_lock.ForkLock) -> Iterator[threading.Event]:
    """Have another thread hold a lock until an event is set."""
    taken, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            assert let_go.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(30)
    try:
        yield let_go
    finally:
        let_go.set()
        thread.join()


def status_of_child(lock: _fork_lock.ForkLock) -> int:
    """Fork, and give the child's exit status: 0 where it can take a lock, twice."""
    if (child := os.fork()) == 0:
        free = lock._lock.acquire(timeout=10) and lock._lock.acquire(timeout=10)
        os._exit(0 if free else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def takes_of(thread: int) -> bool:
    """Say whether a thread is about to fork, and waits for a lock."""
    return sys._current_frames()[thread].f_code is _fork_lock.ForkLock._take.__code__


def test_a_fork_waits_for_who_holds_the_lock(monkeypatch):
    monkeypatch.setattr(_fork_lock, "FORK_SECONDS", 30)
    lock = _fork_lock.ForkLock()
    main = threading.get_ident()
    with held(lock) as let_go:

        def watch() -> None:
            wait_until(lambda: takes_of(main))
            let_go.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        assert status_of_child(lock) == 0
        assert let_go.is_set()
        watcher.join()
    with lock:
        pass


def test_a_fork_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(_fork_lock, "FORK_SECONDS", 0.01)
    lock = _fork_lock.ForkLock()
    with held(lock) as let_go:
        assert status_of_child(lock) == 0
        assert not let_go.is_set()
        assert not lock._lock.acquire(blocking=False)
    with lock:
        pass


def test_a_fork_by_who_holds_the_lock():
    lock = _fork_lock.ForkLock()
    with lock:
        if (child := os.fork()) == 0:
            try:
                lock._lock.release()
                lock._lock.release()
            except RuntimeError:  # it was held once
                os._exit(0)
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(RuntimeError):
        lock._lock.release()
