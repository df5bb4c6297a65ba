"""Functions that are sent once, functions from scripts, and their tracebacks."""

from __future__ import annotations

import gc
import os
import threading
import warnings
from collections.abc import Callable
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import support
from pydist import _function_cache, _functions
from pydist._functions import SentFunction

Workers = list[int]


def held(sent: SentFunction) -> bool:
    """Whether this process holds a function (it runs on workers)."""
    source, number = sent
    return number in _functions._received.get(source, {})


def is_held(d: ModuleType, pid: int, key: tuple[int, int]) -> bool:
    return d.remotecall_fetch(held, pid, key)


def bytes_sent(d: ModuleType, during: Callable[[], Any]) -> int:
    before = d.stats()["bytes_sent"]
    during()
    return d.stats()["bytes_sent"] - before


def test_a_function_is_sent_once_to_each_worker(d: ModuleType, workers: Workers) -> None:
    captured = np.arange(250_000.0)
    sent = SentFunction(lambda i: captured[i])

    def use() -> None:
        for i in range(20):
            for pid in workers:
                assert d.remotecall_fetch(sent.on(pid), pid, i) == i

    assert captured.nbytes * 2 < bytes_sent(d, use) < captured.nbytes * 2.1


def test_two_threads_send_it_once(d: ModuleType, workers: Workers) -> None:
    captured = bytes(500_000)
    sent = SentFunction(lambda i: (i, len(captured)))
    pid = workers[0]
    start = threading.Barrier(8)
    values: list[Any] = []

    def call(i: int) -> None:
        start.wait(10)
        values.append(d.remotecall_fetch(sent.on(pid), pid, i))

    def use() -> None:
        threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)

    assert bytes_sent(d, use) < 600_000
    assert sorted(values) == [(i, 500_000) for i in range(8)]


def test_calls_at_once_wait_for_a_function_that_arrives(d: ModuleType, workers: Workers) -> None:
    pid = workers[0]
    for _ in range(20):
        sent = SentFunction(lambda i: i * 2)
        futures = [d.remotecall(sent.on(pid), pid, i) for i in range(50)]
        assert [future.fetch(timeout=30) for future in futures] == [i * 2 for i in range(50)]


def test_forget_drops_it_and_on_sends_it_again(d: ModuleType, workers: Workers) -> None:
    pid = workers[0]
    sent = SentFunction(lambda: 1)
    assert d.remotecall_fetch(sent.on(pid), pid) == 1
    assert is_held(d, pid, sent.key)
    sent.forget()
    assert not is_held(d, pid, sent.key)
    assert d.remotecall_fetch(sent.on(pid), pid) == 1


def test_a_call_of_a_forgotten_function_says_so(d: ModuleType, workers: Workers) -> None:
    pid = workers[0]
    sent = SentFunction(lambda: 1)
    stub = sent.on(pid)
    sent.forget()
    with pytest.raises(RuntimeError, match="forgotten"):
        d.remotecall_fetch(stub, pid)


def test_workers_drop_it_with_its_last_reference(d: ModuleType, workers: Workers) -> None:
    sent = SentFunction(lambda: 1)
    for pid in workers:
        d.remotecall_fetch(sent.on(pid), pid)
    key = sent.key
    del sent
    gc.collect()
    support.wait_until(lambda: not any(is_held(d, pid, key) for pid in workers), 10)


def test_a_dead_worker_is_skipped(d: ModuleType, fresh_workers: Callable[..., Workers]) -> None:
    dead, alive = fresh_workers(2)
    sent = SentFunction(lambda: 1)
    for pid in (dead, alive):
        assert d.remotecall_fetch(sent.on(pid), pid) == 1
    d.rmprocs(dead)
    with pytest.raises(d.ProcessExitedException):
        d.remotecall_fetch(sent.on(dead), dead)
    sent.forget()
    assert not is_held(d, alive, sent.key)
    with pytest.raises(d.ProcessExitedException):
        sent.on(dead)


def test_here_it_is_the_function_itself(d: ModuleType) -> None:
    def f() -> int:
        return 1

    assert SentFunction(f).on(1) is f


def test_an_error_of_unpickling_is_that_of_each_call(d: ModuleType, workers: Workers) -> None:
    pid = workers[0]
    sent = SentFunction(support.Unloadable())
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module_of_pydist"):
            d.remotecall_fetch(sent.on(pid), pid)


def test_what_could_not_be_unpickled_is_tried_again(d: ModuleType, workers: Workers) -> None:
    pid = workers[0]
    sent = SentFunction(support.Unloadable())
    with pytest.raises(ModuleNotFoundError):
        d.remotecall_fetch(sent.on(pid), pid)
    module = "import sys, types; sys.modules['no_such_module_of_pydist'] = types.SimpleNamespace(f=len)"
    d.remotecall_eval(module, pid)
    assert d.remotecall_fetch(sent.on(pid), pid, "abc") == 3
    d.remotecall_eval("del sys.modules['no_such_module_of_pydist']", pid)


