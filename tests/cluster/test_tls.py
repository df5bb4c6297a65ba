"""Encrypted connections: where they are used, and whose certificates are taken."""

import contextlib
import shlex
import socket
import subprocess
import sys

import pytest

import pydist as d
from pydist import _core, _network
from support import Script, tcp_listeners
from support_managers import DialledManager, ask, end_all, joined
from support_tls import Authority, beyond_loopback


@pytest.fixture
def dial_in():
    """Give a function that starts a worker which dials in; those that are left are ended."""
    processes = []

    def run(command, *words):
        made = subprocess.Popen([*shlex.split(command), *words], stderr=subprocess.PIPE, text=True)
        processes.append(made)
        return made

    yield run
    end_all(processes)


def only_address(command, address):
    """Give a command with one address in the place of several."""
    words = shlex.split(command)
    while "--connect" in words:
        at = words.index("--connect")
        del words[at : at + 2]
    return shlex.join([*words, "--connect", address])


def where(pid):
    """Give the addresses on which a worker listens."""
    return [host for host, _ in tcp_listeners(d.remotecall_fetch(lambda: __import__("os").getpid(), pid))]


def test_connections_beyond_loopback_are_encrypted_by_default(dial_in):
    ips = beyond_loopback()
    with d.ElasticManager("0.0.0.0") as manager:
        d.addprocs(manager)
        hosts = [_network.split(address)[0] for address in manager.addresses()]
        assert set(hosts) == {*ips, "127.0.0.1"}
        assert hosts[-1] == "127.0.0.1"
        for _ in range(2):
            dial_in(manager.command())
        one, two = joined(2)
        assert ask(one, two) == two
        assert ask(two, one) == one
        data = bytes(range(256)) * 40_000
        assert d.remotecall_fetch(bytes.__add__, one, data, b"x") == data + b"x"
        assert d.remotecall_fetch(d.remotecall_fetch, one, len, two, data) == len(data)
        assert d.pmap(abs, range(-300, 0)) == list(range(300, 0, -1))


def test_a_worker_listens_where_it_reached_process_1(dial_in):
    for n, ip in enumerate([*beyond_loopback(), "127.0.0.1"], 1):
        with d.ElasticManager("0.0.0.0") as manager:
            d.addprocs(manager)
            port = _network.split(manager.address)[1]
            dial_in(only_address(manager.command(), f"{ip}:{port}"))
            pid = joined(n)[-1]
            assert where(pid) == [ip]
    first, *others = [p for p in d.procs() if p != 1]
    assert all(ask(first, other) == other and ask(other, first) == first for other in others)


def test_a_worker_that_listens_everywhere_tells_its_addresses(dial_in):
    beyond_loopback()
    with d.ElasticManager("0.0.0.0") as manager:
        d.addprocs(manager)
        dial_in(manager.command(), "--bind-to", "0.0.0.0")
        dial_in(manager.command())
        one, two = joined(2)
        assert ask(one, two) == two
        assert ask(two, one) == one


def test_tls_on_loopback_where_it_is_asked_for(dial_in):
    with d.ElasticManager(tls=True) as manager:
        d.addprocs(manager)
        assert manager.command().endswith("--tls")
        plain = dial_in(manager.command().removesuffix("--tls"))
        assert plain.wait(20) == 1
        error = plain.stderr.read()
        assert "the other side speaks TLS" in error
        assert "--tls" in error
        dial_in(manager.command())
        (pid,) = joined(1)
        assert d.remotecall_fetch(d.myid, pid) == pid


def test_a_worker_with_tls_does_not_join_without(dial_in):
    with d.ElasticManager() as manager:
        d.addprocs(manager)
        before = _core.next_id()
        worker = dial_in(manager.command(), "--tls")
        assert worker.wait(20) == 1
        error = worker.stderr.read()
        assert "may speak no TLS" in error
        assert "--allow-plaintext" in error
        assert _core.next_id() == before


def dialled(*words, count=2):
    return DialledManager(
        *({} for _ in range(count)),
        code=f"import sys\nfrom pydist import _dialin\nsys.exit(_dialin.main({list(words)!r}))",
    )


def test_workers_that_are_dialled_beyond_loopback():
    ip = beyond_loopback()[0]
    one, two = d.addprocs(dialled("--bind-to", ip))
    assert where(one) == where(two) == [ip]
    assert ask(one, two) == two
    assert d.remotecall_fetch(len, two, bytes(3_000_000)) == 3_000_000
    d.rmprocs(one, two)
    one, two = d.addprocs(dialled("--tls"), tls=True)
    assert where(one) == ["127.0.0.1"]
    assert ask(two, one) == one
    d.rmprocs(one, two)


