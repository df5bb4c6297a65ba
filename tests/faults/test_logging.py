"""What is logged, and where it goes."""

import re

import pytest
from test_security import assert_absent

from pydist import _config
from support import Script, run_script

CALLS = """
    import sys
    import pydist as d

    (pid,) = d.addprocs(1)
    print(d.cluster_cookie().hex(), flush=True)
    assert d.remotecall_fetch(pow, pid, 2, 10) == 1024
    assert d.remotecall_fetch(lambda secret: len(secret), pid, "what is in a call") == 17
    d.rmprocs(pid)
    """


def lines(text, *words):
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_debug_shows_a_handshake_and_a_call():
    done = run_script(CALLS, env={"PYDIST_LOG": "debug"})
    assert done.returncode == 0
    here = "\n".join(line for line in done.stderr.splitlines() if "From worker" not in line)
    there = "\n".join(line for line in done.stderr.splitlines() if "From worker 2:" in line)
    first = lines(here, "pydist.core.handshake")[0]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \[1\] DEBUG ", first)
    for step in ("AwaitProof", "AwaitInfo", "Done", "process 2 has proved that it knows the cookie"):
        assert lines(here, "[1] DEBUG pydist.core.handshake: connection ", step), step
    assert lines(there, "[2] DEBUG pydist.core.handshake: ", "process 1 has proved")
    assert lines(here, "[1] DEBUG pydist.calls: calls builtins.pow on process 2")
    assert lines(here, "[1] DEBUG pydist.calls: calls __main__.<lambda> on process 2")
    assert lines(here, "[1] DEBUG pydist.core.calls: call 1 to process 2 is sent")
    assert lines(there, "[2] DEBUG pydist.core.calls: call 1 of process 1 has ended: Value")
    assert lines(here, "pydist.core.members: process 2 has left")
    assert not lines(here, "TRACE")


def test_no_secret_is_in_the_log():
    """S1: neither the cookie nor what is in calls, at the level that tells the most."""
    done = run_script(CALLS, env={"PYDIST_LOG": "trace"})
    cookie = bytes.fromhex(done.stdout.split()[0])
    assert lines(done.stderr, "TRACE pydist.core.messages: Ready from process 2")
    assert lines(done.stderr, "[2] TRACE pydist.core.messages: Call from process 1")
    assert_absent(cookie, done.stderr, "the log")
    assert "what is in a call" not in done.stderr


def test_nothing_is_printed_unless_asked_for():
    for setting in ("", "error"):
        done = run_script(CALLS, env={"PYDIST_LOG": setting})
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 1


def test_parts_have_levels_of_their_own():
    done = run_script(CALLS, env={"PYDIST_LOG": "pydist.handshake=debug,pydist.core.members=info"})
    assert lines(done.stderr, "pydist.core.handshake: connection")
    assert len(lines(done.stderr, "DEBUG")) == len(lines(done.stderr, "pydist.core.handshake"))


@pytest.mark.parametrize("setting", ["loud", "pydist.handshake", "asyncio=debug", "debug,pydist.calls=7"])
def test_a_setting_that_means_nothing_is_named(setting, monkeypatch):
    monkeypatch.setenv("PYDIST_LOG", setting)
    with pytest.raises(ValueError, match="the environment variable PYDIST_LOG must be a level") as caught:
        _config.log_levels()
    assert repr(setting) in str(caught.value)


def test_settings_that_mean_something(monkeypatch):
    monkeypatch.setenv("PYDIST_LOG", " Warning, pydist.calls = trace,pydist.core.members=off,")
    assert _config.log_levels() == {
        "pydist": 30,
        "pydist.calls": 5,
        "pydist.core.calls": 5,
        "pydist.core.members": 60,
    }
    monkeypatch.delenv("PYDIST_LOG")
    assert _config.log_levels() == {}


def test_a_start_with_a_setting_that_means_nothing_fails():
    done = run_script("import pydist as d; d.addprocs(1)", env={"PYDIST_LOG": "loud"})
    assert done.returncode == 1
    assert done.stderr.endswith("separated by commas, not 'loud'\n")


def test_handlers_of_the_program_get_what_they_ask_for():
    done = run_script(
        """
        import logging, socket, time
        import pydist as d

        logging.basicConfig(filename="log", level="INFO", format="%(name)s %(levelname)s %(message)s")
        with d.ElasticManager() as manager:
            d.addprocs(manager)
            host, port = manager.address.split(":")
            with socket.create_connection((host, int(port))) as s:
                s.sendall(b"GET / HTTP/1.1")
                peer = "{}:{}".format(*s.getsockname())
                assert s.recv(1) == b""
                said = f"refused a connection from {peer}: the peer is not a pydist process"
                end = time.monotonic() + 10
                while f"pydist.core.handshake INFO {said}" not in open("log").read():
                    assert time.monotonic() < end, open("log").read()
        """
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_cannot_be_taken_in_time_is_counted():
    """A handler that is stuck keeps nobody waiting but the thread that hands events over to it."""
    done = run_script(
        """
        import logging, threading
        import pydist as d

        go_on = threading.Event()

        class Stuck(logging.Handler):
            def emit(self, record):
                go_on.wait()
                if "faster than" in record.getMessage():
                    print(record.getMessage(), flush=True)
                    told.set()

        told = threading.Event()
        logging.getLogger("pydist").addHandler(Stuck())
        logging.getLogger("pydist").propagate = False
        (pid,) = d.addprocs(1)
        for i in range(5000):
            assert d.remotecall_fetch(abs, pid, -i) == i
        go_on.set()
        assert told.wait(20)
        d.rmprocs(pid)
        """,
        env={"PYDIST_LOG": "pydist.messages=trace"},
    )
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()[:1]
    assert int(line.split()[0]) >= 500
    assert "events came faster than the log could take them" in line


def test_a_forked_child_logs_and_ends():
    done = run_script(
        """
        import logging, os
        import pydist as d

        (pid,) = d.addprocs(1)
        future = d.remotecall(abs, pid, -7)
        if (child := os.fork()) == 0:
            del future
            logging.getLogger("pydist").info("of the child")
            raise SystemExit(3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), future.fetch())
        """,
        env={"PYDIST_LOG": "debug"},
    )
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "3 7")
    assert lines(done.stderr, "[-] INFO pydist: of the child")
    assert lines(done.stderr, "[1] DEBUG pydist.core.members: process 2 has left")


def test_the_end_of_a_process_waits_neither_for_events_nor_for_a_handler():
    """What has happened is told at the end; a handler that is stuck does not keep the process."""
    done = run_script(
        CALLS.replace("d.rmprocs(pid)", "d.remote_do(abs, pid, 1)"), env={"PYDIST_LOG": "debug"}
    )
    assert done.returncode == 0
    assert lines(done.stderr, "process 2 has left")
    text = """
        import logging, threading
        import pydist as d

        class Stuck(logging.Handler):
            def handle(self, record):  # without its lock, which the end of `logging` waits for
                if threading.current_thread().name == "pydist-log":
                    print("stuck", flush=True)
                    threading.Event().wait()

        logging.getLogger("pydist").addHandler(Stuck())
        d.addprocs(1)
        """
    with Script(text, env={"PYDIST_LOG": "pydist.core.handshake=debug"}) as script:
        script.wait_for("stuck")
        assert script.finish(20).returncode == 0
        script.wait_gone(5)
