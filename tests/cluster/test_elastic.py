"""Workers that join and leave as they like."""

import itertools
import os
import random
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import pydist as d
from pydist import _everywhere
from support import Script, wait_until
from support_managers import ask, end_all, joined


@pytest.fixture
def elastic():
    with d.ElasticManager() as manager:
        assert d.addprocs(manager) == []
        yield manager


@pytest.fixture
def start(elastic):
    """Give a function that starts a worker; those that are left are ended."""
    processes = []

    def run(*words, command=None, **options):
        made = subprocess.Popen(
            [*shlex.split(command or elastic.command()), *words], stderr=subprocess.PIPE, **options
        )
        processes.append(made)
        return made

    yield run
    end_all(processes)


def test_workers_join_at_any_time_and_leave_at_any_time(start):
    pool = d.default_worker_pool()
    first = start()
    (one,) = joined(1)
    assert d.remotecall_fetch(d.myid, one) == one
    start()
    one, two = joined(2)
    assert ask(one, two) == two
    assert ask(two, one) == one
    wait_until(lambda: pool.workers() == [one, two])
    assert d.pmap(abs, range(-50, 0)) == list(range(50, 0, -1))
    future = d.remotecall(time.sleep, one, 60)
    first.kill()
    with pytest.raises(d.ProcessExitedException):
        future.fetch(timeout=20)
    assert d.workers() == [two]
    wait_until(lambda: pool.workers() == [two])


def test_the_shell_line_starts_a_worker(elastic):
    line = elastic.command()
    assert re.match(r"127\.0\.0\.1:\d+\Z", elastic.address)
    assert d.cluster_cookie().hex() not in line
    process = subprocess.Popen(line, shell=True)
    (pid,) = joined(1)
    assert d.remotecall_fetch(os.getenv, pid, "PYDIST_COOKIE") is None
    path = d.remotecall_fetch(lambda: __import__("psutil").Process().cmdline()[-1], pid)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    d.rmprocs(pid)
    assert process.wait(10) == 0


def command(elastic):
    return shlex.join([sys.executable, "-m", "pydist", "worker", "--connect", elastic.address])


def test_the_cookie_from_the_environment_is_removed_from_it(elastic, start):
    env = {**os.environ, "PYDIST_COOKIE": d.cluster_cookie().hex()}
    start(command=command(elastic), env=env)
    (pid,) = joined(1)
    assert d.remotecall_fetch(os.getenv, pid, "PYDIST_COOKIE") is None


def test_the_cookie_from_standard_input(elastic, start):
    worker = start(command=command(elastic), stdin=subprocess.PIPE)
    worker.stdin.write(d.cluster_cookie().hex().encode() + b"\n")
    worker.stdin.close()
    (pid,) = joined(1)
    assert d.remotecall_fetch(d.myid, pid) == pid


def test_a_wrong_cookie_is_refused(elastic, start):
    worker = start("--timeout", "20", command=command(elastic), env={**os.environ, "PYDIST_COOKIE": "x" * 32})
    assert worker.wait(15) == 1
    errors = worker.stderr.read().decode()
    assert elastic.address in errors
    assert "cookie" in errors
    assert d.procs() == [1]


def test_a_cookie_of_the_users_own():
    before = d.cluster_cookie()
    try:
        with d.ElasticManager(cookie="the users own cookie") as manager:
            d.addprocs(manager)
            env = {**os.environ, "PYDIST_COOKIE": "the users own cookie"}
            worker = subprocess.Popen(shlex.split(command(manager)), env=env)
            (pid,) = joined(1)
            d.rmprocs(pid)
            assert worker.wait(10) == 0
    finally:
        d.cluster_cookie(before)


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        ("sys.version_info = (3, 99, 1)", ["3.99.1", "{}.{}.{}".format(*sys.version_info[:3])]),
        ("from pydist import _core; _core.__version__ = '9.9.9'", ["9.9.9", d.__version__]),
    ],
    ids=["python", "pydist"],
)
def test_another_version_is_refused_with_both_named(elastic, start, caplog, patch, says):
    caplog.set_level("INFO", "pydist")
    arguments = shlex.split(elastic.command())[4:]
    code = f"import sys\nfrom pydist import _dialin\n{patch}\nsys.exit(_dialin.main({arguments!r}))"

    def logged():
        """Say whether the log has it; of refusals that come fast one a second is logged."""
        worker = start(command=shlex.join([sys.executable, "-c", code]))
        assert worker.wait(20) == 1
        errors = worker.stderr.read().decode()
        assert all(version in errors for version in says)
        return all(version in caplog.text for version in says)

    wait_until(logged, 20)
    assert d.procs() == [1]


