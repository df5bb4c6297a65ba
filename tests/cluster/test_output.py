"""The thread that passes on what workers print."""

import io
import os

from pydist import _output
from support import wait_until


def test_drain_returns_once_all_that_was_printed_is_passed_on(d, workers):
    read, write = os.pipe()
    printed = io.StringIO()
    stream = _output.Stream(9, read, lambda: printed)
    launcher = _output.launcher()
    launcher.run(lambda: launcher.watch(stream))
    for i in range(300):
        os.write(write, f"line {i}\n".encode())
        launcher.drain()
        assert printed.getvalue().endswith(f"      From worker 9:\tline {i}\n")
    os.close(write)
    wait_until(stream.ended.is_set)
    assert len(printed.getvalue().splitlines()) == 300


def test_a_job_may_drain_streams_that_are_about_to_be_read(d, workers):
    launcher = _output.launcher()
    pipes = [os.pipe() for _ in range(4)]
    printed = io.StringIO()
    streams = [_output.Stream(9, read, lambda: printed) for read, _ in pipes]

    def watch_and_drain():
        for stream, (_, write) in zip(streams, pipes, strict=True):
            os.write(write, b"early\n")
            launcher.watch(stream)
        launcher._drain()

    launcher.run(watch_and_drain)
    assert printed.getvalue().count("early") == 4
    for _, write in pipes:
        os.write(write, b"late\n")
        os.close(write)
    for stream in streams:
        wait_until(stream.ended.is_set)
    assert printed.getvalue().count("late") == 4
