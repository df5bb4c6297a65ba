"""Cluster managers of others: what they are asked, what they may do wrong, and transports of their own."""

import importlib.util
import os
import pickle
import socket
import threading
import time
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import psutil
import pytest

import pydist as d
from pydist import _cluster
from support import wait_until
from support_managers import DialledManager, ask


def example():
    path = Path(__file__).parents[2] / "examples" / "custom_manager.py"
    spec = importlib.util.spec_from_file_location("custom_manager", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def released():
    """Let hooks that hang go at the end of a test."""
    event = threading.Event()
    yield event
    event.set()


def next_works():
    pids = d.addprocs(1)
    assert d.remotecall_fetch(d.myid, pids[0]) == pids[0]
    d.rmprocs(pids)


# --- what a manager is asked --------------------------------------------------------------------------------


def test_a_worker_that_is_dialled_joins_and_its_manager_hears_of_it():
    manager = DialledManager({}, {})
    pids = d.addprocs(manager)
    assert len(pids) == 2
    assert [d.remotecall_fetch(d.myid, pid) for pid in pids] == pids
    assert ask(*pids) == pids[1]
    assert d.check_same_host([1, *pids])
    d.rmprocs(pids)
    wait_until(lambda: len(manager.heard) == 6)
    for pid in pids:
        assert [op for op, who in manager.heard if who == pid] == ["register", "deregister", "finalize"]


def test_a_worker_that_leaves_by_itself_is_deregistered():
    manager = DialledManager()
    (pid,) = d.addprocs(manager)
    with pytest.raises(d.ProcessExitedException):
        d.remotecall_fetch(os._exit, pid, 3)
    wait_until(lambda: ("finalize", pid) in manager.heard)


def test_what_a_worker_prints_before_its_address_and_after_it(capfd):
    manager = DialledManager(before="Welcome to this machine\n" * 5)
    (pid,) = d.addprocs(manager)
    d.remotecall_fetch(print, pid, "hello from there")
    d.rmprocs(pid)
    assert f"      From worker {pid}:\thello from there\n" in capfd.readouterr().out


def test_interrupts_go_through_the_manager_where_it_handles_them():
    class Handles(DialledManager):
        handles = False

        def manage(self, pid, config, op):
            super().manage(pid, config, op)
            return self.handles

    manager = Handles()
    (pid,) = d.addprocs(manager)
    future = d.remotecall(time.sleep, pid, 60)
    manager.handles = True
    d.interrupt(pid)
    assert manager.heard[-1] == ("interrupt", pid)
    with pytest.raises(TimeoutError):
        future.wait(timeout=0.2)
    manager.handles = False
    d.interrupt(pid)
    with pytest.raises(d.RemoteException, match="KeyboardInterrupt"):
        future.fetch(timeout=20)
    d.rmprocs(pid)


class Untold:
    """A process of which nobody tells how it has ended."""

    def __init__(self, process):
        self.process = process
        self.asked = []

    def __getattr__(self, name):
        return getattr(self.process, name)

    def exit_reason(self, seconds):
        self.asked.append(threading.current_thread().name)
        threading.Event().wait(min(seconds, 30))
        return ""


def test_workers_that_leave_together_are_let_go_of_together():
    class Silent(DialledManager):
        def launch(self, params, launched):
            def wrapped(config):
                config.process = Untold(config.process)
                self.processes.append(config.process)
                launched(config)

            self.processes = []
            super().launch(params, wrapped)

    manager = Silent({}, {}, {})
    pids = d.addprocs(manager)
    for process in manager.processes:
        process.kill()
    wait_until(
        lambda: {pid for op, pid in manager.heard if op == "finalize"} == {*pids},
        3 * _cluster.TOLD_WITHIN + 3,
    )
    assert {name for process in manager.processes for name in process.asked} == {"pydist-left"}
    next_works()


def test_launch_gets_the_parameters_as_a_dict():
    class Looks(d.ClusterManager):
        def default_params(self):
            return {**super().default_params(), "queue": "short"}

        def launch(self, params, launched):
            self.params = params

        def manage(self, pid, config, op):
            return None

    manager = Looks()
    assert d.addprocs(manager, env={"A": "1"}, timeout=3) == []
    assert manager.params["queue"] == "short"
    assert manager.params["env"] == {"A": "1"}
    assert manager.params["timeout"] == 3
    d.addprocs(manager, queue="long")
    assert manager.params["queue"] == "long"
    with pytest.raises(TypeError, match="frobnicate"):
        d.addprocs(manager, frobnicate=1)
    with pytest.raises(TypeError, match="queue"):
        d.addprocs(1, queue="long")


def test_a_configuration_travels_without_its_stream_and_process():
    config = d.WorkerConfig(io=open(os.devnull), process=object(), host="a", userdata={"x": 1})  # noqa: SIM115
    copy = pickle.loads(pickle.dumps(config))
    config.io.close()
    assert (copy.io, copy.process, copy.host, copy.userdata) == (None, None, "a", {"x": 1})
    with pytest.raises(TypeError):
        d.WorkerConfig("a")


# --- what addprocs takes ------------------------------------------------------------------------------------


def test_integers_of_numpy_are_numbers_of_workers():
    pids = d.addprocs(np.int64(1))
    assert len(pids) == 1
    d.rmprocs(pids)
    assert d.addprocs(np.uint8(0)) == []


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ([], ValueError, "empty"),
        (["node1:x"], ValueError, "node1:x"),
        ([("node1", -1)], ValueError, "node1"),
        ([5], TypeError, "int"),
        (1.5, TypeError, "float"),
        (True, TypeError, "bool"),
        (b"node1", TypeError, "bytes"),
        ("me@node1", ValueError, r"\['me@node1'\]"),
    ],
)
def test_what_addprocs_does_not_take(what, error, says):
    with pytest.raises(error, match=says):
        d.addprocs(what)
    assert d.procs() == [1]


