"""Row F18 of the fault table for workers that ssh has started: the link to their host is cut."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import pydist as d
import tally
from support import alive, wait_until
from support_managers import ask
from support_network import error_of
from support_ssh import Cluster, Servers, run

H, INTERVAL = 1.5, 0.25


@pytest.fixture(autouse=True)
def usual_heartbeat() -> Iterator[None]:
    yield
    d.set_heartbeat(30)


@pytest.fixture
def link(hosts: Servers) -> Iterator[Callable[[str], None]]:
    """Give a function that cuts the link to the first host, or heals it; it is healed in the end."""

    def change(how: str) -> None:
        run(hosts.scripts / "netns_hosts.sh", how, "1")

    yield change
    change("heal")


def one_on_each(far: Cluster) -> tuple[int, int]:
    (first,) = far.start(["pd1"])
    (second,) = far.start(["pd2"])
    assert ask(first, second) == second
    return first, second


def test_f18_a_link_that_is_cut_for_good(far, link):
    """F18: all blocked calls raise PEE in the H window, on all processes; the far worker exits by itself."""
    d.set_heartbeat(H, INTERVAL)
    lost, other = one_on_each(far)
    ospid = d.remotecall_eval("__import__('os').getpid()", lost)
    channel = d.RemoteChannel(lambda: d.Channel(1), lost)
    future = d.remotecall(time.sleep, lost, 60)
    nested = d.remotecall(d.remotecall_fetch, other, time.sleep, lost, 60)
    waits = [
        future.fetch,
        future.wait,
        channel.take,
        lambda: d.remotecall_fetch(time.sleep, lost, 60),
        nested.fetch,
    ]
    with ThreadPoolExecutor(len(waits)) as threads:
        running = [threads.submit(error_of, wait) for wait in waits]
        wait_until(lambda: d.stats(lost)["calls_running"] == 3)
        begin = time.monotonic()
        link("cut")
        errors = [call.result(30) for call in running]
        took = time.monotonic() - begin
        tally.recovery(took)
    for error in errors:
        assert isinstance(error, d.ProcessExitedException), error
        assert error.pid == lost
        assert error.reason.startswith("no heartbeat")
    assert H - INTERVAL <= took < 2 * H + 1
    assert d.workers() == [other]
    # Nothing reaches it: it hears nobody for four times as long, and ends.
    wait_until(lambda: not alive(ospid), 4 * H + 5, "the end of the worker")
    link("heal")
    assert d.workers() == [other]
    assert d.remotecall_fetch(d.workers, other) == [other]


def test_f18_a_link_that_heals_in_time(far, link, milestone):
    """F18: what was on its way when the link was cut for less than H arrives."""
    seconds = 10 if milestone else 3
    d.set_heartbeat(30)
    first, second = one_on_each(far)
    during = d.remotecall(time.sleep, first, seconds / 2)
    large = d.remotecall(bytes, first, 30_000_000)
    link("cut")
    asked = [d.remotecall(abs, first, -1), d.remotecall(d.remotecall_fetch, second, d.myid, first)]
    time.sleep(seconds)  # the fault itself
    assert {type(error_of(lambda f=f: f.wait(timeout=0))) for f in asked} == {TimeoutError}
    link("heal")
    assert during.fetch(timeout=30) is None
    assert [future.fetch(timeout=30) for future in asked] == [1, first]
    assert len(large.fetch(timeout=30)) == 30_000_000
    assert d.workers() == [first, second]
