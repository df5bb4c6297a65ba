"""Workers that a framework starts, which dial in under their ids; the framework is this process here."""

import os
import signal
import sys
import time

import psutil
import pytest

import pydist as d
from pydist import _cluster, _core, _network
from pydist.managers import _hosted
from support import tcp_listeners, wait_until
from support_tls import beyond_loopback, schemes_of


class PlacedHere(_hosted.Placed):
    """A worker that is started by this process as a framework does it in another one."""

    def __init__(self, fails=False):
        self.host = _hosted.Host()
        self.fails = fails
        self.released = 0

    def start(self, pid, cookie, settings, until):
        assert cookie.text not in repr((cookie, settings))
        if self.fails:
            raise _hosted.not_placed("the framework", until - time.monotonic(), "it is full")
        try:
            return self.host.start(cookie, settings)
        except OSError as error:
            raise d.LaunchWorkerError(str(error)) from error

    def read(self):
        return self.host.read()

    def poll(self):
        return self.host._status.result() if self.host._status.done() else None

    def signal(self, number):
        self.host.signal(number)

    def release(self):
        self.released += 1


class HereManager(_hosted.HostedManager):
    def __init__(self, *places, here=True):
        super().__init__()
        self.places = places
        self.here = here

    def _places(self):
        return list(self.places)

    def _is_here(self):
        return self.here


def test_they_join_under_their_ids_and_leave():
    manager = HereManager(PlacedHere(), PlacedHere())
    before = tcp_listeners(os.getpid())
    pids = d.addprocs(manager)
    assert len(pids) == 2
    assert tcp_listeners(os.getpid()) == before  # nobody can dial in any more
    assert d.remotecall_fetch(d.remotecall_fetch, pids[0], d.myid, pids[1]) == pids[1]
    ospids = [d.remotecall_fetch(os.getpid, pid) for pid in pids]
    assert [d.remotecall_fetch(os.getenv, pid, "OMP_NUM_THREADS") for pid in pids] == ["1", "1"]
    for ospid in ospids:
        assert [host for host, _ in tcp_listeners(ospid)] == ["127.0.0.1"]
    d.rmprocs(pids)
    assert not any(psutil.pid_exists(ospid) for ospid in ospids)
    wait_until(lambda: [place.released for place in manager.places] == [1, 1])


def test_parameters_of_addprocs_reach_them(tmp_path, fresh_workers):
    (pid,) = fresh_workers(
        HereManager(PlacedHere()),
        dir=tmp_path,
        env={"PYDIST_TEST": "there"},
        exeflags=["-X", "dev"],
        enable_threaded_blas=True,
    )
    assert d.remotecall_fetch(os.getcwd, pid) == str(tmp_path)
    assert d.remotecall_fetch(os.getenv, pid, "PYDIST_TEST") == "there"
    assert d.remotecall_eval("import sys; sys.flags.dev_mode", pid)
    assert d.remotecall_fetch(os.getenv, pid, "OMP_NUM_THREADS") == os.environ.get("OMP_NUM_THREADS")


def test_what_they_print_is_passed_on_to_the_end(capsys):
    (pid,) = d.addprocs(HereManager(PlacedHere()))
    d.remotecall_eval("import os, sys; print('out'); print('err', file=sys.stderr); os.write(1, b'raw')", pid)
    d.rmprocs(pid)
    captured = capsys.readouterr()
    assert f"      From worker {pid}:\tout\n" in captured.out
    assert f"      From worker {pid}:\traw\n" in captured.out
    assert f"      From worker {pid}:\terr\n" in captured.err


def test_a_grandchild_that_prints_for_ever_does_not_keep_its_end_from_being_seen():
    place = PlacedHere()
    (pid,) = d.addprocs(HereManager(place))
    start = "subprocess.Popen(['sh', '-c', 'while :; do echo x; done'], start_new_session=True).pid"
    child = d.remotecall_eval(f"import subprocess; {start}", pid)
    try:
        os.kill(d.remotecall_fetch(os.getpid, pid), signal.SIGKILL)
        wait_until(lambda: place.poll() == -signal.SIGKILL)
        d.rmprocs(pid)
    finally:
        os.kill(child, signal.SIGKILL)


