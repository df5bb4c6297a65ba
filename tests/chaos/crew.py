"""The workers under chaos: who they are, who is doomed, and how they are replaced."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import pydist as d
import tally
from support_network import DialIn, Relay

H, INTERVAL = 1.5, 0.25
EXITS_WITHIN = 4 * H + 10
"""Seconds in which a worker that dialled in and is lost has to exit; the machine may be busy."""


@dataclass
class Member:
    """A worker that answers calls."""

    pid: int
    ospid: int
    relay: Relay | None = None
    """What its connection to process 1 passes through; None for a local worker."""


class Crew:
    """So many local workers, and so many that dial in over links that can be cut."""

    def __init__(self, local: int, far: int, dial_in: DialIn) -> None:
        self._wanted = {False: local, True: far}
        self._dial_in = dial_in
        self._lock = threading.Lock()
        self._members: dict[int, Member] = {}
        self._dying: list[tuple[Member, float]] = []
        self._doomed: dict[int, tuple[str, float]] = {}
        self._vacant: dict[bool, list[float]] = {False: [], True: []}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crew")
        self.failure: BaseException | None = None
        self.replaced = 0

    def start(self) -> None:
        self._fill()
        self.replaced = 0
        self._thread.start()

    def stop(self) -> None:
        """Replace nobody any more."""
        self._ended.set()
        self._thread.join()

    def members(self) -> list[Member]:
        """Return those that are up and not doomed."""
        with self._lock:
            return [member for pid, member in self._members.items() if pid not in self._doomed]

    def pids(self) -> list[int]:
        return [member.pid for member in self.members()]

    def complete(self) -> bool:
        return len(self.members()) >= sum(self._wanted.values())

    def doom(self, pid: int, why: str) -> None:
        """Note that a worker may be lost from now on."""
        with self._lock:
            self._doomed[pid] = why, time.monotonic()

    def pardon(self, pid: int) -> None:
        """Note that a worker has survived."""
        with self._lock:
            del self._doomed[pid]

    def why(self, pid: int) -> str | None:
        """Return why a worker may be lost; None where it may not."""
        return self._doomed[pid][0] if pid in self._doomed else None

    def _run(self) -> None:
        while not self._ended.wait(0.02):
            try:
                self._fill()
            except BaseException as error:
                self.failure = error
                return

    def _fill(self) -> None:
        """Replace those that are gone; note how long it took from the fault on."""
        here = set(d.procs())
        with self._lock:
            gone = [self._members.pop(pid) for pid in list(self._members) if pid not in here]
        self._dying += [(m, time.monotonic() + EXITS_WITHIN) for m in gone if m.relay is not None]
        self._bury()
        for member in gone:
            self._vacant[member.relay is not None].append(self._doomed[member.pid][1])
        for far, wanted in self._wanted.items():
            for _ in range(wanted - sum((m.relay is not None) == far for m in self.members())):
                self._add(self._far() if far else Member(d.addprocs(1)[0], 0))
                if self._vacant[far]:
                    tally.recovery(time.monotonic() - self._vacant[far].pop(0))

    def _add(self, member: Member) -> None:
        member.ospid = d.remotecall(os.getpid, member.pid).fetch(timeout=30)
        with self._lock:
            self._members[member.pid] = member
        self.replaced += 1

    def _far(self) -> Member:
        relay = Relay(self._dial_in.manager.address)
        relay.__enter__()
        try:
            return Member(self._dial_in.start(relay.address), 0, relay)
        except BaseException:
            relay.__exit__(None, None, None)
            raise

    def _bury(self) -> None:
        """See that the processes of lost workers that nobody kills end by themselves."""
        for member, latest in list(self._dying):
            process = self._dial_in.processes[member.pid]
            member.relay.heal()
            if process.poll() is None:
                if time.monotonic() > latest:
                    raise AssertionError(f"lost worker {member.pid} ({self.why(member.pid)}) does not exit")
                continue
            member.relay.__exit__(None, None, None)
            del self._dial_in.processes[member.pid]
            self._dying.remove((member, latest))

    def close(self) -> None:
        """End those that dial in, and their links."""
        self._dial_in.end()
        for member in [*self._members.values(), *(member for member, _ in self._dying)]:
            if member.relay is not None:
                member.relay.__exit__(None, None, None)
