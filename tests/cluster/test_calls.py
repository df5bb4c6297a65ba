"""Remote calls: the family of functions, order, how functions travel, asynchronous functions."""

import asyncio
import collections
import concurrent.futures
import functools
import importlib
import os
import sys
import threading
import time

import cloudpickle
import pytest

import pydist as d
from support import nap, run_script, touch, wait_until

log: list[object] = []
counts: collections.Counter[str] = collections.Counter()


def keywords(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


def note(item: object) -> None:
    log.append(item)


def noted() -> list[object]:
    found = list(log)
    log.clear()
    return found


def noted_first() -> list[object]:
    return [first for first, _ in noted()]


def fail(text: str) -> None:
    raise ValueError(text)


def leave(error: BaseException) -> None:
    raise error


def lock() -> threading.Lock:
    return threading.Lock()


class Adder:
    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: int) -> int:
        return x + self.by

    def add(self, x: int) -> int:
        return x + self.by

    @classmethod
    def of(cls, by: int) -> "Adder":
        return cls(by)


# --- the family ---------------------------------------------------------------------------------------------


def test_remotecall_returns_a_future_at_once(workers, tmp_path):
    begin = time.monotonic()
    future = d.remotecall(nap, workers[0], 1.0, started=str(tmp_path / "started"))
    assert time.monotonic() - begin < 0.5
    assert isinstance(future, d.Future)
    assert future.fetch(timeout=10) == 1.0


def test_remotecall_fetch_returns_the_value(workers):
    assert d.remotecall_fetch(pow, workers[0], 2, 100) == 2**100
    assert d.remotecall_fetch(dict, workers[1], a=1, b=[2]) == {"a": 1, "b": [2]}
    assert d.remotecall_fetch(note, workers[1], None) is None


def test_remotecall_wait_returns_the_finished_future(workers):
    future = d.remotecall_wait(nap, workers[0], 0.1)
    assert isinstance(future, d.Future)
    assert future.isready()
    assert future.fetch() == 0.1


@pytest.mark.parametrize("where", ["worker", "here"])
def test_remotecall_wait_raises_what_the_call_raised(workers, where):
    pid = workers[0] if where == "worker" else 1
    with pytest.raises(ValueError, match="no good") as caught:
        d.remotecall_wait(fail, pid, "no good")
    assert isinstance(caught.value, d.RemoteException)


def test_remote_do_returns_nothing(workers):
    d.remotecall_fetch(noted, workers[0])
    assert d.remote_do(note, workers[0], 1) is None
    wait_until(lambda: d.remotecall_fetch(noted, workers[0]) == [1])


def test_remote_do_prints_its_error_on_the_worker():
    done = run_script("""
        import time
        import pydist as d

        def stumble():
            raise ValueError("over the root of a tree")

        (pid,) = d.addprocs(1)
        d.remote_do(stumble, pid)
        assert d.remotecall_fetch(d.myid, pid) == pid  # so the other call has begun
        while d.stats(pid)["calls_running"]:
            time.sleep(0.01)
        d.rmprocs(pid)
        """)
    assert done.returncode == 0
    output = done.stdout + done.stderr
    assert "ValueError: over the root of a tree" in output
    assert "in stumble" in output


def test_a_worker_that_is_to_end_prints_the_error_that_it_is_printing():
    done = run_script("""
        import os
        import time
        import pydist as d

        class Slow(Exception):
            def __init__(self, path):
                self.path = path

            def __str__(self):
                open(self.path, "w").close()
                time.sleep(0.3)
                return "over the root of a tree"

        def stumble(path):
            raise Slow(path)

        (pid,) = d.addprocs(1)
        printing = os.path.abspath("printing")
        d.remote_do(stumble, pid, printing)
        while not os.path.exists(printing):
            time.sleep(0.01)
        d.rmprocs(pid)
        """)
    assert "Slow: over the root of a tree" in done.stderr


def test_remote_makes_a_function_that_runs_on_a_free_worker(workers):
    there = d.remote(os.getpid)
    ospids = {d.remotecall_fetch(os.getpid, pid) for pid in workers}
    assert there() in ospids
    assert d.remote(keywords)(1, f=2) == ((1,), {"f": 2})
    with pytest.raises(ValueError, match="no good"):
        d.remote(fail)("no good")


