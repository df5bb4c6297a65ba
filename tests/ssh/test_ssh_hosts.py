"""Workers on two hosts, each with a network of its own and a real ssh server."""

import pytest

import pydist as d
from support_managers import ask

HOST = "__import__('os').uname().nodename"


def both(far, **params):
    pids = far.start([("pd1", 2), ("pd2", 1)], **params)
    by_host = {}
    for pid in pids:
        by_host.setdefault(d.remotecall_eval(HOST, pid), []).append(pid)
    return by_host["pd1"], by_host["pd2"]


@pytest.mark.filterwarnings("ignore:connections over")
def test_two_hosts(far):
    (a, b), (c,) = both(far, allow_plaintext=True)
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


@pytest.mark.parametrize("machine", ["pd1", "10.77.0.1", "pd1 0.0.0.0", "pd1 10.77.0.1:9000"])
def test_plain_text_over_the_network_is_refused(far, machine):
    flags = [*far.servers.flags, "-o", f"UserKnownHostsFile={far.servers.folder / 'known_hosts'}"]
    flags += ["-i", str(far.servers.folder / "client_key")]
    with pytest.raises(ValueError, match=r"not encrypted.*allow_plaintext=True.*tunnel=True"):
        far.start([machine], sshflags=flags)
    far.await_end()
    assert d.procs() == [1]


@pytest.mark.filterwarnings("ignore:connections over")
@pytest.mark.parametrize("bind", ["0.0.0.0", "10.77.0.1"])
def test_the_address_that_workers_listen_on(far, bind):
    one, two = far.start([(f"pd1 {bind}", 1), "pd2"], allow_plaintext=True)
    assert ask(one, two) == two
    assert ask(two, one) == one


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