def test_signals_that_were_blocked_where_they_were_started_are_not():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        (pid,) = d.addprocs(HereManager(PlacedHere()))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    future = d.remotecall(time.sleep, pid, 60)
    wait_until(lambda: d.stats(pid)["calls_running"])
    d.interrupt(pid)
    with pytest.raises(d.RemoteException, match="KeyboardInterrupt"):
        future.fetch(timeout=20)
    begin = time.monotonic()
    d.rmprocs(pid)
    assert time.monotonic() - begin < 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_one_that_is_killed_and_one_that_does_not_end(number, monkeypatch):
    monkeypatch.setattr(_cluster, "TERM_AFTER", 0.2)
    monkeypatch.setattr(_cluster, "KILL_AFTER", 0.4)
    (pid,) = d.addprocs(HereManager(PlacedHere()))
    ospid = d.remotecall_fetch(os.getpid, pid)
    os.kill(ospid, number)
    if number == signal.SIGKILL:
        with pytest.raises(d.ProcessExitedException):
            d.remotecall_fetch(time.sleep, pid, 60)
    d.rmprocs(pid)
    wait_until(lambda: not psutil.pid_exists(ospid))


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        ("sys.version_info = (3, 99, 1)", ["3.99.1", "{}.{}.{}".format(*sys.version_info[:3])]),
        ("from pydist import _core; _core.__version__ = '9.9.9'", ["9.9.9", d.__version__]),
    ],
    ids=["python", "pydist"],
)
def test_another_version_is_refused_with_both_named(tmp_path, patch, says):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{patch}\n")
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(HereManager(PlacedHere()), env={"PYTHONPATH": str(tmp_path)}, timeout=20)
    assert all(version in str(caught.value) for version in says), str(caught.value)
    assert d.procs() == [1]


def test_one_that_does_not_start_does_not_keep_the_others_from_starting():
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(HereManager(PlacedHere(), PlacedHere(fails=True), PlacedHere()))
    error = caught.value
    assert len(error.started) == 2
    assert "it is full" in str(error.failures[0])
    assert d.remotecall_fetch(d.myid, error.started[1]) == error.started[1]
    d.rmprocs(error.started)


@pytest.mark.parametrize("params", [{"exename": "/no/such/python"}, {"dir": "/no/such/folder"}])
def test_a_process_that_cannot_be_started_is_named(params):
    with pytest.raises(d.LaunchWorkerError, match="/no/such"):
        d.addprocs(HereManager(PlacedHere()), **params)
    assert d.procs() == [1]


def test_beyond_loopback_tls_is_the_default():
    beyond_loopback()
    ip = _network.split_any(_network.own_addresses(0)[0])[0]
    before = tcp_listeners(os.getpid())
    for manager, params in (
        (HereManager(PlacedHere(), PlacedHere(), here=False), {}),
        (HereManager(PlacedHere(), PlacedHere()), {"bind_addr": ip}),
        (HereManager(PlacedHere(), PlacedHere()), {"bind_addr": "0.0.0.0"}),
    ):
        one, two = d.addprocs(manager, **params)
        assert schemes_of(one) == schemes_of(two) == {"tls"}
        assert [host for host, _ in tcp_listeners(d.remotecall_fetch(os.getpid, one))] == [ip]
        assert d.remotecall_fetch(d.remotecall_fetch, one, d.myid, two) == two
        assert d.remotecall_fetch(len, two, bytes(3_000_000)) == 3_000_000
        d.rmprocs(one, two)
        assert tcp_listeners(os.getpid()) == before


@pytest.mark.filterwarnings("ignore:connections over")
def test_encryption_as_it_is_asked_for():
    beyond_loopback()
    for params, scheme in (
        ({"tls": True}, "tls"),
        ({"allow_plaintext": True, "bind_addr": "0.0.0.0"}, "tcp"),
    ):
        one, two = d.addprocs(HereManager(PlacedHere(), PlacedHere()), **params)
        assert schemes_of(one) == schemes_of(two) == {scheme}
        assert d.remotecall_fetch(d.remotecall_fetch, one, d.myid, two) == two
        d.rmprocs(one, two)


def test_a_worker_nobody_waits_for_is_not_let_in():
    """Who knows the cookie and the address, but has an id that is not expected, is refused."""
    place = PlacedHere()

    class Wrong(PlacedHere):
        def start(self, pid, cookie, settings, until):
            settings["join"]["pid"] = pid + 100
            return super().start(pid, cookie, settings, until)

    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(HereManager(Wrong(), place), timeout=10)
    assert len(caught.value.started) == 1
    assert [pid for pid in d.procs() if pid != 1] == caught.value.started
    d.rmprocs(caught.value.started)


def test_none_are_started_where_none_are_asked_for():
    before = _core.next_id()
    assert d.addprocs(HereManager()) == []
    assert _core.next_id() == before