def test_remote_uses_all_workers_at_once(workers, tmp_path):
    def meet(me: int) -> int:
        touch(tmp_path / str(me))
        wait_until((tmp_path / str(1 - me)).exists, 20)
        return d.myid()

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(d.remote(meet), range(2))) == workers


@pytest.mark.parametrize("name", ["remotecall", "remotecall_fetch", "remotecall_wait", "remote_do"])
def test_the_first_parameters_are_positional_only(workers, name):
    names = ["f", "where", "args", "kwargs", "self", "pid", "pool", "id", "timeout", "code", "function"]
    expected = (1,), {each: each for each in names}
    result = getattr(d, name)(keywords, workers[0], 1, **expected[1])
    if name != "remote_do":
        assert d.fetch(result) == expected


def test_spawn_family_takes_keywords_of_any_name_too(workers):
    expected = (1,), {"f": 1, "where": 2, "p": 3, "self": 4, "pid": 5}
    assert d.spawnat(workers[0], keywords, 1, **expected[1]).fetch() == expected
    assert d.spawn(keywords, 1, **expected[1]).fetch() == expected
    assert d.fetchfrom(workers[0], keywords, 1, **expected[1]) == expected


# --- spawn, fetch -------------------------------------------------------------------------------------------


def test_spawnat_as_a_function(workers):
    future = d.spawnat(workers[1], d.myid)
    assert isinstance(future, d.Future)
    assert future.fetch() == workers[1]
    assert future.where == workers[1]
    assert d.spawnat("any", d.myid).fetch() in workers


def test_spawn_as_a_function(workers):
    future = d.spawn(pow, 2, 10)
    assert isinstance(future, d.Future)
    assert future.fetch() == 1024
    assert {d.spawn(d.myid).fetch() for _ in range(10)} <= set(workers)


def test_spawn_as_a_decorator(workers):
    base = 20

    @d.spawn
    def answer():
        return base + 22, d.myid()

    assert isinstance(answer, d.Future)
    value, pid = answer.fetch()
    assert value == 42
    assert pid in workers


def test_spawnat_as_a_decorator(workers):
    @d.spawnat(workers[1])
    def where():
        return d.myid()

    assert isinstance(where, d.Future)
    assert where.fetch() == workers[1]


def test_fetch_as_a_decorator(workers):
    @d.fetch
    def value():
        return d.myid()

    assert value in workers


def test_fetchfrom(workers):
    @d.fetchfrom(workers[0])
    def value():
        return d.myid()

    assert value == workers[0]
    assert d.fetchfrom(workers[1], pow, 2, 3) == 8
    with pytest.raises(ValueError, match="no good"):
        d.fetchfrom(workers[0], fail, "no good")


def test_fetch_of_anything_else_gives_it_back(workers):
    value = object()
    assert d.fetch(value) is value
    assert d.fetch(None) is None
    assert d.fetch(d.remotecall(pow, workers[0], 2, 3)) == 8


def test_wait_for_a_future(workers):
    future = d.remotecall(nap, workers[0], 0.1)
    d.wait(future)
    assert future.isready()
    with pytest.raises(TimeoutError):
        d.wait(d.Future(), timeout=0.05)


def test_as_completed_yields_in_the_order_of_completion(workers):
    gates = [d.Future() for _ in range(3)]
    futures = [d.remotecall(d.fetch, workers[i % 2], gate) for i, gate in enumerate(gates)]
    completed = d.as_completed(futures, timeout=20)
    for i in (2, 0, 1):
        gates[i].put(i)
        assert next(completed) is futures[i]
    assert list(completed) == []
    assert [future.fetch() for future in futures] == [0, 1, 2]


def test_as_completed_yields_failures_and_times_out(workers):
    failed, pending = d.remotecall(fail, workers[0], "no good"), d.Future()
    completed = d.as_completed([pending, failed], timeout=0.5)
    assert next(completed) is failed
    with pytest.raises(TimeoutError):
        next(completed)
    assert list(d.as_completed([])) == []


# --- source text --------------------------------------------------------------------------------------------


def test_remotecall_eval_gives_the_value_of_the_last_expression(workers):
    assert d.remotecall_eval("1 + 1", workers[0]) == 2
    assert d.remotecall_eval("x = 20\ny = x + 1\n2 * y", workers[0]) == 42
    assert d.remotecall_eval("import os\nos.getpid()", workers[0]) == d.remotecall_fetch(
        os.getpid, workers[0]
    )


