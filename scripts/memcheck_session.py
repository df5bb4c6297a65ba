"""A session that goes through the parts of the core with `unsafe`: `scripts/sanitize.sh python` runs it."""

import copy
import os

import numpy as np

import pydist as d


def fork_and_wait() -> int:
    """Fork a child, which may do nothing with the cluster, and return its status."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main() -> None:
    """Call, share, put, take, fail and leave."""
    one, two = d.addprocs(2, timeout=600)
    d.set_heartbeat(None)
    for x in (1, -2.5, "text", b"bytes", None, [1, (2, 3)], {"a": {4}}):
        assert d.remotecall_fetch(copy.copy, one, x) == x
    large = np.arange(300_000.0)
    for _ in range(3):
        assert d.remotecall_fetch(np.sum, one, large) == large.sum()
        assert d.remotecall_fetch(np.arange, two, 200_000)[-1] == 199_999
    channel = d.RemoteChannel(lambda: d.Channel(32), two)
    for n in range(20):
        channel.put(n)
    assert [d.remotecall_fetch(channel.take, pid) for pid in [one, two] * 10] == list(range(20))
    assert d.pmap(abs, range(-100, 0)) == list(range(100, 0, -1))
    failed = d.remotecall(int, one, "x")
    d.wait(failed)
    assert d.remotecall_fetch(fork_and_wait, one) == 0
    assert d.stacks()
    d.rmprocs([one, two])
    print("the session has ended well")


if __name__ == "__main__":
    main()