def test_a_worker_that_is_dialled_and_speaks_no_tls_is_refused():
    ip = beyond_loopback()[0]
    for manager, options in [
        (dialled("--bind-to", ip, "--allow-plaintext", count=1), {}),
        (dialled(count=1), {"tls": True}),
    ]:
        with pytest.raises(d.LaunchWorkerError, match="speaks no TLS"):
            d.addprocs(manager, **options)


def test_what_cannot_be_asked_for_together():
    with pytest.raises(ValueError, match="exclude"):
        d.addprocs(1, tls=True, allow_plaintext=True)
    with pytest.raises(ValueError, match="allow_plaintext=True"):
        d.addprocs(1, tls=False)
    with pytest.raises(TypeError, match="TlsFiles"):
        d.ElasticManager(tls="yes")
    for words, says in [
        (["--tls", "--allow-plaintext"], "exclude"),
        (["--tls-ca", "x"], "belong together"),
        (["--tls-ca", "/nowhere/ca", "--tls-cert", "b", "--tls-key", "c"], "/nowhere/ca"),
    ]:
        command = [sys.executable, "-m", "pydist", "worker", "--connect", "127.0.0.1:1", *words]
        done = subprocess.run(command, input="x" * 32 + "\n", capture_output=True, text=True, timeout=30)
        assert done.returncode == 1
        assert says in done.stderr


def of_files(files):
    return dict(zip(("ca", "cert", "key"), files.paths(), strict=True))


@pytest.mark.timeout(90)
def test_certificates_of_the_users_own(tmp_path):
    """S6: another authority, and none at all, are refused on both sides; the cookie is needed too."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    head, worker, stranger = ours.files("head"), ours.files("worker"), theirs.files("stranger")
    text = f"""
        import os, shlex, subprocess
        import pydist as d

        def start(*words, cookie=None):
            command = shlex.split(m.command())
            del command[command.index("--cookie-file"):]
            env = {{**os.environ, "PYDIST_COOKIE": cookie or d.cluster_cookie().hex()}}
            return subprocess.Popen([*command, *words], env=env, stderr=subprocess.PIPE, text=True)

        early = d.addprocs(1)
        m = d.ElasticManager(tls=d.TlsFiles(**{of_files(head)}))
        assert "--tls-key" in m.command()
        d.addprocs(m)
        local = d.addprocs(1)
        good = [start(*{worker.words()!r}) for _ in range(2)]
        while d.nprocs() < 5:
            pass
        pids = [p for p in d.workers() if p not in early]
        for a in pids:
            for b in pids:
                assert d.remotecall_fetch(d.remotecall_fetch, a, d.myid, b) == b
        assert d.remotecall_fetch(len, pids[-1], bytes(3_000_000)) == 3_000_000
        bad = [start(*words, cookie=cookie) for words, cookie in [
            (["--tls"], None),
            ({stranger.words()!r}, None),
            ({[*worker.words()[:2], *stranger.words()[2:]]!r}, None),
            ({worker.words()!r}, "x" * 32),
        ]]
        for p in bad:
            print(p.communicate(timeout=30)[1].strip().splitlines()[-1], p.returncode)
        try:
            d.addprocs(1, tls=d.TlsFiles(**{of_files(stranger)}))
        except ValueError as error:
            print(error)
        d.rmprocs(d.workers())
        print([p.wait(10) for p in good])
        """
    with Script(text) as script:
        done = script.finish(80)
    none, other, mixed, cookie, used, ends = done.stdout.splitlines()
    assert "CertificateRequired" in none
    assert "the certificate of the other side is not accepted" in other
    assert "UnknownCA" in mixed
    assert "is the cookie that of this cluster?" in cookie
    assert all(line.endswith(" 1") for line in (none, other, mixed, cookie))
    assert "other files" in used
    assert ends == "[0, 0]"


def test_a_killed_worker_is_seen_at_once_over_tls(dial_in):
    """F1: over an encrypted connection, which ends without a last word."""
    with d.ElasticManager(tls=True) as manager:
        d.addprocs(manager)
        process = dial_in(manager.command())
        (pid,) = joined(1)
        future = d.remotecall(lambda: __import__("time").sleep(60), pid)
        process.kill()
        with pytest.raises(d.ProcessExitedException):
            future.fetch(timeout=20)
        assert d.procs() == [1]


def test_a_port_that_closes_at_once(dial_in):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with d.ElasticManager() as manager:
            command = only_address(manager.command(), "127.0.0.1:{}".format(*listener.getsockname()[1:]))
        worker = dial_in(command, "--tls")
        with contextlib.closing(listener.accept()[0]):
            pass
        assert worker.wait(20) == 1
        assert "may speak no TLS" in worker.stderr.read()
