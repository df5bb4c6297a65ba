"""Rows F18 and F19 of the fault table: links between hosts that are cut; the hosts are network namespaces."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import pydist as d
import support_hosts
import tally
from support import wait_until
from support_hosts import Hosts
from support_network import DialIn, dial_in, error_of

pytestmark = [
    pytest.mark.skipif(bool(support_hosts.missing()), reason=support_hosts.missing()),
    pytest.mark.filterwarnings("ignore:connections over:RuntimeWarning"),
]

H = 1.2


@pytest.fixture(autouse=True)
def usual_heartbeat() -> Iterator[None]:
    yield
    d.set_heartbeat(30)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts(2) as made:
        yield made


@pytest.fixture
def far(hosts: Hosts) -> Iterator[DialIn]:
    with dial_in(addr=hosts.address, allow_plaintext=True) as workers:
        yield workers


def ask(pid: int, other: int) -> int:
    return d.remotecall_fetch(d.remotecall_fetch, pid, d.myid, other)


def test_f18_link_cut_and_restored(hosts, far, milestone):
    """F18: a link is cut for less than H and restored: all goes on."""
    seconds, h = (10, 30) if milestone else (1.5, 6)
    d.set_heartbeat(h)
    b, c = (far.start(prefix=hosts.prefix(i)) for i in range(2))
    assert ask(b, c) == c
    running = d.remotecall(time.sleep, b, seconds / 2)
    big = d.remotecall(bytes, b, 30_000_000)
    hosts.cut(0)
    asked = [d.remotecall(abs, b, -1), d.remotecall(d.remotecall_fetch, c, d.myid, b)]
    time.sleep(seconds)  # the fault itself
    assert {error_of(lambda f=f: f.wait(timeout=0)).__class__ for f in asked} == {TimeoutError}
    hosts.heal(0)
    assert running.fetch(timeout=h) is None
    assert [future.fetch(timeout=h) for future in asked] == [1, b]
    assert len(big.fetch(timeout=h)) == 30_000_000
    assert d.workers() == [b, c]


def test_f18_link_cut_for_good(hosts, far):
    """F18: all blocked calls raise PEE in the H window, on all processes; the far worker exits by itself."""
    d.set_heartbeat(H)
    b, c = (far.start(prefix=hosts.prefix(i)) for i in range(2))
    assert ask(b, c) == c
    channel = d.RemoteChannel(lambda: d.Channel(1), b)
    future = d.remotecall(time.sleep, b, 60)
    nested = d.remotecall(d.remotecall_fetch, c, time.sleep, b, 60)
    wait_until(lambda: d.stats(b)["calls_running"] == 2)
    waits = [
        future.fetch,
        future.wait,
        channel.take,
        lambda: d.remotecall_fetch(time.sleep, b, 60),
        nested.fetch,
    ]
    with ThreadPoolExecutor(len(waits)) as threads:
        running = [threads.submit(error_of, wait) for wait in waits]
        wait_until(lambda: d.stats(b)["calls_running"] == 3)
        begin = time.monotonic()
        hosts.cut(0)
        errors = [call.result(30) for call in running]
        took = time.monotonic() - begin
        tally.recovery(took)
    assert H <= took < 2 * H + 1
    for error in errors:
        assert isinstance(error, d.ProcessExitedException)
        assert error.pid == b
        assert error.reason.startswith("no heartbeat")
    assert d.workers() == [c]
    far.processes[b].wait(4 * H + 5)
    hosts.heal(0)
    assert d.workers() == [c]
    assert d.remotecall_fetch(d.workers, c) == [c]


def test_f19_partition_between_two_workers(hosts, far):
    """F19: only calls and waits between the two raise ConnectionLostError; the head keeps both.

    The references that one holds of the other are reclaimed.
    """
    d.set_heartbeat(H)
    b, c = (far.start(prefix=hosts.prefix(i)) for i in range(2))
    assert ask(b, c) == c
    d.remotecall_eval("import pydist as d, time", [b, c])
    d.remotecall_eval(f"kept = d.RemoteChannel(lambda: d.Channel(1), {c})", b)
    wait_until(lambda: d.stats(c)["refs_owned"] == 1)
    waits = [
        d.remotecall(d.remotecall_fetch, b, time.sleep, c, 60),
        d.remotecall(d.remotecall_fetch, c, time.sleep, b, 60),
        d.remotecall(d.remotecall_eval, b, "kept.take()", b),
    ]
    own = d.remotecall(time.sleep, c, 2 * H)
    wait_until(lambda: d.stats(b)["calls_running"] >= 3 and d.stats(c)["calls_running"] >= 3)
    hosts.part()
    errors = [error_of(lambda future=future: future.fetch(timeout=30)) for future in waits]
    for error, gone in zip(errors, (c, b, c), strict=True):
        assert isinstance(error, d.ConnectionLostError), error
        assert error.pid == gone
        assert "cannot be reached: no heartbeat" in str(error)
    assert d.workers() == [b, c]
    assert own.fetch(timeout=10) is None
    assert [d.remotecall_fetch(d.myid, pid) for pid in (b, c)] == [b, c]
    wait_until(lambda: d.stats(c)["refs_owned"] == 0, 5)
    hosts.join()
    for one, other in ((b, c), (c, b)):
        error = error_of(lambda one=one, other=other: ask(one, other))
        assert isinstance(error, d.ConnectionLostError)
    assert d.pmap(abs, [-1, -2], pool=d.WorkerPool([b, c])) == [1, 2]