def test_what_cannot_be_pickled_raises_here(d: ModuleType, workers: Workers) -> None:
    lock = threading.Lock()
    sent = SentFunction(lambda: lock)
    with pytest.raises(TypeError, match="lock"):
        sent.on(workers[0])
    assert d.remotecall_fetch(len, workers[0], "abc") == 3


def test_async_functions_stay_so(d: ModuleType, workers: Workers) -> None:
    async def f(x: int) -> int:
        return x + 1

    pid = workers[0]
    sent = SentFunction(f)
    assert d.remotecall_fetch(sent.on(pid), pid, 1) == 2
    assert d.remotecall_fetch(support.is_coroutine_function, pid, sent.on(pid))


def test_captured_futures_live_as_long(d: ModuleType, workers: Workers) -> None:
    def fetching(future: Any) -> SentFunction:
        return SentFunction(lambda: future.fetch())

    owner, other = workers
    sent = fetching(d.remotecall(list, owner, "abc"))
    for pid in (owner, other, owner):
        assert d.remotecall_fetch(sent.on(pid), pid) == list("abc")


def test_a_captured_future_may_have_come_between_two_workers(d: ModuleType, workers: Workers) -> None:
    future = d.remotecall(list, workers[0], "abc")
    sent = SentFunction(lambda: future.fetch())
    assert d.remotecall_fetch(sent.on(workers[0]), workers[0]) == list("abc")
    assert future.fetch() == list("abc")
    assert d.remotecall_fetch(sent.on(workers[1]), workers[1]) == list("abc")


def test_workers_send_functions_to_each_other(d: ModuleType, workers: Workers) -> None:
    here, there = workers

    def through() -> list[int]:
        import pydist
        from pydist._functions import SentFunction

        sent = SentFunction(lambda x: x * 3)
        return [pydist.remotecall_fetch(sent.on(pid), pid, 2) for pid in (1, there, here)]

    assert d.remotecall_fetch(through, here) == [6, 6, 6]


def test_functions_of_dead_processes_are_dropped(
    d: ModuleType, workers: Workers, fresh_workers: Callable[..., Workers]
) -> None:
    first, second = fresh_workers(2)
    here = workers[0]

    def send() -> int:
        import pydist
        from pydist import _functions

        sent = _functions.SentFunction(lambda: 1)
        _functions.kept = sent
        return pydist.remotecall_fetch(sent.on(here), here)

    def sources() -> list[int]:
        from pydist import _functions

        return list(_functions._received)

    assert d.remotecall_fetch(send, first) == 1
    assert first in d.remotecall_fetch(sources, here)
    d.rmprocs(first)
    support.wait_until(lambda: first not in d.remotecall_fetch(d.procs, here), 10)
    assert d.remotecall_fetch(send, second) == 1
    assert first not in d.remotecall_fetch(sources, here)


def test_plain_calls_send_a_function_once_to_each_worker(d: ModuleType, workers: Workers) -> None:
    text = "a" * 1_000_000

    def f(i: int) -> str:
        return text[i]

    def use() -> None:
        for i in range(10):
            for pid in workers:
                assert d.remotecall_fetch(f, pid, i) == "a"
                assert d.remotecall(f, pid, i).fetch(timeout=30) == "a"
                d.remote_do(f, pid, i)

    assert 2_000_000 < bytes_sent(d, use) < 2_100_000


def test_threads_that_call_at_once_send_it_hardly_more_often(d: ModuleType, workers: Workers) -> None:
    """A call that lasts does not keep others from knowing that the function has been sent."""
    text = "a" * 1_000_000
    gate = d.Future()

    def f(wait: Any) -> int:
        if wait is not None:
            wait.fetch()
        return len(text)

    first = threading.Thread(target=d.remotecall_fetch, args=(f, workers[0], gate))

    def use() -> None:
        first.start()
        support.wait_until(
            lambda: d.remotecall_fetch(len, workers[0], "") == 0 and d.stats()["bytes_sent"] > start
        )
        for _ in range(5):
            assert d.remotecall_fetch(f, workers[0], None) == len(text)

    start = d.stats()["bytes_sent"] + len(text)
    # Once, and once more where the first thread has not got to note that it is sent.
    assert bytes_sent(d, use) < 2_200_000
    gate.put(None)
    first.join(30)


def test_many_threads_call_the_same_new_function(d: ModuleType, workers: Workers) -> None:
    for size in (1, 10_000):
        text = "a" * size

        def f(i: int, text: str = text) -> int:
            return len(text) + i

        values: list[int] = []
        start = threading.Barrier(8)

        def call(
            f: Callable[[int], int] = f, values: list[int] = values, start: threading.Barrier = start
        ) -> None:
            start.wait(10)
            values.extend(d.remotecall_fetch(f, workers[i % 2], i) for i in range(20))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(values) == sorted([size + i for i in range(20)] * 8)


def test_a_cancelled_first_call_brings_the_function_all_the_same(d: ModuleType, workers: Workers) -> None:
    text = "a" * 10_000

    def f() -> int:
        return len(text)

    pid = workers[0]
    for _ in range(10):
        d.remotecall(f, pid).cancel()
        assert d.remotecall_fetch(f, pid) == len(text)


