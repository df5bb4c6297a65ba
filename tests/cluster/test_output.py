"""The thread that passes on what workers print."""

import io
import os
import re

import pytest

from pydist import _output
from support import run_script, wait_until


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


def test_lines_of_workers_do_not_tear_the_bar_of_a_map():
    done = run_script("""
        import sys
        import pydist as d
        from tqdm import tqdm

        def bar(total):
            return tqdm(total=total, file=sys.stdout, ncols=60, mininterval=0)

        def speak(n):
            print("element", n, flush=True)

        d.addprocs(2)
        d.pmap(speak, range(20), batch_size=1, progress=bar)
        d.rmprocs(d.workers())
        """)
    assert (done.stderr, done.returncode) == ("", 0)
    pieces = re.split(r"[\r\n]", done.stdout)
    spoken = [piece for piece in pieces if "From worker" in piece]
    assert sorted(re.sub(r"^      From worker \d+:\t", "", piece) for piece in spoken) == sorted(
        f"element {n}" for n in range(20)
    )
    assert any("20/20" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("how", "printed"),
    [
        ("prefix", "      From worker 2:\tloaded\n"),
        ("plain", "loaded\n"),
        ("off", ""),
        ("", "      From worker 2:\tloaded\n"),
    ],
)
def test_output_is_shown_as_is_set(how, printed):
    done = run_script(f"""
        import os
        os.environ["PYDIST_OUTPUT"] = {how!r}
        import pydist as d

        def leave():
            print("farewell", flush=True)
            os._exit(3)

        d.addprocs(2)
        d.remotecall_fetch(print, 2, "loaded")
        d.rmprocs(2)
        os.environ["PYDIST_OUTPUT"] = "off"
        (pid,) = d.addprocs(1)
        try:
            d.remotecall_fetch(leave, pid)
        except d.ProcessExitedException as error:
            assert "farewell" in str(error), error
        """)
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)


def test_a_setting_of_the_output_that_makes_no_sense_is_named(d, monkeypatch):
    monkeypatch.setenv("PYDIST_OUTPUT", "loud")
    with pytest.raises(ValueError, match="PYDIST_OUTPUT must be prefix, plain or off, not 'loud'"):
        d.addprocs(1)