def test_remotecall_eval_runs_in_main_there_and_waits(workers):
    d.remotecall_eval("import time; time.sleep(0.2); height = 8848", workers)
    for pid in workers:
        assert d.remotecall_eval("height", pid) == 8848
        assert d.remotecall_fetch(lambda: vars(sys.modules["__main__"])["height"], pid) == 8848
    d.remotecall_eval("def tall(x):\n    return x > height", workers[0])
    assert d.remotecall_eval("tall(9000)", workers[0]) is True
    with pytest.raises(NameError, match="tall"):
        d.remotecall_eval("tall(9000)", workers[1])


def test_remotecall_eval_takes_names(workers):
    assert d.remotecall_eval("[code] + rest", workers[0], code=1, rest=[2, 3]) == [1, 2, 3]
    assert d.remotecall_eval("pids * 2", workers[0], pids=21) == 42


def test_remotecall_eval_here(workers):
    d.remotecall_eval("pydist_test_here = name", [1, *workers], name="set")
    assert vars(sys.modules["__main__"])["pydist_test_here"] == "set"
    assert d.remotecall_eval("pydist_test_here", 1) == "set"


def test_remotecall_eval_raises(workers):
    with pytest.raises(ZeroDivisionError):
        d.remotecall_eval("1 / 0", workers[0])
    with pytest.raises(SyntaxError):
        d.remotecall_eval("this is no Python", workers[0])


# --- order and independence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [d.remote_do, d.remotecall])
def test_calls_start_in_the_order_in_which_they_were_made(workers, call):
    d.remotecall_fetch(noted, workers[0])
    futures = [call(note, workers[0], i) for i in range(3000)]
    for future in futures:
        d.fetch(future)
    seen: list[object] = []
    wait_until(lambda: seen.extend(d.remotecall_fetch(noted, workers[0])) or len(seen) == 3000)
    assert seen == list(range(3000))


def test_order_holds_from_worker_to_worker_and_across_kinds_of_call(workers):
    one, two = workers

    def send() -> None:
        for i in range(300):
            (d.remote_do, d.remotecall, d.remotecall_wait)[i % 3](note, two, i)

    d.remotecall_fetch(noted, two)
    d.remotecall_fetch(send, one)
    assert d.remotecall_fetch(noted, two) == list(range(300))


def test_order_holds_for_large_arguments(workers):
    d.remotecall_fetch(noted, workers[0])
    for i in range(20):
        d.remote_do(note, workers[0], (i, bytes(10_000_000 if i % 2 == 0 else 1)))
    seen: list[int] = []
    wait_until(lambda: seen.extend(d.remotecall_fetch(noted_first, workers[0])) or len(seen) == 20, 30)
    assert seen == list(range(20))


def test_a_call_that_blocks_holds_up_no_other(workers):
    blocked = d.remotecall(time.sleep, workers[0], 2)
    begin = time.monotonic()
    assert d.remotecall_fetch(d.myid, workers[0]) == workers[0]
    assert time.monotonic() - begin < 1
    assert not blocked.isready()
    blocked.fetch()


def test_calls_from_many_threads(workers):
    def many(k: int) -> list[int]:
        return [d.remotecall_fetch(pow, workers[k % 2], k, 2) for _ in range(200)]

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        assert list(threads.map(many, range(16))) == [[k * k] * 200 for k in range(16)]


# --- from where to where ------------------------------------------------------------------------------------


def test_worker_calls_worker_and_process_1(workers):
    one, two = workers
    assert d.remotecall_fetch(d.remotecall_fetch, one, d.myid, two) == two
    assert d.remotecall_fetch(d.remotecall_fetch, one, d.myid, 1) == 1
    assert d.remotecall_fetch(d.remotecall_fetch, one, os.getpid, 1) == os.getpid()
    future = d.remotecall_fetch(d.remotecall, one, pow, two, 2, 3)
    assert isinstance(future, d.Future)
    assert (future.whence, future.where, future.fetch()) == (one, two, 8)


