"""How long a process may be silent before it is given up."""

from __future__ import annotations

from . import _config, _core, _session


def set_heartbeat(timeout: float | None, interval: float | None = None) -> None:
    """Sets after how long a process that is not heard any more is given up, in the whole cluster from now on.

    The cores send the heartbeats, so that a process whose Python is busy, or waits in a debugger of
    Python, is heard. Once a worker was silent for `timeout`, and for at most an interval more, whatever waits
    for it raises `ProcessExitedException`, and its manager puts an end to it. A worker that is reached over a
    network ends by itself once it has not heard process 1 for four times as long.

    Parameters:
        timeout: in seconds, more than twice the interval; None: nobody is given up for being silent. Where it
            was never set, the environment variable PYDIST_HEARTBEAT of process 1 (0 stands for None), or 30.
        interval: seconds after which a process that has sent nothing sends a heartbeat; by default a sixth of
            the timeout. Where it was never set, PYDIST_HEARTBEAT_INTERVAL counts first.

    Raises:
        RuntimeError: this is not process 1.
        ValueError: a time that is not positive, or an interval that is not less than half of the timeout.

    >>> import pydist as d
    >>> d.set_heartbeat(60)
    >>> d.set_heartbeat(30, interval=5)
    """
    if not _session.is_head():
        raise RuntimeError("Only process 1 can set the heartbeat")
    checked = _config.checked_heartbeat(timeout, interval)
    _session.ensure_started()
    _core.set_heartbeat(*checked)
