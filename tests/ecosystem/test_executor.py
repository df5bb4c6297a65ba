"""`pydist.Executor` keeps the contract of `concurrent.futures`."""

import asyncio
import concurrent.futures as cf
import gc
import itertools
import os
import signal
import threading
import time
import traceback
import weakref
from pathlib import Path

import pytest

import pydist as d
from pydist.executor import BrokenWorkers, RemoteTraceback
from support import nap, run_script, wait_until


@pytest.fixture
def executor(workers):
    with d.Executor(workers=workers) as made:
        yield made


def fail(error: BaseException) -> None:
    raise error  # a comment that the traceback shows


def touch_and_nap(folder: str, name: str, seconds: float) -> str:
    (Path(folder) / name).touch()
    nap(seconds)
    return name


def hold_until(path: str) -> str:
    wait_until(lambda: Path(path).exists(), timeout=30)
    return path


SET = "unset"


def set_global(value: str) -> None:
    global SET
    SET = value


def get_global() -> tuple[int, str]:
    time.sleep(0.01)
    return os.getpid(), SET


@pytest.mark.parametrize("number", [0, -1])
def test_max_workers_must_be_above_0(number):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        d.Executor(number)
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        d.Executor(max_workers=number)


def test_bad_arguments_are_refused(workers):
    with pytest.raises(TypeError, match="initializer must be a callable"):
        d.Executor(workers=workers, initializer=3)
    with pytest.raises(ValueError, match="workers is empty"):
        d.Executor(workers=[])
    with pytest.raises(ValueError, match="9999"):
        d.Executor(workers=[9999])
    with pytest.raises(TypeError, match="give one of them"):
        d.Executor(2, workers=workers)
    with pytest.raises(TypeError, match="dir"):
        d.Executor(workers=workers, dir="/")


def test_it_is_an_executor_of_the_standard_library(executor, workers):
    assert isinstance(executor, cf.Executor)
    future = executor.submit(pow, 2, 8)
    assert isinstance(future, cf.Future)
    assert future.result(10) == 256
    assert future.done()
    assert not future.running()
    assert executor.submit(os.getpid).result(10) != os.getpid()
    assert executor._max_workers == len(workers)


def test_submit_takes_keywords_of_any_name(executor):
    assert executor.submit(dict, self=1, fn=2).result(10) == {"self": 1, "fn": 2}
    with pytest.raises(TypeError):
        executor.submit()
    with pytest.raises(TypeError):
        executor.submit(fn=pow, args=(1, 2))


def test_lambdas_and_closures(executor):
    n = 3
    assert list(executor.map(lambda x: x * n, range(5))) == [0, 3, 6, 9, 12]


def test_a_pool_names_its_workers(workers):
    with d.Executor(workers=d.WorkerPool(workers)) as executor:
        assert executor.submit(d.myid).result(10) in workers
    assert set(workers) <= set(d.workers())


def test_by_default_it_uses_the_workers_there_are(workers):
    with d.Executor() as executor:
        assert executor._max_workers == d.nworkers()
        assert executor.submit(d.myid).result(10) in d.workers()


def test_an_error_is_that_of_the_worker_with_its_traceback(executor):
    error = executor.submit(fail, RuntimeError(123)).exception(10)
    assert type(error) is RuntimeError
    assert error.args == (123,)
    assert type(error.__cause__) is RemoteTraceback
    assert "raise error  # a comment that the traceback shows" in error.__cause__.tb
    with pytest.raises(RuntimeError) as info:
        executor.submit(fail, RuntimeError(123)).result(10)
    shown = "".join(traceback.format_exception(info.value))
    assert "raise error  # a comment that the traceback shows" in shown


def test_a_chain_of_errors_is_kept(executor):
    def chained():
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner

    error = executor.submit(chained).exception(10)
    assert type(error) is ValueError
    assert isinstance(error.__cause__.__cause__, KeyError)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_errors_that_are_no_exceptions(executor, error):
    assert type(executor.submit(fail, error).exception(10)) is type(error)
    assert executor.submit(abs, -1).result(10) == 1


