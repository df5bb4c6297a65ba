"""What the threads of a worker print at once: whole lines in process 1's output."""

from __future__ import annotations

import re

from support import run_script

MANY = """
    import threading
    import pydist as d

    def chatter(name):
        for n in range(200):
            print(name, n, "x" * 50, "end")

    def threads():
        several = [threading.Thread(target=chatter, args=(f"thread{i}",)) for i in range(4)]
        for thread in several:
            thread.start()
        for thread in several:
            thread.join()

    with d.cluster(1) as (pid,):
        calls = [d.remotecall(chatter, pid, f"call{i}") for i in range(4)]
        d.remotecall_fetch(threads, pid)
        for call in calls:
            call.fetch()
"""


def test_lines_of_several_threads_stay_whole():
    done = run_script(MANY)
    assert (done.returncode, done.stderr) == (0, "")
    whole = re.compile(r"      From worker 2:\t(?:call|thread)\d \d+ x{50} end")
    lines = done.stdout.splitlines()
    assert [line for line in lines if not whole.fullmatch(line)] == []
    assert len(set(lines)) == len(lines) == 1600


def test_a_line_that_was_begun_ends_with_its_call_or_before_another():
    done = run_script("""
        import threading
        import pydist as d

        def begin(text, flush):
            print(text, end="", flush=flush)

        def beside():
            print("half", end="", flush=True)
            other = threading.Thread(target=print, args=("other",))
            other.start()
            other.join()
            print("rest")

        with d.cluster(1) as (pid,):
            d.remotecall_fetch(begin, pid, "one", False)
            d.remotecall_fetch(begin, pid, "two", True)
            d.remotecall_fetch(beside, pid)
            d.remotecall_fetch(print, pid, "three", "four", sep="\\n", end="\\n\\n")
            d.remotecall_fetch(print, pid, "x" * 20_000)
        """)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.removeprefix("      From worker 2:\t") for line in done.stdout.splitlines()]
    assert lines == ["one", "two", "half", "other", "rest", "three", "four", "", "x" * 20_000]


def test_what_another_thread_has_begun_comes_at_the_end_of_the_worker():
    done = run_script("""
        import threading
        import pydist as d

        def begin():
            thread = threading.Thread(target=print, args=("no newline",), kwargs={"end": ""})
            thread.start()
            thread.join()

        with d.cluster(1) as (pid,):
            d.remotecall_fetch(begin, pid)
        """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "      From worker 2:\tno newline\n", "")
