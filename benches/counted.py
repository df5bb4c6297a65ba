"""What `benches.instructions` runs under callgrind: `python -m benches.counted PYTHON`.

A call of `getppid` ends what is counted together: behind each kind one goes to the worker, and one is made
here.
"""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

import pydist

REPEATS = 3
OUTSTANDING = 250


@dataclass(frozen=True)
class Kind:
    """So many calls, made by `run`."""

    calls: int
    run: Callable[[int, pydist.RemoteChannel, int], object]


def round_trips(worker: int, channel: pydist.RemoteChannel, calls: int) -> None:
    for _ in repeat(None, calls):
        pydist.remotecall_fetch(abs, worker, -3)


def futures(worker: int, channel: pydist.RemoteChannel, calls: int) -> None:
    for _ in repeat(None, calls // OUTSTANDING):
        for future in [pydist.remotecall(abs, worker, -3) for _ in repeat(None, OUTSTANDING)]:
            future.fetch()


def without_result(worker: int, channel: pydist.RemoteChannel, calls: int) -> None:
    for _ in repeat(None, calls - 1):
        pydist.remote_do(abs, worker, -3)
    pydist.remotecall_fetch(abs, worker, -3)


def elements(worker: int, channel: pydist.RemoteChannel, calls: int) -> None:
    pydist.pmap(abs, range(calls), batch_size=1)


def puts(worker: int, channel: pydist.RemoteChannel, calls: int) -> None:
    for item in range(calls):
        channel.put(item)


def takes(worker: int, channel: pydist.RemoteChannel, calls: int) -> None:
    for _ in repeat(None, calls):
        channel.take()


KINDS = {
    "round trip": Kind(500, round_trips),
    "`remotecall` and `fetch`": Kind(500, futures),
    "`remote_do`": Kind(500, without_result),
    "`pmap` element": Kind(500, elements),
    "channel `put`": Kind(250, puts),
    "channel `take`": Kind(250, takes),
}


def main() -> None:
    (worker,) = pydist.addprocs(1, exename=sys.argv[1], timeout=120)
    channel = pydist.RemoteChannel(lambda: pydist.Channel(math.inf), worker)
    for repetition in range(REPEATS + 1):
        for kind in KINDS.values():
            kind.run(worker, channel, kind.calls)
            # The first repetition warms up, but its last marks begin what is counted.
            if repetition > 0 or kind is list(KINDS.values())[-1]:
                pydist.remotecall_fetch(os.getppid, worker)
                os.getppid()
    pydist.rmprocs(worker)


if __name__ == "__main__":
    main()