def bounce(path: list[int], depth: int) -> list[int]:
    here = [*path, d.myid()]
    if depth == 0:
        return here
    return d.remotecall_fetch(bounce, other(), here, depth - 1)


def other() -> int:
    first, second = d.workers()
    return second if d.myid() == first else first


def test_nested_calls_go_back_and_forth(workers):
    one, two = workers
    assert d.remotecall_fetch(bounce, one, [], 40) == [one, two] * 20 + [one]


def test_a_call_to_oneself_pickles_nothing(workers):
    guard = threading.Lock()
    assert d.remotecall_fetch(lambda x: x, 1, guard) is guard
    assert d.remotecall(lambda *, key: key, 1, key=guard).fetch() is guard
    assert d.remotecall_fetch(os.getpid, 1) == os.getpid()

    def there() -> bool:
        mine = threading.Lock()
        return d.remotecall_fetch(lambda x: x, d.myid(), mine) is mine

    assert d.remotecall_fetch(there, workers[0]) is True


def test_an_error_in_a_call_to_oneself_looks_as_one_from_elsewhere(workers):
    caught = {}
    for pid in (1, workers[0]):
        with pytest.raises(ValueError, match="no good") as info:
            d.remotecall_fetch(fail, pid, "no good")
        error = caught[pid] = info.value
        assert isinstance(error, d.RemoteException)
        assert error.pid == pid
        assert type(error.captured) is ValueError
        assert error.__cause__ is error.captured
    assert type(caught[1]) is type(caught[workers[0]])


@pytest.mark.parametrize("name", ["remotecall", "remotecall_fetch", "remotecall_wait", "remote_do"])
@pytest.mark.parametrize("pid", [0, -1, 987654])
def test_unknown_id_is_a_value_error(workers, name, pid):
    with pytest.raises(ValueError, match=str(pid)):
        getattr(d, name)(d.myid, pid)


def test_a_worker_that_has_gone_is_a_process_exited_exception(fresh_workers):
    (pid,) = fresh_workers(1)
    d.rmprocs(pid)
    for call in (d.remotecall_fetch, d.remotecall_wait, lambda f, pid: d.remotecall(f, pid).fetch()):
        with pytest.raises(d.ProcessExitedException) as caught:
            call(d.myid, pid)
        assert caught.value.pid == pid


# --- how functions travel -----------------------------------------------------------------------------------


def test_callables_of_all_kinds(workers):
    captured = 10

    def closure(x: int) -> int:
        return x + captured

    def default(x: int, *, by: int = captured) -> int:
        return x + by

    class Local:
        def __call__(self, x: int) -> int:
            return x + captured

    for f in (
        closure,
        default,
        lambda x: x + captured,
        functools.partial(int.__add__, 10),
        Adder(10),
        Adder(10).add,
        Adder.of(10),
        Local(),
        (10).__add__,
    ):
        assert d.remotecall_fetch(f, workers[0], 5) == 15
    assert d.remotecall_fetch(int, workers[0], "15") == 15
    assert d.remotecall_fetch(Adder.of, workers[0], 3).by == 3
    assert d.remotecall_fetch("a,b".split, workers[0], ",") == ["a", "b"]


def test_recursive_and_mutually_dependent_closures(workers):
    def even(n: int) -> bool:
        return n == 0 or odd(n - 1)

    def odd(n: int) -> bool:
        return n != 0 and even(n - 1)

    assert d.remotecall_fetch(even, workers[0], 100) is True


def count(name: str) -> int:
    counts[name] += 1
    return counts[name]


def test_a_function_that_can_be_named_uses_the_module_there(workers):
    assert [d.remotecall_fetch(count, workers[0], "test") for _ in range(3)] == [1, 2, 3]
    assert counts["test"] == 0


def test_a_closure_carries_its_values_at_the_time_of_the_call(workers):
    box = [1]
    first = d.remotecall(lambda: (time.sleep(0.1), box[0])[1], workers[0])
    box[0] = 2
    assert first.fetch() == 1
    assert d.remotecall_fetch(lambda: box[0], workers[0]) == 2


