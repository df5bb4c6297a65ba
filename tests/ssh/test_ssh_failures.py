"""Workers that ssh cannot start: the error has ssh's output, and nothing is left on either side."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

import pydist as d
from support import Script, executable, wait_until
from support_ssh import TOKEN


def clean(ssh):
    ssh.await_end()
    wait_until(lambda: not psutil.Process().children(recursive=True))
    assert d.procs() == [1]


def test_unknown_host(ssh):
    error = ssh.fail([("no-such-host.invalid", 2)])
    assert (error.host, error.status) == ("no-such-host.invalid", 255)
    assert "resolve hostname no-such-host.invalid" in error.output
    assert len(error.failures) == 2
    assert str(error).count("resolve hostname") == 2
    clean(ssh)


def test_wrong_key(ssh, tmp_path):
    key = tmp_path / "key"
    flags = ssh.servers.login_shell("exit 1")
    config = Path(flags[1]).read_text().replace("key-", "no-key-")
    (tmp_path / "config").write_text(config)
    error = ssh.fail(["pd1"], sshflags=["-F", str(tmp_path / "config"), "-o", f"IdentityFile={key}"])
    assert (error.host, error.status) == ("pd1", 255)
    assert "Permission denied (publickey" in error.output
    clean(ssh)


def test_unknown_host_key(ssh):
    error = ssh.fail(["pd1"], sshflags=["-o", "UserKnownHostsFile=/dev/null", *ssh.servers.flags])
    assert "Host key verification failed" in error.output
    clean(ssh)


def test_no_python_there(ssh):
    error = ssh.fail(["pd1"], exename="/no/such/python")
    assert (error.host, error.status) == ("pd1", 127)
    assert "/no/such/python" in error.output
    assert "/no/such/python" in str(error).splitlines()[0]
    clean(ssh)


def test_no_pydist_there(ssh, tmp_path):
    error = ssh.fail(["pd1"], exename=executable(tmp_path, 'exec "$PYTHON" -S -E "$@"'))
    assert (error.host, error.status) == ("pd1", 1)
    assert "No module named 'pydist'" in error.output
    assert "pydist has to be installed" in str(error)
    clean(ssh)


def test_no_folder_there(ssh):
    error = ssh.fail(["pd1"], dir="/no/such/folder")
    assert "/no/such/folder" in error.output
    clean(ssh)


def test_wrong_flags_for_python(ssh):
    error = ssh.fail([("pd1", 2)], exeflags="-Z")
    assert [(f.host, f.status) for f in error.failures] == [("pd1", 2)] * 2
    assert all("Unknown option: -Z" in f.output for f in error.failures)
    clean(ssh)


def test_wrong_cookie(ssh, monkeypatch):
    monkeypatch.setattr("pydist._session.Session.cookie_text", lambda self: "ab" * 32)
    error = ssh.fail(["pd1"])
    assert error.host == "pd1"
    assert "handshake" in str(error)
    monkeypatch.undo()
    clean(ssh)


def test_port_in_use(ssh):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = ssh.fail([f"pd1 127.0.0.1:{port}"])
    assert (error.host, error.status) == ("pd1", 1)
    assert f"127.0.0.1:{port}" in error.output
    assert "in use" in error.output
    clean(ssh)


def test_a_bind_address_that_the_host_has_not(ssh):
    error = ssh.fail(["pd1 no-such-name.invalid"])
    assert "no-such-name.invalid" in str(error)
    clean(ssh)


def test_a_login_shell_that_prints_and_does_not_end(ssh):
    flags = ssh.servers.login_shell("echo welcome; exec cat >/dev/null")
    begin = time.monotonic()
    error = ssh.fail(["pd1"], sshflags=flags, timeout=2)
    assert time.monotonic() - begin < 10
    assert "2 s" in str(error)
    assert "welcome" in error.output
    clean(ssh)


@pytest.mark.parametrize("talk", ["exec cat /dev/zero", "yes welcome"], ids=["endless line", "endless lines"])
def test_f04_a_host_that_talks_nonsense(ssh, talk):
    """F4: garbage without end: an error, memory bounded; nothing is left."""
    error = ssh.fail(["pd1"], sshflags=ssh.servers.login_shell(talk), timeout=20)
    assert "1000 lines" in str(error)
    clean(ssh)


def test_nonsense_in_the_place_of_frames(ssh):
    flags = ssh.servers.login_shell("echo pydist_host:1; seq 99; exec cat >/dev/null")
    assert "no frame" in str(ssh.fail(["pd1"], sshflags=flags))
    clean(ssh)


def test_no_ssh_here(ssh):
    error = ssh.fail(["pd1"], ssh="/no/such/ssh")
    assert "/no/such/ssh" in str(error)
    assert error.host == "pd1"
    clean(ssh)


def hanging(tmp_path, host):
    """Give an ssh that never gets to a host, as where its name is looked up and nobody answers."""
    return executable(tmp_path, f'case "$*" in *" {host} "*) sleep 60;; *) exec ssh "$@";; esac')


def test_f53_a_host_that_hangs_holds_up_no_other(ssh, tmp_path):
    """F53: slow or dead DNS for one host: it fails at the timeout, named; others are unaffected."""
    (before,) = d.addprocs(1)
    errors = []
    slow = {"ssh": hanging(tmp_path, "hangs"), "timeout": 10}
    thread = threading.Thread(target=lambda: errors.append(ssh.fail(["pd1", "hangs"], **slow)))
    thread.start()
    wait_until(lambda: len(d.procs()) == 3)
    assert d.pmap(abs, [-1, -2]) == [1, 2]
    assert thread.is_alive()
    thread.join()
    (error,) = errors
    assert len(error.started) == 1
    assert [(f.host, f.status) for f in error.failures] == [("hangs", None)]
    assert "hangs did not start workers within 10 s" in str(error)
    d.rmprocs(before)
    clean(ssh)


def test_one_bad_host_of_three(ssh):
    with pytest.raises(d.LaunchWorkerError) as caught:
        ssh.start(["pd1", "no-such-host.invalid", ("pd2", 2)])
    error = caught.value
    assert len(error.started) == 3
    assert [f.host for f in error.failures] == ["no-such-host.invalid"]
    assert [d.remotecall_fetch(d.myid, pid) for pid in error.started] == error.started
    assert d.workers() == error.started


def test_f03_one_of_a_hosts_workers_dies_at_its_start(ssh, tmp_path):
    """F3: an error with the status and what it printed; survivors are listed and usable."""
    once = tmp_path / "once"
    python = executable(
        tmp_path,
        f"""
        case "$*" in *serve*) if mkdir {once} 2>/dev/null; then echo dying >&2; kill -9 $$; fi;; esac
        exec "$PYTHON" "$@"
        """,
    )
    code = f"import sys; sys.executable = {python!r}"
    (tmp_path / "sitecustomize.py").write_text(code)
    env = {"PYTHONPATH": str(tmp_path)}
    with pytest.raises(d.LaunchWorkerError) as caught:
        ssh.start([("pd1", 3)], env=env)
    (failure,) = caught.value.failures
    assert (failure.host, failure.status) == ("pd1", -9)
    assert "dying" in failure.output
    assert [d.remotecall_fetch(d.myid, pid) for pid in caught.value.started] == caught.value.started
    assert len(caught.value.started) == 2


@pytest.mark.parametrize("params", [{"shell": "fish"}, {"max_parallel": 0}, {"env": {"a=b": "c"}}])
def test_values_that_make_no_sense(ssh, params):
    with pytest.raises(ValueError, match=str(next(iter(params)))):
        d.addprocs(["pd1"], **params)


@pytest.mark.parametrize("params", [{"sshflags": 5}, {"max_parallel": "many"}, {"no_such_keyword": 1}])
def test_values_of_the_wrong_type(ssh, params):
    with pytest.raises(TypeError, match=str(next(iter(params)))):
        d.addprocs(["pd1"], **params)


SCRIPT = """
    import os, sys, time
    import pydist as d
    flags, token = sys.argv[1:]
    params = {"sshflags": ["-F", flags], "env": {"VARIABLE": token}, "tunnel": bool(os.environ["TUNNEL"])}
    pids = d.addprocs([("pd1", 2)], **params)
    futures = [d.remotecall(time.sleep, pid, 60) for pid in pids]
    print("started", flush=True)
    time.sleep(60)
    """.replace("VARIABLE", TOKEN)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("tunnel", [False, True])
def test_f11_process_1_is_killed(ssh, number, tunnel):
    """F11: process 1 gets SIGKILL: the workers on other hosts are gone within seconds."""
    arguments = [ssh.servers.flags[1], ssh.token]
    with Script(SCRIPT, arguments=arguments, env={"TUNNEL": "1" if tunnel else ""}) as script:
        script.wait_for("started")
        assert len(ssh.remote()) == 3
        os.kill(script.pid, number)
        ssh.await_end(5)
        script.wait_gone(5)


def test_f36_ctrl_c_while_a_host_hangs(ssh, tmp_path):
    """F36: Ctrl-C in addprocs: workers that are up by then are ended, and so is what was to start others."""
    started = d.procs()

    def press():
        wait_until(lambda: len(d.procs()) > len(started), 20)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ssh.start(["pd1", "hangs"], ssh=hanging(tmp_path, "hangs"))
    thread.join()
    assert d.procs() == started
    clean(ssh)
