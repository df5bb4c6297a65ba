"""Which workers may call each other, and which are connected."""

import pytest

import pydist as d
from support import wait_until
from support_managers import DialledManager, ask


def connections(pid: int) -> int:
    return d.stats(pid)["connections"]


def test_master_worker_with_workers_that_are_dialled():
    one, two = d.addprocs(DialledManager({}, {}), topology="master_worker")
    with pytest.raises(d.NotConnectedError, match=rf"\b{one}\b.*\b{two}\b"):
        ask(one, two)
    assert ask(one, 1) == 1
    assert ask(1, two) == two
    assert connections(one) == 1
    d.rmprocs(one, two)


def test_custom_connects_those_that_are_named():
    manager = DialledManager(
        {"ident": "a", "connect_idents": ["b"]},
        {"ident": "b"},
        {"ident": ("c", 1), "connect_idents": ["b"]},
        {},
    )
    a, b, c, alone = d.addprocs(manager, topology="custom")
    for one, other in [(a, b), (b, c)]:
        assert ask(one, other) == other
        assert ask(other, one) == one
    for one, other in [(a, c), (a, alone), (b, alone), (c, alone)]:
        for here, there in [(one, other), (other, one)]:
            with pytest.raises(d.NotConnectedError) as caught:
                ask(here, there)
            assert str(here) in str(caught.value)
            assert str(there) in str(caught.value)
            assert isinstance(caught.value, ConnectionError)
    assert [ask(pid, 1) for pid in (a, b, c, alone)] == [1] * 4

    (later,) = d.addprocs(DialledManager({"ident": "later", "connect_idents": ["a"]}), topology="custom")
    assert ask(later, a) == a
    assert ask(a, later) == later
    with pytest.raises(d.NotConnectedError):
        ask(later, b)
    d.rmprocs(a, b, c, alone, later)


def test_custom_without_names_is_as_master_worker(fresh_workers):
    one, two = fresh_workers(2, topology="custom")
    with pytest.raises(d.NotConnectedError):
        ask(one, two)
    assert ask(one, 1) == 1


def test_a_call_that_is_not_connected_leaves_nothing_behind(fresh_workers):
    one, two = fresh_workers(2, topology="master_worker")
    before = d.stats(one)
    for _ in range(20):
        with pytest.raises(d.NotConnectedError):
            d.remotecall_fetch(d.remotecall_fetch, one, d.myid, two)
    wait_until(
        lambda: all(
            d.stats(one)[name] == before[name] for name in ("refs_held", "refs_owned", "calls_outstanding")
        )
    )


def test_lazy_connects_workers_when_they_call(fresh_workers):
    pids = fresh_workers(3)
    assert [connections(pid) for pid in pids] == [1, 1, 1]
    assert ask(pids[0], pids[1]) == pids[1]
    assert [connections(pid) for pid in pids] == [2, 2, 1]


@pytest.mark.parametrize("dialled", [False, True])
def test_eager_connects_them_when_they_come(dialled):
    def add(n: int) -> list[int]:
        return d.addprocs(DialledManager(*[{}] * n) if dialled else n, lazy=False)

    pids = add(3)
    wait_until(lambda: [connections(pid) for pid in pids] == [3, 3, 3])
    pids += add(1)
    wait_until(lambda: [connections(pid) for pid in pids] == [4, 4, 4, 4])
    d.rmprocs(pids)


def test_eager_in_a_custom_topology_connects_just_those_that_are_named():
    manager = DialledManager({"ident": 1}, {"ident": 2, "connect_idents": [1]}, {"ident": 3})
    pids = d.addprocs(manager, topology="custom", lazy=False)
    wait_until(lambda: [connections(pid) for pid in pids] == [2, 2, 1])
    d.rmprocs(pids)