def test_functions_of_a_registered_module_go_by_value(workers, tmp_path, monkeypatch):
    (tmp_path / "pydist_test_only_here.py").write_text("BASE = 40\n\ndef add(x):\n    return BASE + x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("pydist_test_only_here")
    with pytest.raises(ModuleNotFoundError, match="pydist_test_only_here") as caught:
        d.remotecall_fetch(module.add, workers[0], 2)
    assert isinstance(caught.value, d.RemoteException)
    d.register_by_value(module)
    try:
        assert d.remotecall_fetch(module.add, workers[0], 2) == 42
        assert d.remotecall_fetch(lambda: module.add(3), workers[1]) == 43
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_a_large_captured_value_is_warned_of(workers):
    table = bytes(11_000_000)
    with pytest.warns(UserWarning, match="table"):
        assert d.remotecall_fetch(lambda: len(table), workers[0]) == 11_000_000


# --- asynchronous functions ---------------------------------------------------------------------------------

meeting: dict[str, int] = {"here": 0}
everyone: list[asyncio.Event] = []


async def meet(n: int) -> int:
    if not everyone:
        everyone.append(asyncio.Event())
    meeting["here"] += 1
    if meeting["here"] == n:
        everyone[0].set()
    await everyone[0].wait()
    return meeting["here"]


async def fail_later(text: str) -> None:
    await asyncio.sleep(0.01)
    raise KeyError(text)


async def add_up(*futures: d.Future) -> int:
    return sum([await future for future in futures])


def test_a_thousand_asynchronous_calls_wait_at_once_in_one_worker(workers):
    threads = d.remotecall_fetch(threading.active_count, workers[0])
    futures = [d.remotecall(meet, workers[0], 1000) for _ in range(1000)]
    assert [future.fetch(timeout=30) for future in futures] == [1000] * 1000
    assert d.remotecall_fetch(threading.active_count, workers[0]) < threads + 100


def test_asynchronous_functions_await_and_raise(workers):
    one, two = workers
    assert d.remotecall_fetch(add_up, one, d.remotecall(pow, two, 2, 3), d.remotecall(pow, one, 2, 4)) == 24
    with pytest.raises(KeyError, match="later"):
        d.remotecall_fetch(fail_later, one, "later")


def test_asynchronous_calls_share_one_loop(workers):
    async def loop() -> int:
        return id(asyncio.get_running_loop())

    assert len({d.remotecall_fetch(loop, workers[0]) for _ in range(5)}) == 1


@pytest.mark.parametrize("where", ["worker", "here"])
def test_asynchronous_function_by_value_and_here(workers, where):
    pid = workers[0] if where == "worker" else 1

    async def later(x: int) -> int:
        await asyncio.sleep(0.01)
        return x + 1

    assert d.remotecall_fetch(later, pid, 1) == 2
    assert d.remotecall(later, pid, 2).fetch(timeout=10) == 3


# --- errors that are no Exception ---------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("by hand"), GeneratorExit("gone")])
@pytest.mark.parametrize("where", ["worker", "here"])
def test_an_exit_in_a_call_ends_that_call_alone(workers, error, where):
    pid = workers[0] if where == "worker" else 1
    ospid = d.remotecall_fetch(os.getpid, pid)
    with pytest.raises(d.RemoteException) as caught:
        d.remotecall_fetch(leave, pid, error)
    assert not isinstance(caught.value, type(error))
    assert type(error).__name__ in str(caught.value)
    assert type(caught.value.captured) is type(error)
    assert caught.value.captured.args == error.args
    assert caught.value.pid == pid
    assert d.remotecall_fetch(os.getpid, pid) == ospid


def test_sys_exit_in_remote_do_and_in_asynchronous_calls(workers):
    async def leave_later() -> None:
        await asyncio.sleep(0)
        sys.exit(4)

    d.remote_do(sys.exit, workers[0], 3)
    with pytest.raises(d.RemoteException, match="SystemExit"):
        d.remotecall(leave_later, workers[0]).fetch(timeout=10)
    assert d.remotecall_fetch(d.myid, workers[0]) == workers[0]


async def sleep_long() -> None:
    await asyncio.sleep(600)


def test_a_coroutine_is_cancelled_whenever_it_was_begun(workers):
    for _ in range(30):
        futures = [d.remotecall(sleep_long, workers[0]) for _ in range(20)]
        for future in futures:
            future.cancel()
        for future in futures:
            with pytest.raises(d.CancelledError):
                future.fetch(10)
    wait_until(lambda: d.stats(workers[0])["calls_running"] == 0)