def test_changes_are_seen_by_the_next_call(d: ModuleType, workers: Workers) -> None:
    n = 0

    def helper() -> int:
        return n

    def f() -> tuple[int, int]:
        return n, helper()

    for value in (1, 1, 1, 2, 2, 2, 2, 3, 4, 5, 5, 5, 5):
        n = value
        assert d.remotecall_fetch(f, workers[0]) == (value, value)


def test_errors_of_a_kept_function_stay_so(d: ModuleType, workers: Workers) -> None:
    def f(x: int) -> float:
        return 1 / x

    for _ in range(5):
        with pytest.raises(ZeroDivisionError) as caught:
            d.remotecall_fetch(f, workers[0], 0)
        assert "return 1 / x" in caught.value.remote_traceback


def test_coroutine_functions_are_kept_too(d: ModuleType, workers: Workers) -> None:
    async def f(x: int) -> int:
        return x + 1

    for i in range(5):
        assert d.remotecall_fetch(f, workers[0], i) == i + 1


def test_workers_keep_functions_of_each_other(d: ModuleType, workers: Workers) -> None:
    here, there = workers

    def through() -> list[int]:
        import pydist

        text = "a" * 10_000
        return [pydist.remotecall_fetch(lambda: len(text), there) for _ in range(3)] + [
            pydist.remotecall_fetch(f, pid)
            for f in [lambda: len(text)]
            for pid in (there, 1)
            for _ in range(3)
        ]

    assert d.remotecall_fetch(through, here) == [10_000] * 9


def test_workers_forget_large_functions_that_are_gone_here(d: ModuleType, workers: Workers) -> None:
    def held_here() -> int:
        from pydist import _functions

        return sum(len(functions) for functions in _functions._received.values())

    def use() -> None:
        text = "a" * 10_000
        for pid in workers:
            assert d.remotecall_fetch(lambda: len(text), pid) == 10_000

    for pid in workers * 3:
        d.remotecall_fetch(held_here, pid)
    gc.collect()
    before = [d.remotecall_fetch(held_here, pid) for pid in workers]
    for _ in range(10):
        use()
    support.wait_until(lambda: [d.remotecall_fetch(held_here, pid) for pid in workers] <= before, 10)


def test_forgetting_never_overtakes_a_call(
    d: ModuleType, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many threads call more functions than are kept, some of which change, while garbage is collected."""
    monkeypatch.setattr(_function_cache, "ENTRIES_MAX", 4)
    shared = [make_adder(n, "a" * size) for n, size in enumerate([1, 10_000] * 6)]
    errors: list[BaseException] = []

    def call(seed: int) -> None:
        random = Random(seed)
        try:
            for _ in range(40):
                n = random.randrange(len(shared))
                pid = random.choice(workers)
                assert d.remotecall_fetch(shared[n], pid, 1) == n + 1
                f = make_adder(seed, "b" * random.choice([1, 10_000]))
                assert [d.remotecall_fetch(f, pid, i) for i in range(3)] == [seed, seed + 1, seed + 2]
                f.__defaults__ = (0, -seed)
                assert d.remotecall_fetch(f, pid) == 0
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
    threshold = gc.get_threshold()
    gc.set_threshold(10)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        gc.set_threshold(*threshold)
    assert not errors, errors


def make_adder(n: int, text: str) -> Any:
    def add(x: int = 0, more: int = 0) -> int:
        return x + n + more + 0 * len(text)

    return add


def test_large_captures_are_warned_of_where_a_function_may_be_sent_again(
    d: ModuleType, workers: Workers
) -> None:
    data = bytes(11 * 2**20)
    array = np.zeros(2**21)
    for f in (lambda: len(data), lambda: len(array)):
        with pytest.warns(UserWarning, match="pass it as an argument, or use a CachingPool"):
            d.remotecall_fetch(f, workers[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            d.remotecall_fetch(f, workers[1])


def test_sent_functions_are_not_warned_of(d: ModuleType, workers: Workers) -> None:
    array = np.zeros(2**21)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sent = SentFunction(lambda: len(array))
        assert d.remotecall_fetch(sent.on(workers[0]), workers[0]) == 2**21


def test_functions_of_registered_modules_go_by_value(d: ModuleType, workers: Workers) -> None:
    d.register_by_value(support)
    try:
        f = support.by_value
        for n in (1, 1, 1, 2, 2, 2):
            support.NUMBER = n
            assert d.remotecall_fetch(f, workers[0]) == n
    finally:
        d.unregister_by_value(support)
        support.NUMBER = 0
    assert d.remotecall_fetch(f, workers[0]) == 0


def test_the_death_of_a_worker_ends_a_first_call(
    d: ModuleType, fresh_workers: Callable[..., Workers]
) -> None:
    """F1, where the call is the one that brings the function."""
    (pid,) = fresh_workers()
    text = "a" * 10_000
    with pytest.raises(d.ProcessExitedException) as caught:
        d.remotecall_fetch(lambda: os._exit(len(text) and 3), pid)
    assert caught.value.pid == pid
