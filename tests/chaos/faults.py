"""Faults at random, from a seed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter

from crew import INTERVAL, Crew, H, Member

import pydist as d
from support import wait_until

LEFT = 3
"""No fault while fewer workers than these are well: a map without workers would be right to end."""


class Injector:
    """Injects one fault after the other, in a thread of its own."""

    def __init__(self, crew: Crew, seed: int, pause: float) -> None:
        self._crew = crew
        self._random = random.Random(f"faults {seed}")
        self._pause = pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults")
        self._interrupts: list[tuple[float, float]] = []
        self.done: Counter[str] = Counter()
        self.log: list[str] = []
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def interrupted_since(self, begin: float) -> bool:
        """Say whether calls that began at a time may have been interrupted."""
        return any(end >= begin for _, end in self._interrupts)

    def _run(self) -> None:
        try:
            while not self._ended.wait(self._random.uniform(0.5, 1.5) * self._pause):
                self._one()
        except BaseException as error:
            self.failure = error

    def _one(self) -> None:
        wait_until(
            lambda: len(self._crew.members()) >= LEFT or self._crew.failure, 30, "workers that are well"
        )
        if self._crew.failure:
            return
        members = sorted(self._crew.members(), key=lambda member: member.pid)
        kinds = [self._kill] * 12 + [self._stop] * 4 + [self._cut, self._interrupt] + [self._remove] * 2
        kind = self._random.choice(kinds)
        if kind == self._cut:
            members = [member for member in members if member.relay is not None]
        if members:
            member = self._random.choice(members)
            self.log.append(f"{time.monotonic():.3f} {kind.__name__[1:]} {member.pid}")
            kind(member)
            self.done[kind.__name__[1:]] += 1

    def _kill(self, member: Member) -> None:
        self._crew.doom(member.pid, "SIGKILL")
        os.kill(member.ospid, signal.SIGKILL)

    def _stop(self, member: Member) -> None:
        self._silence(
            member,
            lambda: os.kill(member.ospid, signal.SIGSTOP),
            lambda: os.kill(member.ospid, signal.SIGCONT),
        )

    def _cut(self, member: Member) -> None:
        self._silence(member, member.relay.cut, member.relay.heal)

    def _silence(self, member: Member, begin, end) -> None:
        """Silence a worker: briefly, for about as long as it may be silent, or until it is lost."""
        pid, seconds = member.pid, self._random.choice([0.1, 0.3, 0.6, 0.9, 1.2, 10, 10, 10]) * H
        self._crew.doom(pid, "silence")
        started = time.monotonic()
        begin()
        try:
            while time.monotonic() < started + seconds and pid in d.procs():
                time.sleep(0.005)
        finally:
            took = time.monotonic() - started
            try:
                end()
            except ProcessLookupError:  # its manager has killed it
                pass
        self.log.append(f"    for {took:.3f} s")
        if seconds >= 10 * H:
            assert pid not in d.procs(), f"worker {pid} was silent for {took:.2f} s and is not lost"
            assert took > 0.9 * H, f"worker {pid} was lost after {took:.2f} s of silence"
        elif time.monotonic() - started < 0.7 * H and pid in d.procs():
            self._crew.pardon(pid)
        elif pid in d.procs():
            # It may be lost or not; nobody would know which errors are right, so that it goes.
            d.rmprocs(pid)

    def _interrupt(self, member: Member) -> None:
        begin = time.monotonic()
        d.interrupt(member.pid)
        self._interrupts.append((begin, time.monotonic() + H + INTERVAL))

    def _remove(self, member: Member) -> None:
        self._crew.doom(member.pid, "rmprocs")
        begin = time.monotonic()
        d.rmprocs(member.pid)
        assert time.monotonic() - begin < 15
        if self._random.random() < 0.5:
            d.rmprocs(member.pid)
