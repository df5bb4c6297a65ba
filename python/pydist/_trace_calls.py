"""What all processes have noted, put together: calls, by one clock."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from ._trace import ARRIVED, ASKED, ENDED, LEFT, REPLIED, SENT, STARTED, Noted

CHANNEL_OPERATIONS = {
    8: "put",
    9: "take",
    10: "fetch",
    11: "wait",
    12: "isready",
    13: "isopen",
    14: "close",
    16: "put",
    17: "put",
}
_ERROR, _CANCELLED = 1, 2

Bounds: TypeAlias = Mapping[int, list[tuple[int, int]]]
"""For each process pairs of nanoseconds between which its clock is ahead of that of process 1."""


@dataclasses.dataclass
class Call:
    """One call; times are nanoseconds since the start of the trace, None where they are not known.

    Attributes:
        caller: the process that made it.
        id: its number there.
        callee: the process that runs it.
        name: of the function; empty where the callee did not tell.
        elements: of a map, that it has; 0 where it is no batch of one.
        mode: "fetch", "future" or "do".
        sent: when it was about to be sent.
        arrived: when it had come.
        started: when the function was called.
        ended: when the value was there, and pickled.
        replied: when the answer had come back.
        status: "ended", "error", "cancelled", "lost" where the callee left before its end; "running",
            "queued" or "sent" where the trace ended before.
    """

    caller: int
    id: int
    callee: int = 0
    name: str = ""
    elements: int = 0
    mode: str = ""
    sent: int | None = None
    arrived: int | None = None
    started: int | None = None
    ended: int | None = None
    replied: int | None = None
    status: str = "sent"
    sender: int = 0
    """The thread that sent it."""
    runner: int = 0
    """The thread that started it."""


@dataclasses.dataclass
class ChannelUse:
    """A request to a channel: who made it, when, for what, and the process that has the channel."""

    pid: int
    at: int
    operation: str
    owner: int


@dataclasses.dataclass
class Together:
    """What all processes have noted."""

    calls: list[Call]
    channel_uses: list[ChannelUse]
    end: int
    """When the trace ended."""


def put_together(
    noted: Mapping[int, Noted], bounds: Bounds, own: set[int], span: tuple[int, int]
) -> Together:
    """Makes calls of what processes have noted.

    Parameters:
        noted: what they have noted.
        bounds: what is known of their clocks.
        own: the numbers of calls of process 1 that belong to the recording itself.
        span: when the trace began and ended, by the clock of process 1.
    """
    gathering = _Gathering(own)
    for pid, each in noted.items():
        gathering.add(pid, each)
    ahead = offsets(gathering.calls.values(), bounds, noted)
    calls = [call for call in gathering.calls.values() if not gathering.is_own(call)]
    for call in calls:
        _set_status(call, gathering.left, span[1])
        _align(call, ahead, span[0])
    calls.sort(key=lambda call: (_first_time(call), call.caller, call.id))
    uses = gathering.channel_uses
    for use in uses:
        use.at -= ahead.get(use.pid, 0) + span[0]
    return Together(calls, sorted(uses, key=lambda use: use.at), span[1] - span[0])


class _Gathering:
    """Calls, while the events of one process after another are added."""

    def __init__(self, own: set[int]) -> None:
        self.calls: dict[tuple[int, int], Call] = {}
        self.channel_uses: list[ChannelUse] = []
        self.left: dict[int, int] = {}
        self._own = own

    def add(self, pid: int, noted: Noted) -> None:
        for kind, detail, thread, peer, number, at in noted.rows():
            if kind == SENT:
                call = self._call(pid, number)
                call.callee, call.sent, call.sender = peer, at, thread
                call.mode = ("fetch", "future", "do")[detail]
            elif kind == REPLIED:
                if (pid, number) in self.calls:
                    self._end(self._call(pid, number), detail).replied = at
            elif kind == ASKED:
                if detail in CHANNEL_OPERATIONS:
                    self.channel_uses.append(ChannelUse(pid, at, CHANNEL_OPERATIONS[detail], peer))
            elif kind == LEFT:
                self.left[peer] = min(at, self.left.get(peer, at))
            else:
                self._note_callee(kind, self._call(peer, number), pid, thread, detail, at)
        for caller, number, name, elements in noted.names:
            if (call_of := self.calls.get((caller, number))) is not None:
                call_of.name, call_of.elements = name, elements
        for number in noted.failed:
            if (failed := self.calls.get((pid, number))) is not None:
                failed.status = "error"

    def _call(self, caller: int, number: int) -> Call:
        call = self.calls.get((caller, number))
        if call is None:
            call = self.calls[caller, number] = Call(caller, number)
        return call

    def is_own(self, call: Call) -> bool:
        """Whether it belongs to the recording itself, or came before that began."""
        return (call.caller == 1 and call.id in self._own) or (call.sent is None and call.arrived is None)

    def _note_callee(self, kind: int, call: Call, pid: int, thread: int, detail: int, at: int) -> None:
        call.callee = pid
        if kind == ARRIVED:
            call.arrived = at
        elif kind == STARTED:
            call.started, call.runner = at, thread
        elif kind == ENDED:
            self._end(call, detail).ended = at

    @staticmethod
    def _end(call: Call, status: int) -> Call:
        if call.status == "sent" or status == _CANCELLED:
            call.status = {_ERROR: "error", _CANCELLED: "cancelled"}.get(status, "ended")
        return call


def _set_status(call: Call, left: Mapping[int, int], end: int) -> None:
    if call.status != "sent" or call.ended is not None:
        return
    if call.callee in left:
        call.status = "lost"
    elif call.started is not None:
        call.status = "running"
    elif call.arrived is not None:
        call.status = "queued"


_TIMES = (("caller", "sent"), ("callee", "arrived"), ("callee", "started"), ("callee", "ended"))


def _align(call: Call, ahead: Mapping[int, int], start: int) -> None:
    for side, name in (*_TIMES, ("caller", "replied")):
        at = getattr(call, name)
        if at is not None:
            setattr(call, name, at - ahead.get(getattr(call, side), 0) - start)


def _first_time(call: Call) -> int:
    return call.sent if call.sent is not None else call.arrived if call.arrived is not None else 0


def offsets(calls: Iterable[Call], bounds: Bounds, pids: Iterable[int]) -> dict[int, int]:
    """Finds how many nanoseconds the clock of each process is ahead of that of process 1.

    Every message between the two bounds that from one side, as it cannot have come before it was sent; so do
    the exchanges made for it.

    >>> calls = [Call(1, 1, callee=2, sent=100, arrived=1_150, ended=1_180, replied=200)]
    >>> offsets(calls, {}, [1, 2])
    {1: 0, 2: 1015}
    """
    low: dict[int, list[int]] = {pid: [pair[0] for pair in pairs] for pid, pairs in bounds.items()}
    high: dict[int, list[int]] = {pid: [pair[1] for pair in pairs] for pid, pairs in bounds.items()}
    for call in calls:
        for pid, lows, highs in ((call.callee, low, high), (call.caller, high, low)):
            if pid == 1 or 1 not in (call.caller, call.callee):
                continue
            sign = 1 if pid == call.callee else -1
            if call.arrived is not None and call.sent is not None:
                highs.setdefault(pid, []).append(sign * (call.arrived - call.sent))
            if call.ended is not None and call.replied is not None:
                lows.setdefault(pid, []).append(sign * (call.ended - call.replied))
    return {pid: 0 if pid == 1 else _within(low.get(pid, []), high.get(pid, [])) for pid in pids}


def _within(low: list[int], high: list[int]) -> int:
    """Chooses between the greatest lower and the least upper bound; 0 where both seem to have one clock."""
    if not low or not high:
        return 0 if not low and not high else max(low) if low else min(high)
    lowest, highest = max(low), min(high)
    return 0 if lowest <= 0 <= highest else (lowest + highest) // 2
