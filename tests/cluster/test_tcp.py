"""Connections over TCP: their options, several addresses, and what is not used without encryption."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import warnings

import psutil
import pytest

import pydist as d
from pydist import _core, _network, _tls
from support import tcp_listeners, wait_until
from support_managers import DialledManager, ask


def own_sockets() -> list[socket.socket]:
    """Give duplicates of the TCP sockets of this process that are connected."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            s = socket.socket(fileno=os.dup(int(entry)))
            if s.family == socket.AF_INET and s.type == socket.SOCK_STREAM:
                found.append(s)
                s.getpeername()
                continue
            s.close()
    return found


def test_connections_have_no_delay_and_are_kept_alive():
    (pid,) = d.addprocs(DialledManager())
    sockets = [s for s in own_sockets() if d.worker_id_from_socket(s) == pid]
    try:
        assert sockets
        for s in sockets:
            assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
            assert s.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
    finally:
        for s in own_sockets():
            s.close()
        for s in sockets:
            s.close()
    d.rmprocs(pid)


def test_workers_that_are_dialled_listen_on_loopback_alone():
    one, two = d.addprocs(DialledManager({}, {}))
    assert ask(one, two) == two
    for pid in (one, two):
        listening = tcp_listeners(d.remotecall_fetch(os.getpid, pid))
        assert [host for host, _ in listening] == ["127.0.0.1"]
    d.rmprocs(one, two)


def test_workers_over_unix_sockets_and_tcp_reach_each_other(workers):
    (dialled,) = d.addprocs(DialledManager())
    for pid in workers:
        assert ask(pid, dialled) == dialled
        assert ask(dialled, pid) == pid
    value = d.remotecall_fetch(bytes, dialled, 3_000_000)
    assert value == bytes(3_000_000)
    d.rmprocs(dialled)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


def joined(before: list[int]) -> int:
    """Wait for the one worker that joins."""
    (pid,) = wait_until(lambda: set(d.procs()) - set(before), 20)
    return pid


def dial_in(*addresses: str, seconds: float = 10, **options: object) -> subprocess.Popen:
    connect = [word for address in addresses for word in ("--connect", address)]
    command = [sys.executable, "-m", "pydist", "worker", *connect, "--timeout", str(seconds)]
    env = {**os.environ, "PYDIST_COOKIE": d.cluster_cookie().hex()}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, **options)


def test_a_worker_tries_every_address():
    with d.ElasticManager() as manager, socket.create_server(("127.0.0.1", 0), backlog=1) as silent:
        d.addprocs(manager)
        closed = f"127.0.0.1:{free_port()}"
        members = d.procs()
        worker = dial_in(closed, "nowhere.invalid:1", manager.address)
        pid = joined(members)
        assert d.remotecall_fetch(d.myid, pid) == pid
        del silent
        d.rmprocs(pid)
        assert worker.wait(10) == 0
        worker.stderr.close()


def test_a_failure_lists_the_addresses_that_were_tried():
    ports = [free_port(), free_port()]
    worker = dial_in(*(f"127.0.0.1:{port}" for port in ports), "nowhere.invalid:1", seconds=0.5)
    _, errors = worker.communicate(timeout=30)
    assert worker.returncode == 1
    for port in ports:
        assert f"tcp:127.0.0.1:{port}: " in errors
    assert "refused" in errors
    assert "nowhere.invalid" in errors


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_manager_listens_where_it_is_told(ipv6):
    addr = "::1" if ipv6 else "localhost"
    with d.ElasticManager(addr=addr) as manager:
        host, port = _network.split(manager.address)
        assert (host == "::1") if ipv6 else _network.is_loopback(host)
        d.addprocs(manager)
        members = d.procs()
        worker = dial_in(manager.address)
        pid = joined(members)
        assert d.remotecall_fetch(d.myid, pid) == pid
        assert (host, port) in [(h, p) for h, p in tcp_listeners(os.getpid())]
        d.rmprocs(pid)
        worker.wait(10)
        worker.stderr.close()