def test_a_worker_waits_for_process_1():
    with d.ElasticManager() as manager:
        worker = subprocess.Popen(shlex.split(manager.command()))
        assert d.procs() == [1]
        d.addprocs(manager)
        (pid,) = joined(1)
        d.rmprocs(pid)
        assert worker.wait(10) == 0


def test_workers_end_with_process_1():
    text = """
        import os, shlex, subprocess, time
        import pydist as d
        m = d.ElasticManager()
        d.addprocs(m)
        p = subprocess.Popen(shlex.split(m.command()))
        while d.nprocs() < 2: time.sleep(0.01)
        print("joined", flush=True)
        time.sleep(60)
        """
    with Script(text) as script:
        script.wait_for("joined")
        os.kill(script.pid, signal.SIGKILL)
        script.wait_gone(5)
        script.process.wait(10)


def test_nothing_is_left_after_the_end_of_process_1():
    text = """
        import shlex, subprocess, time
        import pydist as d
        m = d.ElasticManager()
        d.addprocs(m)
        p = subprocess.Popen(shlex.split(m.command()))
        while d.nprocs() < 2: time.sleep(0.01)
        print(d.remotecall_fetch(abs, d.workers()[0], -4), shlex.split(m.command())[-1])
        """
    with Script(text) as script:
        done = script.finish(60)
        script.wait_gone(5)
    value, path = done.stdout.split()
    assert (value, done.returncode, done.stderr) == ("4", 0, "")
    assert not os.path.exists(os.path.dirname(path))


def test_what_persists_runs_on_workers_that_join(elastic, start):
    d.everywhere("joined_value = 41", persist=True)
    try:
        start()
        (pid,) = joined(1)
        wait_until(lambda: d.remotecall_eval("globals().get('joined_value')", pid) == 41)
    finally:
        _everywhere._persistent.clear()


def numbers(stopped, seconds=90):
    """Count until an event is set, or for so long."""
    deadline = time.monotonic() + seconds
    for x in itertools.count():
        if stopped.is_set() or time.monotonic() > deadline:
            return
        yield x


def slow(seconds):
    """Return a function that goes by value: these workers do not find the modules of the tests."""

    def where(x):
        time.sleep(seconds)
        return x, d.myid()

    return where


def test_a_running_map_takes_up_workers_that_join(start):
    start()
    (one,) = joined(1)
    stopped = threading.Event()

    seen = []
    for x, pid in d.pgenerate(slow(0.002), numbers(stopped)):
        if x == 0:
            start()
        seen.append((x, pid))
        if pid != one:
            stopped.set()
    assert [x for x, _ in seen] == list(range(len(seen)))
    assert {pid for _, pid in seen} == set(joined(2))


def test_an_element_is_done_by_another_worker_when_one_leaves(start):
    processes = [start(), start()]
    joined(2)
    with ThreadPoolExecutor(1) as thread:
        results = thread.submit(d.pmap, slow(0.005), range(300), retry_delays=[0, 0])
        wait_until(lambda: all(d.stats(pid)["calls_running"] for pid in d.workers()))
        processes[0].kill()
        assert [x for x, _ in results.result(60)] == list(range(300))