def test_what_cannot_be_pickled_is_the_error_of_its_future(executor):
    assert "args[0]" in str(executor.submit(abs, threading.Lock()).exception(10))
    assert "lock" in str(executor.submit(threading.Lock).exception(10))
    assert executor.submit(abs, -2).result(10) == 2


class RaisesWhere:
    """Raises an interrupt where it is pickled, or where it is loaded."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self):
        if self.when == "dump":
            raise KeyboardInterrupt
        return fail, (KeyboardInterrupt(),)


def test_no_error_ends_the_thread_of_an_executor(executor, workers, tmp_path):
    running = [executor.submit(hold_until, str(tmp_path / "go")) for _ in workers]
    queued = executor.submit(id, RaisesWhere("dump"))
    (tmp_path / "go").touch()
    assert [future.result(10) for future in running]
    assert isinstance(queued.exception(10), KeyboardInterrupt)
    assert isinstance(executor.submit(RaisesWhere, "load").exception(10), KeyboardInterrupt)
    executor.submit(nap, 0.05).add_done_callback(lambda future: fail(SystemExit(1)))
    assert list(executor.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]


def test_own_workers_serve_nobody_else():
    done = run_script("""
        import pydist as d
        with d.Executor(2) as executor:
            own = executor.submit(d.myid).result()
            print(own in d.workers(), d.default_worker_pool().workers(), d.pmap(lambda _: d.myid(), range(3)))
            print(d.spawn(d.myid).fetch())
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("True [1] [1, 1, 1]\n1\n", "", 0)


def test_states_and_cancel(executor, workers, tmp_path):
    running = [executor.submit(hold_until, str(tmp_path / "go")) for _ in workers]
    waiting = executor.submit(abs, -1)
    called = []
    waiting.add_done_callback(called.append)
    assert all(future.running() for future in running)
    assert not waiting.running()
    assert not running[0].cancel()
    assert waiting.cancel()
    assert waiting.cancelled()
    assert called == [waiting]
    with pytest.raises(cf.CancelledError):
        waiting.result(10)
    (tmp_path / "go").touch()
    done, not_done = cf.wait([*running, waiting], timeout=10)
    assert not not_done
    assert len(done) == len(running) + 1


def test_wait_and_as_completed_see_cancelled_futures(executor, workers, tmp_path):
    running = [executor.submit(hold_until, str(tmp_path / "go")) for _ in workers]
    waiting = executor.submit(abs, -1)
    waiter = threading.Timer(0.05, (tmp_path / "go").touch)
    waiting.cancel()
    waiter.start()
    assert set(cf.as_completed([*running, waiting], timeout=10)) == {*running, waiting}
    waiter.join()


def test_timeouts(executor, workers, tmp_path):
    futures = [executor.submit(hold_until, str(tmp_path / "go")) for _ in workers]
    with pytest.raises(TimeoutError):
        futures[0].result(0.01)
    assert cf.wait(futures, timeout=0.01).not_done == set(futures)
    with pytest.raises(TimeoutError):
        list(executor.map(abs, [-1], timeout=0.01))
    (tmp_path / "go").touch()
    assert futures[0].result(10)


def test_callbacks(executor):
    calls = []
    future = executor.submit(abs, -3)
    future.add_done_callback(lambda f: calls.append(f.result()))
    future.add_done_callback(lambda f: 1 / 0)
    future.add_done_callback(lambda f: calls.append("second"))
    wait_until(lambda: len(calls) == 2)
    assert calls == [3, "second"]


def test_a_callback_may_submit(executor):
    second = []
    executor.submit(abs, -3).add_done_callback(lambda f: second.append(executor.submit(abs, -4)))
    assert wait_until(lambda: second)[0].result(10) == 4


@pytest.mark.parametrize("chunksize", [1, 3, 6, 20])
@pytest.mark.parametrize("buffersize", [None, 1, 4])
def test_map(executor, chunksize, buffersize):
    values = executor.map(pow, range(20), range(30), chunksize=chunksize, buffersize=buffersize)
    assert list(values) == list(map(pow, range(20), range(30)))