def test_beyond_loopback_plain_text_is_not_listened_to_unless_it_is_allowed():
    for allowed in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            manager = d.ElasticManager("0.0.0.0", allow_plaintext=allowed)
        with manager:
            d.addprocs(manager)
            with socket.create_connection(("127.0.0.1", _network.split(manager.address)[1]), 10) as s:
                s.sendall(b"\x89PYDIST\x01\x01\0\x01\0\0\0\x01\0" + bytes(20) + os.urandom(32))
                answer = s.recv(1000)
        # The challenge, or an alert of TLS.
        assert answer[:1] == (b"\x89" if allowed else b"\x15")


def test_where_tls_is_used():
    for ip in ("127.0.0.1", "::1"):
        assert _tls.scheme(ip, None, False) == "tcp"
        assert _tls.scheme(ip, True, False) == "tls"
    for ip in ("192.0.2.1", "0.0.0.0", "::"):
        assert _tls.scheme(ip, None, False) == "tls"


def test_plain_text_that_is_allowed_is_warned_of_once(monkeypatch):
    monkeypatch.setattr(_network, "_warned", False)
    with pytest.warns(RuntimeWarning, match="not encrypted"):
        m = d.ElasticManager("0.0.0.0", allow_plaintext=True)
    with m:
        port = m.address.rpartition(":")[2]
        assert f"127.0.0.1:{port}" in m.addresses()
        assert all(address in m.command() for address in m.addresses())
        assert "--allow-plaintext" in m.command()
    with d.ElasticManager("0.0.0.0", allow_plaintext=True):
        pass


def test_a_dead_address_of_a_worker_does_not_hold_up_its_caller(workers):
    """A connection under way blocks no thread: the dialling worker answers others meanwhile."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        fillers = [socket.socket() for _ in range(4)]
        for s in fillers:
            s.setblocking(False)
            s.connect_ex(full.getsockname())
        code = (
            "import pydist\n"
            "from pydist import _worker\n"
            "serve = _worker.serve\n"
            f"_worker.serve = lambda address: serve('tcp:127.0.0.1:{full.getsockname()[1]}')\n"
            "pydist.start_worker()"
        )
        (unreachable,) = d.addprocs(DialledManager(code=code))
        future = d.remotecall(d.remotecall_fetch, workers[0], d.myid, unreachable)
        begin = time.monotonic()
        for _ in range(50):
            assert d.remotecall_fetch(d.myid, workers[0]) == workers[0]
            assert ask(workers[0], workers[1]) == workers[1]
        assert time.monotonic() - begin < 5
        assert not future.isready()
        for s in fillers:
            s.close()
        d.rmprocs(unreachable)
        with pytest.raises(d.ProcessExitedException):
            future.fetch(timeout=20)


@pytest.mark.timeout(60)
def test_f53_a_name_that_is_not_resolved_holds_up_nobody_else(workers, monkeypatch):
    """F53: slow or dead DNS for one host: it fails at its own timeout; other hosts are unaffected."""
    gone = threading.Event()
    lookup = socket.getaddrinfo

    def slow(host, *args, **kwargs):
        if host == "slow.invalid":
            gone.wait()
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", slow)

    class Two(DialledManager):
        def connect(self, pid, config):
            if config.userdata == "slow":
                socket.create_connection(("slow.invalid", 1))
            return super().connect(pid, config)

    begin = time.monotonic()
    try:
        with pytest.raises(d.LaunchWorkerError) as caught:
            d.addprocs(Two({"userdata": "slow"}, {}), timeout=3)
        assert time.monotonic() - begin < 10
        assert len(caught.value.started) == 1
        assert ask(workers[0], caught.value.started[0]) == caught.value.started[0]
        d.rmprocs(caught.value.started)
    finally:
        gone.set()


def test_strangers_at_a_tcp_listener_of_a_manager():
    with d.ElasticManager() as manager:
        d.addprocs(manager)
        target = _network.split(manager.address)
        before = _core.next_id()
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x89PYDIST\x01" + bytes(60), os.urandom(300)):
            with socket.create_connection(target) as s:
                s.sendall(data)
                s.settimeout(10)
                with contextlib.suppress(ConnectionError):
                    assert s.recv(1000) == b""
        members = d.procs()
        worker = dial_in(manager.address)
        pid = joined(members)
        assert pid == before  # no id was spent on those who did not know the cookie
        d.rmprocs(pid)
        worker.wait(10)
        worker.stderr.close()
        assert not psutil.pid_exists(worker.pid)