def test_a_manager_is_found_by_its_name(monkeypatch):
    entry = EntryPoint("ours", "support_managers:DialledManager", "pydist.cluster_managers")
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [entry] if group == entry.group else []
    )
    pids = d.addprocs("ours")
    assert len(pids) == 1
    d.rmprocs(pids)
    with pytest.raises(ValueError, match="ours"):
        d.addprocs("theirs")


def test_the_cookie_is_set_before_there_are_workers():
    before = d.cluster_cookie()
    try:
        assert d.cluster_cookie(b"a cookie of the user's own") == b"a cookie of the user's own"
        next_works()
        pids = d.addprocs(DialledManager())
        assert d.cluster_cookie(b"a cookie of the user's own") == b"a cookie of the user's own"
        with pytest.raises(RuntimeError, match="workers"):
            d.cluster_cookie(b"another one of sixteen")
        d.rmprocs(pids)
        with pytest.raises(ValueError, match="16"):
            d.cluster_cookie(b"too short")
    finally:
        d.cluster_cookie(before)


# --- workers and managers that fail -------------------------------------------------------------------------


def test_f4_no_address_within_a_thousand_lines():
    manager = DialledManager(code="for i in range(1100): print(i, flush=True)\nimport time; time.sleep(100)")
    with pytest.raises(d.LaunchWorkerError, match="1000 lines") as caught:
        d.addprocs(manager)
    assert caught.value.host == "127.0.0.1"
    assert "\n999" in caught.value.output
    next_works()


@pytest.mark.timeout(30)
def test_f4_output_without_an_end_of_line():
    memory = psutil.Process().memory_info().rss
    code = "import os\nwhile True: os.write(1, b'x' * 65536)"
    begin = time.monotonic()
    with pytest.raises(d.LaunchWorkerError, match=r"in time|within"):
        d.addprocs(DialledManager(code=code), timeout=1)
    assert time.monotonic() - begin < 6
    assert psutil.Process().memory_info().rss - memory < 50 * 2**20
    next_works()


def test_f3_a_worker_that_dies_before_its_address():
    manager = DialledManager(code="import sys; print('no luck'); sys.exit(7)")
    begin = time.monotonic()
    with pytest.raises(d.LaunchWorkerError, match="no luck") as caught:
        d.addprocs(manager)
    assert time.monotonic() - begin < 10
    assert caught.value.status == 7
    next_works()


def test_one_of_two_fails_and_the_other_stays():
    code = (
        "import os, pydist\n"
        "if os.environ.get('PYDIST_TEST_FIRST') is None: raise SystemExit(4)\n"
        "pydist.start_worker()"
    )

    class Half(DialledManager):
        def launch(self, params, launched):
            super().launch(params, launched)
            os.environ["PYDIST_TEST_FIRST"] = "no"
            try:
                super().launch(params, launched)
            finally:
                del os.environ["PYDIST_TEST_FIRST"]

    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(Half(code=code))
    (pid,) = caught.value.started
    assert [failure.status for failure in caught.value.failures] == [4]
    assert d.remotecall_fetch(d.myid, pid) == pid
    d.rmprocs(pid)


class Broken(DialledManager):
    """Raises in one of its methods."""

    def __init__(self, method, error):
        super().__init__()
        self.method, self.error = method, error

    def _break(self, method):
        if method == self.method:
            raise self.error

    def launch(self, params, launched):
        super().launch(params, launched)
        self._break("launch")

    def manage(self, pid, config, op):
        super().manage(pid, config, op)
        self._break(f"manage {op}")

    def connect(self, pid, config):
        self._break("connect")
        return super().connect(pid, config)

    def kill(self, pid, config):
        super().kill(pid, config)
        self._break("kill")


