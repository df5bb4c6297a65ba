"""A channel on a real cluster beside a simple model: random puts, takes, closes and deaths of clients."""

import gc
import os
import signal
from collections import deque
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import pydist as d
from support import wait_until

TIMEOUT = 0.0


def attempt(channel: d.RemoteChannel, method: str, *args: Any) -> Any:
    """Use a channel; return what came of it, or the name of the error."""
    try:
        value = getattr(channel, method)(*args)
    except TimeoutError:
        return "timed out"
    except d.ChannelClosedError:
        return "closed"
    return "done" if method in ("put", "wait", "close") else value


class Machine(RuleBasedStateMachine):
    """An owner, clients, and what the channel should be."""

    pids: list[int]

    def __init__(self) -> None:
        super().__init__()
        self.capacity = 3
        self.channel = d.RemoteChannel(lambda: d.Channel(3), self.pids[0])
        self.items: deque[int] = deque()
        self.open = True
        self.next = 0
        self.blocked: list[d.Future] = []

    clients = st.integers(0, 2)

    def on(self, client: int, method: str, *args: Any) -> Any:
        return d.remotecall_fetch(attempt, [1, *self.pids][client], self.channel, method, *args)

    @rule(client=clients)
    def put(self, client: int) -> None:
        item, self.next = self.next, self.next + 1
        if not self.open:
            expected = "closed"
        elif len(self.items) == self.capacity:
            expected = "timed out"
        else:
            expected = "done"
            self.items.append(item)
        assert self.on(client, "put", item, TIMEOUT if expected == "timed out" else 20) == expected

    def missing(self) -> str:
        return "timed out" if self.open else "closed"

    @rule(client=clients)
    def take(self, client: int) -> None:
        expected = self.items.popleft() if self.items else self.missing()
        assert self.on(client, "take", 20 if isinstance(expected, int) else TIMEOUT) == expected

    @rule(client=clients)
    def fetch(self, client: int) -> None:
        expected = self.items[0] if self.items else self.missing()
        assert self.on(client, "fetch", 20 if isinstance(expected, int) else TIMEOUT) == expected

    @rule(client=clients)
    def ask(self, client: int) -> None:
        assert self.on(client, "isready") is bool(self.items)
        assert self.on(client, "isopen") is self.open

    @precondition(lambda self: self.open)
    @rule(client=clients, number=st.integers(1, 3))
    def hand_over(self, client: int, number: int) -> None:
        """Takers that block get the items that come, each one."""
        wanted = [self.items.popleft() for _ in range(min(number, len(self.items)))]
        pid = [1, *self.pids][client]
        takes = [d.remotecall(attempt, pid, self.channel, "take", 20) for _ in range(number)]
        while len(wanted) < number:
            wanted.append(self.next)
            self.channel.put(self.next, 20)
            self.next += 1
        assert sorted(take.fetch(timeout=20) for take in takes) == wanted

    @rule(client=clients)
    def drop(self, client: int) -> None:
        """A process that lets go of the channel changes nothing."""
        d.remotecall_fetch(gc.collect, [1, *self.pids][client])

    @rule(client=clients)
    def close(self, client: int) -> None:
        if self.open and self.next % 4 == 0:
            self.open = False
            assert self.on(client, "close") == "done"

    @rule(number=st.integers(1, 3))
    def kill_a_client(self, number: int) -> None:
        """A client dies with takes blocked and items on their way: those are still there, in their order."""
        if self.next % 5:
            return
        (victim,) = d.addprocs(1)
        ospid = d.remotecall_fetch(os.getpid, victim)
        for _ in range(number):
            d.remotecall(d.RemoteChannel.take, victim, self.channel)
        taken = len(self.items) if self.open else number
        wait_until(lambda: d.stats(victim)["calls_running"] >= min(number, max(0, number - taken)))
        os.kill(ospid, signal.SIGSTOP)
        os.kill(ospid, signal.SIGKILL)
        wait_until(lambda: victim not in d.procs())
        d.rmprocs(victim)
        # Those that it had taken for good are gone; the rest is what the channel still has, in order.
        left = []
        while (item := self.on(1, "take", TIMEOUT)) not in ("timed out", "closed"):
            left.append(item)
        assert left == list(self.items)[len(self.items) - len(left) :]
        assert len(left) >= len(self.items) - number
        self.items.clear()

    @invariant()
    def one_reference_at_the_owner(self) -> None:
        assert len(self.items) <= self.capacity

    def teardown(self) -> None:
        del self.channel
        gc.collect()


@pytest.mark.timeout(900)
def test_a_channel_behaves_as_its_model(workers, milestone):
    before = [d.stats(pid)["refs_owned"] for pid in workers]
    Machine.pids = workers
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=1000 if milestone else 10,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    gc.collect()
    wait_until(lambda: [d.stats(pid)["refs_owned"] for pid in workers] <= before)