def test_map_stops_at_an_error(executor):
    values = executor.map(divmod, [1, 1, 1], [1, 1, 0])
    assert next(values) == (1, 0)
    assert next(values) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        next(values)
    assert list(executor.map(abs, [])) == []


def test_map_refuses_bad_sizes(executor):
    with pytest.raises(ValueError, match="chunksize must be >= 1"):
        executor.map(abs, [1], chunksize=-1)
    with pytest.raises(ValueError, match="buffersize must be None or > 0"):
        executor.map(abs, [1], buffersize=0)
    with pytest.raises(TypeError, match="buffersize must be an integer or None"):
        executor.map(abs, [1], buffersize=1.5)


def test_map_takes_no_more_than_its_buffer(workers):
    numbers = itertools.count()
    with d.Executor(workers=workers) as executor:
        values = executor.map(abs, numbers, buffersize=4)
    assert next(numbers) == 4
    values.close()
    with d.Executor(workers=workers) as executor:
        endless = executor.map(abs, itertools.count(), buffersize=2)
        assert [next(endless) for _ in range(5)] == [0, 1, 2, 3, 4]
        endless.close()


def test_map_begins_at_once_and_cancels_when_closed(executor, workers, tmp_path):
    values = executor.map(touch_and_nap, [str(tmp_path)] * 20, map(str, range(20)), [0.05] * 20)
    wait_until(lambda: (tmp_path / "0").exists())
    assert next(values) == "0"
    values.close()
    executor.shutdown()
    assert len(list(tmp_path.iterdir())) < 20


def test_shutdown(workers, tmp_path):
    executor = d.Executor(workers=workers)
    futures = [executor.submit(abs, -n) for n in range(50)]
    executor.shutdown()
    assert [future.result(0) for future in futures] == list(range(50))
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, 1)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(abs, [1])
    executor.shutdown()
    never_used = d.Executor(workers=workers)
    never_used.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        never_used.submit(abs, 1)


def test_shutdown_that_cancels(workers, tmp_path):
    executor = d.Executor(workers=workers)
    running = [executor.submit(hold_until, str(tmp_path / "go")) for _ in workers]
    waiting = [executor.submit(abs, -n) for n in range(50)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    (tmp_path / "go").touch()
    assert [future.result(10) for future in running]
    executor.shutdown()


def test_shutdown_without_waiting_lets_calls_end(workers):
    executor = d.Executor(workers=workers)
    futures = [executor.submit(nap, 0.05) for _ in range(4)]
    executor.shutdown(wait=False)
    assert [future.result(10) for future in futures] == [0.05] * 4
    executor.shutdown()


def test_an_executor_that_is_dropped_ends_its_thread(workers):
    executor = d.Executor(workers=workers)
    future = executor.submit(abs, -1)
    thread = executor._engine.thread
    del executor
    gc.collect()
    assert future.result(10) == 1
    thread.join(10)
    assert not thread.is_alive()


class Thing:
    """Something that can be referred to weakly."""


def test_neither_arguments_nor_results_are_kept(executor):
    thing = Thing()
    kept = weakref.ref(thing)
    future = executor.submit(id, thing)
    del thing
    future.result(10)
    gc.collect()
    assert kept() is None
    values = executor.map(lambda n: Thing(), range(3))
    for value in values:
        kept = weakref.ref(value)
        del value
        gc.collect()
        assert kept() is None


def test_the_initializer_runs_on_each_worker_first(workers):
    with d.Executor(workers=workers, initializer=set_global, initargs=("set",)) as executor:
        seen = dict(executor.map(lambda _: get_global(), range(40)))
    assert len(seen) == 2
    assert set(seen.values()) == {"set"}
    with d.Executor(workers=workers, initializer=set_global, initargs=("unset",)) as executor:
        executor.submit(abs, 1).result(10)


def test_an_initializer_that_fails_breaks_the_executor(workers):
    executor = d.Executor(workers=workers, initializer=fail, initargs=(ValueError("bad start"),))
    futures = [executor.submit(abs, n) for n in range(3)]
    for future in futures:
        error = future.exception(10)
        assert isinstance(error, cf.BrokenExecutor)
        assert "bad start" in str(error)
        assert isinstance(error.__cause__, ValueError)
    with pytest.raises(cf.BrokenExecutor, match="bad start"):
        executor.submit(abs, 1)
    executor.shutdown()


def test_a_worker_that_dies_breaks_the_executor():
    with d.cluster(2) as pids, d.Executor(workers=pids) as executor:
        ospid = d.remotecall_fetch(os.getpid, pids[0])
        futures = [executor.submit(nap, 30) for _ in range(4)]
        wait_until(lambda: all(future.running() for future in futures[:2]))
        os.kill(ospid, signal.SIGKILL)
        for future in futures:
            error = future.exception(10)
            assert isinstance(error, BrokenWorkers)
            assert isinstance(error.__cause__, d.ProcessExitedException)
            assert "signal 9" in str(error)
        with pytest.raises(cf.BrokenExecutor):
            executor.submit(abs, 1)
        assert d.remotecall_fetch(abs, pids[1], -5) == 5


def test_await_and_run_in_executor(executor):
    async def main():
        assert await executor.submit(pow, 2, 5) == 32
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, pow, 2, 6) == 64
        with pytest.raises(ZeroDivisionError):
            await executor.submit(divmod, 1, 0)
        return await asyncio.gather(*(executor.submit(abs, -n) for n in range(100)))

    assert asyncio.run(main()) == list(range(100))


