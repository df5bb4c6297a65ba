"""A worker that hears of another one before process 1 has told it: it asks, and goes on when it knows."""

import sys
from collections.abc import Iterator

import pytest

import pydist as d
from support import wait_until
from support_network import Relay, dial_in


def ask(pid: int, f: object, *args: object) -> object:
    return d.remotecall_fetch(f, pid, *args)


def size(future: d.Future) -> int:
    return len(future.fetch())


def put_and_take(pid: int) -> object:
    channel = d.RemoteChannel(pid=pid)
    channel.put("item")
    return channel.take()


def outcome(f: object, *args: object) -> object:
    try:
        return f(*args)
    except Exception as error:
        return type(error), str(error)


@pytest.fixture
def late_news(monkeypatch) -> Iterator[tuple[int, int, int, Relay]]:
    """A local worker, one that no word of process 1 reaches for now, and one that has come meanwhile."""
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    with dial_in() as dialled, Relay(dialled.manager.address) as relay:
        late = dialled.start(relay.address)
        (local,) = d.addprocs(1, lazy=True)
        assert d.remotecall_fetch(ask, local, late, d.myid) == late
        relay.cut()
        (new,) = d.addprocs(1, lazy=True)
        try:
            yield local, late, new, relay
        finally:
            relay.heal()
            d.rmprocs(local, new)


def outstanding(local: int, late: int) -> int:
    """Have a worker tell how many answers another one waits for."""
    return d.remotecall_fetch(lambda: d.stats(late)["calls_outstanding"], local)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (lambda new: (ask, new, d.myid), lambda new: new),
        (lambda new: (put_and_take, new), lambda new: "item"),
        (lambda new: (size, d.remotecall(bytes, new, 100_000)), lambda new: 100_000),
    ],
    ids=["call", "channel", "future"],
)
def test_what_names_a_worker_that_is_not_known_yet_waits_for_word_of_it(late_news, asked, expected):
    local, late, new, relay = late_news
    found = d.remotecall(ask, local, late, *asked(new))
    wait_until(lambda: outstanding(local, late), what="a question to process 1")
    relay.heal()
    assert found.fetch(timeout=20) == expected(new)


def test_a_worker_that_never_was_is_none(late_news):
    local, late, _, relay = late_news
    found = d.remotecall(ask, local, late, outcome, ask, 999_999_999, d.myid)
    wait_until(lambda: outstanding(local, late), what="a question to process 1")
    relay.heal()
    assert found.fetch(timeout=20) == (ValueError, "there is no process 999999999 in this cluster")


def test_who_came_later_hears_that_a_worker_has_gone(workers):
    (gone,) = d.addprocs(1)
    d.rmprocs(gone)
    (new,) = d.addprocs(1)
    try:
        for pid in [workers[0], new]:
            kind, text = d.remotecall_fetch(outcome, pid, ask, gone, d.myid)
            assert kind is d.ProcessExitedException
            assert f"{gone}" in text
    finally:
        d.rmprocs(new)
