"""Rows F8, F9 and F37 of the fault table: workers that die during a map, and Ctrl-C in one."""

import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import pydist as d
from support import kill_self, run_script, segfault, wait_until


def square(x):
    return x * x


def kill_at(x, bad):
    if x == bad:
        print(f"about to die at {x}", flush=True)
        kill_self()
    return x * x


def kill_once(x, folder):
    """Kill the worker at the first attempt at some elements."""
    if x in (0, 13, 30):
        flag = folder / f"killed {x}"
        if not flag.exists():
            flag.touch()
            kill_self()
    return x * x


def note(x, folder):
    (folder / f"{x} {os.getpid()} {time.monotonic_ns()}").touch()
    return x


@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_f9_without_retries_the_death_is_raised_and_nothing_more_is_sent(fresh_workers, batch_size):
    """F9: no retries: PEE, nothing further submitted."""
    pids = fresh_workers(2)
    taken = []

    def source():
        for i in itertools.count():
            taken.append(i)
            yield i

    with pytest.raises(d.ProcessExitedException) as caught:
        d.pmap(kill_at, source(), itertools.repeat(40), pool=pids, batch_size=batch_size)
    assert caught.value.pid in pids
    assert "signal 9" in str(caught.value)
    if batch_size == 1:
        assert caught.value.element == 40
        assert "element 40" in str(caught.value)
    count = len(taken)
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)
    assert len(taken) == count < 100_000
    (left,) = set(pids) & set(d.workers())
    assert d.pmap(square, range(20), pool=[left]) == [x * x for x in range(20)]


@pytest.mark.parametrize("f", ["plain", "async"])
@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_f9_with_retries_elements_run_elsewhere(fresh_workers, tmp_path, batch_size, f):
    """F9: item reruns elsewhere, results exact and ordered."""
    pids = fresh_workers(5)

    async def kill_once_async(x, folder):
        return kill_once(x, folder)

    function = kill_once if f == "plain" else kill_once_async
    result = d.pmap(
        function, range(60), [tmp_path] * 60, pool=pids, retry_delays=[0, 0, 0], batch_size=batch_size
    )
    assert result == [x * x for x in range(60)]
    assert len(set(pids) & set(d.workers())) >= 2


def test_f9_a_kill_from_outside_loses_nothing(fresh_workers):
    """F9: each element is exactly once in the result, whatever the worker was at."""
    pids = fresh_workers(4)
    ospids = [d.remotecall_fetch(os.getpid, pid) for pid in pids[:2]]

    def kill_soon():
        for ospid in ospids:
            time.sleep(0.1)
            os.kill(ospid, signal.SIGKILL)

    killer = threading.Thread(target=kill_soon)
    killer.start()
    values = list(
        d.pgenerate(lambda x: time.sleep(0.001) or x, iter(range(600)), pool=pids, retry_delays=[0] * 3)
    )
    killer.join()
    assert values == list(range(600))
    wait_until(lambda: not set(pids[:2]) & set(d.workers()))


@pytest.mark.parametrize("batch_size", [1, 10])
def test_f9_an_element_that_kills_three_workers_is_given_up(fresh_workers, batch_size):
    """F9: after 3 deaths PEE for that item, at most 3 workers lost; the error names what is known."""
    pids = fresh_workers(4)
    seen = []

    def instead(error):
        seen.append(error)
        return "given up"

    result = d.pmap(
        kill_at,
        range(30),
        [17] * 30,
        pool=pids,
        retry_delays=itertools.repeat(0),
        on_error=instead,
        batch_size=batch_size,
    )
    assert result == [x * x for x in range(17)] + ["given up"] + [x * x for x in range(18, 30)]
    (error,) = seen
    (left,) = set(pids) & set(d.workers())
    assert isinstance(error, d.ProcessExitedException)
    assert error.element == 17
    assert error.pid in pids
    assert error.host
    text = str(error)
    for part in (
        "element 17",
        "killed 3 workers",
        f"worker {error.pid}",
        error.host,
        "signal 9",
        "about to die at 17",
    ):
        assert part in text
    assert d.remotecall_fetch(square, left, 3) == 9


