"""Security tests S1, S4 and S6 of the fault table, on encrypted connections of real processes."""

import os
import socket
import ssl
import subprocess
import sys
import threading

import pytest
from test_security import assert_absent

import pydist as d
from pydist import _core, _network
from support import wait_until
from support_tls import Authority, Relay

MARK = b"what only the two ends may see"


@pytest.fixture
def manager():
    with d.ElasticManager(tls=True) as made:
        d.addprocs(made)
        yield made
        d.rmprocs([pid for pid in d.procs() if pid != 1])


def dial(address, *words):
    command = [sys.executable, "-m", "pydist", "worker", "--connect", address, "--timeout", "20", *words]
    env = {**os.environ, "PYDIST_COOKIE": d.cluster_cookie().hex()}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)


def ended(process, timeout=20):
    """Give the exit status of a worker and what it printed."""
    error = process.communicate(timeout=timeout)[1]
    return process.returncode, error


def joined():
    """Wait for the one worker that joins."""
    (pid,) = wait_until(lambda: [pid for pid in d.procs() if pid != 1], 20)
    return pid


def test_s1_nothing_can_be_read_on_the_way(manager):
    """S1: the cookie, the handshake and the data are absent from captured traffic."""
    with Relay(_network.split(manager.address)) as relay:
        worker = dial(relay.address, "--tls")
        pid = joined()
        assert d.remotecall_fetch(bytes.__add__, pid, MARK * 1000, MARK) == MARK * 1001
        d.rmprocs(pid)
        assert ended(worker) == (0, "")
        seen = bytes(relay.seen)
    assert len(seen) > 2 * 1000 * len(MARK)
    assert_absent(d.cluster_cookie(), seen, "the traffic")
    for word in (MARK, b"PYDIST", sys.version.split()[0].encode(), d.__version__.encode() + b"\0"):
        assert word not in seen
    assert seen[0] == 0x16  # a record of TLS, and not the first byte of pydist


def test_s1_without_tls_the_same_capture_sees_it():
    """S1: what is looked for would be found; the cookie is in no traffic, encrypted or not."""
    with d.ElasticManager() as manager:
        d.addprocs(manager)
        with Relay(_network.split(manager.address)) as relay:
            worker = dial(relay.address)
            pid = joined()
            assert d.remotecall_fetch(bytes.__add__, pid, MARK, MARK) == MARK * 2
            d.rmprocs(pid)
            assert ended(worker) == (0, "")
            assert MARK in relay.seen
            assert b"PYDIST" in relay.seen
            assert_absent(d.cluster_cookie(), bytes(relay.seen), "the traffic")


def test_s4_a_man_in_the_middle_fails_on_both_ends(manager, tmp_path, caplog):
    """S4: one who ends TLS with a certificate of his own relays proofs that are bound to other sessions."""
    caplog.set_level("INFO", "pydist")
    before = _core.next_id()
    identity = Authority(tmp_path, "mallory").files("mallory")

    def attempt():
        """Say whether the log has it; of refusals that come fast one a second is logged."""
        with Relay(_network.split(manager.address), identity) as relay:
            status, error = ended(dial(relay.address, "--tls"))
            seen = bytes(relay.seen)
        assert status == 1
        assert "ended in its handshake" in error
        # He has seen the handshake up to the first proof, which he cannot use, and no answer to it.
        assert seen.count(b"\x89PYDIST") == 2
        assert len(seen) == 68 + 48 + 32
        assert_absent(d.cluster_cookie(), seen, "what he has seen")
        return "authentication failed" in caplog.text

    wait_until(attempt, 20)
    assert (d.procs(), _core.next_id()) == ([1], before)
    worker = dial(manager.address, "--tls")
    assert d.remotecall_fetch(d.myid, joined()) == before
    d.rmprocs(before)
    assert ended(worker) == (0, "")


def test_s6_an_offer_of_tls_1_2_is_refused(manager):
    """S6: TLS 1.2 offer; TLS 1.3 alone is spoken."""
    for version, accepted in [(ssl.TLSVersion.TLSv1_2, False), (ssl.TLSVersion.TLSv1_3, True)]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(_network.split(manager.address), 10) as s:
            if accepted:
                with context.wrap_socket(s) as session:
                    assert session.version() == "TLSv1.3"
            else:
                with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"):
                    context.wrap_socket(s)


def test_s6_a_listener_of_tls_1_2_is_refused(tmp_path):
    """S6: the end that dials takes no less either."""
    files = Authority(tmp_path, "old").files("old")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.cert, files.key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            s, _ = listener.accept()
            with s, pytest.raises(ssl.SSLError):
                context.wrap_socket(s, server_side=True)

        thread = threading.Thread(target=serve)
        thread.start()
        status, error = ended(dial(f"127.0.0.1:{listener.getsockname()[1]}", "--tls"))
        thread.join(10)
    assert status == 1
    assert "does not speak TLS 1.3" in error


def test_s6_tls_that_is_stripped_is_missed(manager):
    """S6: TLS stripping: one in the middle who speaks TLS with one end and none with the other."""
    host, port = _network.split(manager.address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = dial(f"127.0.0.1:{listener.getsockname()[1]}", "--tls")
        near, _ = listener.accept()
        with near, socket.create_connection((host, port)) as far, context.wrap_socket(far) as session:
            first = near.recv(4096)
            assert first[0] == 0x16
            session.sendall(first)
            assert session.recv(4096) == b""
            near.sendall(b"\x89PYDIST\x02" + bytes(40))
            status, error = ended(worker)
    assert status == 1
    assert "the other side speaks no TLS" in error
    assert d.procs() == [1]