def test_a_map_waits_for_a_worker_that_has_joined_and_is_not_in_the_pool_yet(start, tmp_path):
    process = start()
    (one,) = joined(1)
    ready, stopped = tmp_path / "ready", threading.Event()
    ready.touch()
    text = f"import os, time\nwhile not os.path.exists({str(ready)!r}): time.sleep(0.01)"
    try:
        d.everywhere(text, persist=True)
        thread = ThreadPoolExecutor(1)
        mapped = thread.submit(d.pmap, slow(0.01), numbers(stopped), retry_delays=[0, 0])
        wait_until(lambda: d.stats(one)["calls_running"])
        ready.unlink()
        start()
        two = joined(2)[1]
        process.kill()
        wait_until(lambda: d.workers() == [two])
        # The map has heard of the death once it has nobody to send to.
        wait_until(lambda: mapped.done() or d.stats()["calls_outstanding"] <= 1)
        assert not mapped.done()
        ready.touch()
        wait_until(lambda: d.default_worker_pool().workers() == [two])
        stopped.set()
        results = mapped.result(60)
    finally:
        stopped.set()
        ready.touch()
        thread.shutdown()
        _everywhere._persistent.clear()
    assert [x for x, _ in results] == list(range(len(results)))
    assert {pid for _, pid in results} == {one, two}


def test_a_failure_lists_all_addresses_that_were_tried():
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        ports = [server.getsockname()[1] for server in (first, second)]
    addresses = [f"127.0.0.1:{ports[0]}", f"[::1]:{ports[1]}"]
    words = [word for address in addresses for word in ("--connect", address)]
    done = subprocess.run(
        [sys.executable, "-m", "pydist", "worker", *words, "--timeout", "0.5"],
        env={**os.environ, "PYDIST_COOKIE": "x" * 32},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert f"cannot join the cluster at {', '.join(addresses)}" in done.stderr
    assert all(f"tcp:{address}: Connection refused" in done.stderr for address in addresses)


def test_the_address_that_answers_is_found_among_others(elastic, start):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    line = shlex.split(elastic.command())
    start(command=shlex.join([*line[:4], "--connect", f"127.0.0.1:{port}", *line[4:]]))
    assert d.remotecall_fetch(d.myid, joined(1)[0]) == joined(1)[0]


@pytest.mark.timeout(1000)
def test_workers_join_and_leave_under_calls_and_a_map(elastic, start, milestone):
    """Workers come and go at random: a call gives its result or tells of its worker's end; a map is right."""
    total = 200 if milestone else 40
    r = random.Random(7)
    alive, gone, started, done = [], [], 0, 0
    deadline = time.monotonic() + (900 if milestone else 100)
    stopped = threading.Event()

    taken = [0]

    def counted():
        for n in numbers(stopped, 900):
            taken[0] = n
            yield n

    start()
    joined(1)
    with ThreadPoolExecutor(1) as thread:
        mapped = thread.submit(d.pmap, slow(0.001), counted(), retry_delays=[0] * 20)
        try:
            while started < total or d.nprocs() < 3:
                assert time.monotonic() < deadline
                assert not mapped.done()
                alive = [p for p in alive if p.poll() is None]
                while started < total and len(alive) < 6:
                    alive.append(start())
                    started += 1
                for pid in d.workers():
                    if pid == 1:
                        continue
                    try:
                        x = r.randrange(10**6)
                        assert d.remotecall_fetch(divmod, pid, x, 7) == divmod(x, 7)
                        done += 1
                    except d.ProcessExitedException as error:
                        gone.append((pid, error.pid))
                if d.nworkers() >= 3:
                    victim = r.choice([p for p in d.workers() if p != 1])
                    if r.random() < 0.5:
                        d.rmprocs(victim)
                    else:
                        with pytest.raises(d.ProcessExitedException):
                            d.remotecall_fetch(os._exit, victim, 1)
                    # What ran there is done elsewhere: an element that is hit three times would be given up.
                    past = taken[0] + 100
                    wait_until(lambda past=past: taken[0] > past or mapped.done(), timeout=60)
        finally:
            stopped.set()
        results = mapped.result(60)
    assert [x for x, _ in results] == list(range(len(results)))
    assert len(results) > 1000
    assert done > 100
    assert all(pid == named for pid, named in gone)
    pids = [pid for pid in d.procs() if pid != 1]
    assert [d.remotecall_fetch(d.myid, pid) for pid in pids] == pids
    assert max(d.procs()) >= total * 3 // 4