def test_cancelling_the_task_that_awaits_cancels_the_future(executor, workers, tmp_path):
    async def main():
        running = [executor.submit(hold_until, str(tmp_path / "go")) for _ in workers]
        future = executor.submit(abs, -1)

        async def wait_for_it():
            return await future

        task = asyncio.ensure_future(wait_for_it())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()
        (tmp_path / "go").touch()
        await asyncio.gather(*running)

    asyncio.run(main())


def test_from_many_threads(executor):
    results = []

    def use(base):
        results.extend(executor.map(abs, range(base, base + 50)))

    threads = [threading.Thread(target=use, args=(100 * n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(results) == sorted(100 * n + i for n in range(8) for i in range(50))


def test_an_executor_inside_a_worker(workers):
    def nested():
        with d.Executor(workers=d.workers()) as inner:
            return list(inner.map(abs, [-1, -2, -3]))

    assert d.remotecall_fetch(nested, workers[0]) == [1, 2, 3]


def test_own_workers_start_print_and_end_with_it():
    done = run_script("""
        import pydist as d
        with d.Executor(2, env={"PYDIST_TEST_OWN": "yes"}) as executor:
            import os
            list(executor.map(print, ["one", "two"]))
            print(executor.submit(os.getenv, "PYDIST_TEST_OWN").result())
            print(d.nworkers())
        print(d.workers())
        """)
    assert (sorted(done.stdout.splitlines()), done.stderr, done.returncode) == (
        sorted(["one", "two", "yes", "2", "[1]"]),
        "",
        0,
    )


def test_what_was_submitted_is_finished_at_the_end_of_the_interpreter(tmp_path):
    done = run_script(f"""
        import pathlib, time
        import pydist as d
        executor = d.Executor(1)
        for n in range(5):
            executor.submit(pathlib.Path.touch, pathlib.Path({str(tmp_path)!r}) / str(n))
        import atexit
        @atexit.register
        def late():
            try:
                executor.submit(abs, 1)
            except RuntimeError as error:
                print(error)
        """)
    assert (done.stdout, done.stderr, done.returncode) == (
        "cannot schedule new futures after interpreter shutdown\n",
        "",
        0,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == list("01234")


def test_workers_that_do_not_start_break_the_executor():
    done = run_script("""
        import logging
        logging.disable()
        import concurrent.futures as cf
        import pydist as d
        executor = d.Executor(1, exename="/no/such/python")
        error = executor.submit(abs, 1).exception()
        print(type(error).__mro__[1] is cf.BrokenExecutor, "/no/such/python" in str(error))
        print(type(error.__cause__).__name__)
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("True True\nLaunchWorkerError\n", "", 0)