@pytest.mark.parametrize("method", ["launch", "connect", "manage register"])
def test_f55_a_manager_that_raises(method):
    """F55: addprocs raises that error; no lock kept; next addprocs works."""
    with pytest.raises(ZeroDivisionError, match="its own"):
        d.addprocs(Broken(method, ZeroDivisionError("its own")))
    assert d.procs() == [1]
    next_works()


@pytest.mark.parametrize("method", ["manage deregister", "manage finalize", "kill"])
def test_f55_a_manager_that_raises_at_the_end(method, caplog):
    """F55: what is raised where nobody waits for it is logged."""
    pids = d.addprocs(Broken(method, ZeroDivisionError("its own")))
    ospid = d.remotecall_fetch(os.getpid, pids[0])
    d.rmprocs(pids)
    assert d.procs() == [1]
    wait_until(lambda: not psutil.pid_exists(ospid))
    assert method == "kill" or "its own" in caplog.text
    next_works()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["launch", "connect", "manage register"])
def test_f55_a_manager_that_hangs(method, released):
    """F55: LaunchWorkerError at the timeout; no lock kept; next addprocs works."""

    class Hangs(Broken):
        def _break(self, name):
            if name == self.method:
                released.wait()

    begin = time.monotonic()
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(Hangs(method, None), timeout=2.5)
    assert time.monotonic() - begin < 8
    next_works()
    d.rmprocs(caught.value.started)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["kill", "manage finalize"])
def test_f55_a_manager_that_hangs_when_a_worker_did_not_start(method, released):
    """F55: the error comes all the same."""

    class Hangs(Broken):
        def _break(self, name):
            if name == self.method:
                released.wait()

    manager = Hangs(method, None)
    manager.code = "raise SystemExit(3)"
    begin = time.monotonic()
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(manager)
    assert caught.value.status == 3
    assert time.monotonic() - begin < 10
    next_works()


def test_what_connect_returns_must_be_a_connection():
    class Wrong(DialledManager):
        def connect(self, pid, config):
            return 5

    with pytest.raises(TypeError, match="connect"):
        d.addprocs(Wrong())
    next_works()


# --- transports ---------------------------------------------------------------------------------------------


def test_a_manager_with_a_transport_of_its_own():
    module = example()
    manager = module.PipeManager(2)
    pids = d.addprocs(manager)
    array = np.arange(1_000_000)
    for pid, other in [pids, pids[::-1]]:
        assert ask(pid, other) == other
        assert (d.remotecall_fetch(np.negative, pid, array) == -array).all()
        assert d.remotecall_fetch(d.procs, pid) == [1, *pids]
    assert sorted(d.pmap(abs, range(-50, 0))) == list(range(1, 51))
    folder = manager.folder
    d.rmprocs(pids)
    assert not os.path.exists(folder)


def test_a_worker_of_a_transport_that_dies():
    manager = example().PipeManager(1)
    (pid,) = d.addprocs(manager)
    with pytest.raises(d.ProcessExitedException) as caught:
        d.remotecall_fetch(os._exit, pid, 1)
    assert caught.value.pid == pid
    wait_until(lambda: not os.path.exists(manager.folder))


def test_the_worker_at_the_other_end_of_a_connection():
    kept = {}

    class Keeps(DialledManager):
        def connect(self, pid, config):
            made = super().connect(pid, config)
            kept[pid] = made.socket
            return made

    pids = d.addprocs(Keeps({}, {}))
    assert {pid: d.worker_id_from_socket(s) for pid, s in kept.items()} == {pid: pid for pid in pids}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert d.worker_id_from_socket(ours) == -1
    assert d.worker_id_from_socket(5) == -1
    for s in kept.values():
        s.close()
    manager = example().PipeManager(1)
    (pid,) = d.addprocs(manager)
    process = d._cluster._workers[pid].config.process
    assert d.worker_id_from_socket(process.stdout) == d.worker_id_from_socket(process.stdin) == pid
    d.rmprocs([*pids, pid])


def test_init_worker_is_for_processes_of_no_cluster():
    d.procs()
    with pytest.raises(RuntimeError, match="belongs to a cluster"):
        d.init_worker(b"x" * 16)
    with pytest.raises(RuntimeError, match="belongs to a cluster"):
        d.start_worker(cookie=b"x" * 16)
    with pytest.raises(RuntimeError, match="init_worker"):
        d.process_messages(None, None)
