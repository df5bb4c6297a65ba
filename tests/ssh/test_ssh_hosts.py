"""Workers on two hosts, each with a network of its own and a real ssh server."""

import os
import subprocess
import sys
import warnings

import pytest

import pydist as d
import support
from pydist import _network
from support_managers import ask
from support_tls import Authority, schemes_of

HOST = "__import__('os').uname().nodename"


def both(far, machines=(("pd1", 2), ("pd2", 1)), **params):
    pids = far.start(machines, **params)
    by_host = {}
    for pid in pids:
        by_host.setdefault(d.remotecall_eval(HOST, pid), []).append(pid)
    return by_host["pd1"], by_host["pd2"]


def test_two_hosts(far):
    """Without a word of the user, all that crosses the network is encrypted."""
    (a, b), (c,) = both(far)
    assert [schemes_of(pid) for pid in (a, b, c)] == [{"tls"}] * 3
    assert d.pmap(pow, range(30), [3] * 30) == [i**3 for i in range(30)]
    assert [ask(*pair) for pair in ((a, c), (c, a), (b, c))] == [c, a, c]
    channel = d.RemoteChannel(lambda: d.Channel(4), c)
    d.remotecall_fetch(channel.put, a, b"x" * 1_000_000)
    assert len(d.remotecall_fetch(channel.take, b)) == 1_000_000
    assert d.procs(c) == [c]
    assert d.check_same_host([a, b])
    assert not d.check_same_host([a, c])
    d.rmprocs([a, b, c])
    assert d.procs() == [1]
    far.await_end()


def test_plain_text_where_it_is_allowed(far, monkeypatch):
    monkeypatch.setattr(_network, "_warned", False)
    with pytest.warns(RuntimeWarning, match="connections over 10.77.0.[12] are not encrypted") as warned:
        (a, b), (c,) = both(far, allow_plaintext=True)
    assert len(warned) == 1
    assert [schemes_of(pid) for pid in (a, b, c)] == [{"tcp"}] * 3
    assert [ask(*pair) for pair in ((a, c), (c, a), (b, c))] == [c, a, c]


def test_workers_with_and_without_tls_reach_each_other(far):
    """The address of each says how it is dialled."""
    (one,) = far.start(["pd1"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (two,) = far.start(["pd2"], allow_plaintext=True)
    assert [schemes_of(pid) for pid in (one, two)] == [{"tls"}, {"tcp"}]
    assert ask(one, two) == two
    assert ask(two, one) == one


@pytest.mark.parametrize("bind", ["0.0.0.0", "10.77.0.1", "10.77.0.1:9000"])
def test_the_address_that_workers_listen_on(far, bind):
    (one,), (two,) = both(far, [f"pd1 {bind}", "pd2"])
    assert schemes_of(one, "10.77.0.1") == {"tls"}
    assert ask(one, two) == two
    assert ask(two, one) == one


CERTIFICATES = """
import os
import sys
import pydist as d
from support_managers import ask
from support_ssh import Cluster, Servers
from support_tls import schemes_of
from pathlib import Path
folder, ca, cert, key = sys.argv[1:]
far = Cluster(Servers(2, "--netns", folder=Path(folder)))
one, two = far.start(["pd1", "pd2"], tls=d.TlsFiles(ca=ca, cert=cert, key=key))
print(ask(one, two), ask(two, one), d.pmap(abs, range(-3, 0)))
print(schemes_of(one), schemes_of(two))
os.rename(key, key + "-")
try:
    far.start(["pd1"])
except d.LaunchWorkerError as error:
    print(error)
print(d.workers())
"""


def test_certificates_of_the_user(far, tmp_path):
    """The files are read on the machine of each worker, at the paths that they have here."""
    files = Authority(tmp_path, "own").files("all")
    here = os.path.dirname(support.__file__)
    done = subprocess.run(
        [sys.executable, "-c", CERTIFICATES, far.servers.folder, *files.paths()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    values, schemes, *failure, left = done.stdout.splitlines()
    assert (values, schemes, left) == ("3 2 [3, 2, 1]", "{'tls'} {'tls'}", "[2, 3]"), done.stderr
    assert f"{files.key}: No such file" in "\n".join(failure)


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("multiplex", [False, True])
def test_tunnels_connect_process_1_and_the_workers_of_each_host(far, multiplex, lazy):
    """What no route leads to is told as that, and neither worker is taken for lost."""
    (a, b), (c,) = both(far, tunnel=True, multiplex=multiplex, lazy=lazy)
    assert d.pmap(abs, range(-20, 0)) == list(range(20, 0, -1))
    assert ask(a, b) == b
    for here, there in ((a, c), (c, b)):
        with pytest.raises(d.NotConnectedError, match=rf"{here} .*{there}: .*no route") as caught:
            ask(here, there)
        assert "pd1" in str(caught.value)
        assert "pd2" in str(caught.value)
    # References whose owner cannot be reached do no harm to what can.
    future = d.Future(a)
    with pytest.raises(d.NotConnectedError):
        d.remotecall_fetch(lambda f: f.fetch(), c, future)
    future.put(3)
    assert d.remotecall_fetch(lambda f: f.fetch(), b, future) == 3
    channel = d.RemoteChannel(lambda: d.Channel(1), a)
    for use in (channel.put, channel.take, channel.isready, channel.close):
        with pytest.raises(d.NotConnectedError):
            d.remotecall_fetch(use, c, *([1] if use == channel.put else []))
    channel.put(5)
    assert d.remotecall_fetch(channel.take, b) == 5
    (local,) = d.addprocs(1, lazy=lazy)
    with pytest.raises(d.NotConnectedError):
        ask(local, c)
    with pytest.raises(d.NotConnectedError):
        ask(c, local)
    assert [d.remotecall_fetch(d.myid, pid) for pid in (a, b, c, local)] == [a, b, c, local]