def test_f9_innocent_elements_keep_their_retries(fresh_workers, tmp_path):
    """F9: of a batch that died, only the element that ran is blamed."""
    pids = fresh_workers(3)
    checked = []

    def work(x, folder):
        if x == 4:
            if not (folder / "killed").exists():
                (folder / "killed").touch()
                kill_self()
        elif not (folder / str(x)).exists():
            (folder / str(x)).touch()
            if x == 8:
                raise ValueError("once")
        return x

    def check(state, error):
        checked.append(type(error).__name__)
        return True

    result = d.pmap(
        work, range(10), [tmp_path] * 10, pool=pids, batch_size=10, retry_delays=[0], retry_check=check
    )
    assert result == list(range(10))
    assert checked in ([], ["ValueError"])


def test_f9_on_error_without_retries(fresh_workers):
    """F9: on_error sees the death; what had not begun runs elsewhere."""
    pids = fresh_workers(2)
    result = d.pmap(
        kill_at, range(40), [5] * 40, pool=pids, batch_size=1, on_error=lambda error: type(error).__name__
    )
    assert result == [x * x if x != 5 else "ProcessExitedException" for x in range(40)]


def test_f9_the_check_and_on_error_see_the_death(fresh_workers):
    """F9 and section 6 of the contract: both see the error as fetch would raise it."""
    pids = fresh_workers(3)
    seen = []

    def check(state, error):
        seen.append((state, error.pid))
        return (state or 0) + 1, state is None

    result = d.pmap(
        kill_at,
        range(6),
        [2] * 6,
        pool=pids,
        batch_size=1,
        retry_delays=[0] * 5,
        retry_check=check,
        on_error=lambda error: error.pid,
    )
    assert [state for state, _ in seen] == [None, 1]
    assert result[2] == seen[1][1]
    assert len({pid for _, pid in seen}) == 2
    assert result[:2] + result[3:] == [x * x for x in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("end", [segfault, os.abort, lambda: os._exit(7)])
def test_f9_other_ways_to_die(fresh_workers, tmp_path, end):
    """F9: a segfault, an abort and an exit are deaths like others."""
    pids = fresh_workers(2)

    def work(x, folder):
        if x == 3 and not (folder / "died").exists():
            (folder / "died").touch()
            end()
        return x

    assert d.pmap(work, range(10), [tmp_path] * 10, pool=pids, retry_delays=[0, 0]) == list(range(10))


def test_f8_the_whole_pool_dies(fresh_workers):
    """F8: empty pool: NoWorkersError <= 1 s, no silent fallback to the head in mid-pmap."""
    pids = fresh_workers(2)

    def die(x):
        if d.myid() == 1:
            return "on the head"
        kill_self()

    for options in ({"pool": pids}, {}):
        begin = time.monotonic()
        with pytest.raises(d.NoWorkersError):
            d.pmap(die, range(10), retry_delays=itertools.repeat(0), batch_size=1, **options)
        assert time.monotonic() - begin < 5
        pids = fresh_workers(2)


def test_f8_a_pool_that_dies_while_nothing_runs_there(fresh_workers):
    """F8: all workers die while a retry waits for its time: the map does not wait for it."""
    (pid,) = fresh_workers(1)
    ospid = d.remotecall_fetch(os.getpid, pid)

    def fail(x):
        raise ValueError("no good")

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(d.pmap, fail, [1], pool=[pid], retry_delays=[600])
        wait_until(lambda: d.stats()["calls_outstanding"] == 0)
        os.kill(ospid, signal.SIGKILL)
        begin = time.monotonic()
        with pytest.raises(d.NoWorkersError):
            running.result(20)
        assert time.monotonic() - begin < 2


@pytest.mark.parametrize("kind", [d.WorkerPool, d.CachingPool])
def test_f8_a_pool_shrinks_and_the_map_goes_on(fresh_workers, tmp_path, kind):
    """F8: the pool shrinks; the CachingPool's entry is dropped."""
    pool = kind(fresh_workers(3))
    assert d.pmap(kill_once, pool, range(20), [tmp_path] * 20, retry_delays=[0] * 3) == [
        x * x for x in range(20)
    ]
    assert len(pool) == 1
    assert d.pmap(square, pool, range(5)) == [0, 1, 4, 9, 16]
    assert pool.take(timeout=1) in d.workers()


def test_dead_workers_are_replaced(fresh_workers, tmp_path):
    """`respawn=True`: a worker with the same parameters takes the place of each that dies."""
    pids = fresh_workers(2, env={"PYDIST_TEST_MARK": "set"})

    def work(x, folder):
        kill_once(x, folder)
        time.sleep(0.01)
        return os.environ.get("PYDIST_TEST_MARK"), d.myid()

    result = d.pmap(
        work, range(40), [tmp_path] * 40, pool=pids, retry_delays=[0] * 3, respawn=True, batch_size=1
    )
    assert {mark for mark, _ in result} == {"set"}
    assert not set(pids) & set(d.workers()) or {pid for _, pid in result} - set(pids)
    wait_until(lambda: len([pid for pid in d.workers() if pid != 1]) == 2)
    d.rmprocs([pid for pid in d.workers() if pid != 1])


def test_respawn_when_the_only_worker_dies(fresh_workers, tmp_path):
    """`respawn=True`: the map waits for the new worker where no other is left."""
    pids = fresh_workers(1)
    result = d.pmap(kill_once, range(35), [tmp_path] * 35, pool=pids, retry_delays=[0] * 3, respawn=True)
    assert result == [x * x for x in range(35)]
    d.rmprocs([pid for pid in d.workers() if pid != 1])


def test_the_first_error_lets_nothing_more_begin(workers, tmp_path):
    """What is queued, and the rest of a batch that runs, is given up."""

    def work(x, folder):
        note(x, folder)
        if x == 0:
            time.sleep(0.1)
            raise ValueError("no good")
        time.sleep(0.01)

    with pytest.raises(ValueError, match="no good"):
        d.pmap(work, range(400), [tmp_path] * 400, batch_size=100)
    raised = time.monotonic_ns()
    wait_until(lambda: all(d.stats(pid)["calls_running"] == 0 for pid in workers))
    begun = [int(path.name.split()[2]) for path in tmp_path.iterdir()]
    late = sum(at > raised + 50_000_000 for at in begun)
    assert late <= 2
    assert len(begun) < 50


@pytest.mark.parametrize("call", ["d.pmap(work, range(1000)", "list(d.pgenerate(work, itertools.count()"])
@pytest.mark.parametrize(
    "options", ["", ", batch_size=50", ", distributed=False", ", retry_delays=[0], on_error=str"]
)
def test_f37_ctrl_c_in_a_map(call, options):
    """F37: no new items, what runs is interrupted, the cluster and the pool stay usable, within 1 s."""
    close = ")" if call.startswith("list") else ""
    done = run_script(f"""
        import glob, itertools, os, signal, tempfile, threading, time
        import pydist as d

        pids = d.addprocs(2)
        folder = tempfile.mkdtemp()
        pool = d.default_worker_pool()

        def work(x):
            open(os.path.join(folder, str(x)), "w").close()
            for _ in range(20 if x < 8 else 6000):
                time.sleep(0.01)

        def begun():
            return len(os.listdir(folder))

        sent = []

        def interrupt():
            while begun() < 4:
                time.sleep(0.01)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            {call}{options}){close}
        except KeyboardInterrupt:
            took = time.monotonic() - sent[0]
            assert took < 1, took
        else:
            raise AssertionError("not interrupted")
        count = begun()
        end = time.monotonic() + 1
        while any(d.stats(pid)["calls_running"] for pid in [1, *pids]):
            assert time.monotonic() < end
        assert begun() <= count + 1, (begun(), count)
        assert len(pool) == 2 and pool.isready()
        assert d.pmap(abs, range(-100, 0)) == list(range(100, 0, -1))
        assert d.stats()["calls_outstanding"] == 0
        for path in glob.glob(folder + "/*"):
            os.remove(path)
        os.rmdir(folder)
        """)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
