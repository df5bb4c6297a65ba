"""`doctor`: what it finds here and elsewhere, and what it says should be done."""

import getpass
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import threading

import pytest

import pydist as d
from pydist import _doctor, _doctor_probe
from support import wait_until

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def checks_of(report):
    return {check.name: check for check in report.checks}


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


@pytest.fixture
def ssh_port():
    """Give a port that greets as an ssh server does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)

        def greet():
            try:
                while True:
                    connection, _ = server.accept()
                    connection.sendall(b"SSH-2.0-Test\r\n")
                    connection.close()
            except OSError:
                return

        thread = threading.Thread(target=greet)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


@pytest.fixture
def fake_ssh(tmp_path):
    """Give a function that makes an ssh client of a shell script; it says nothing of its configuration."""

    def make(script):
        path = tmp_path / "ssh"
        path.write_text(f'#!/bin/sh\nfor word; do [ "$word" = -G ] && exit 1; done\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return make


# --- this machine -------------------------------------------------------------------------------------------


def test_this_machine_is_fine_and_the_table_is_aligned(capsys):
    report = d.doctor()
    assert report.ok
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    lines = [line for line in printed.splitlines() if "->" not in line]
    column = lines[0].index("result")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    names = checks_of(report)
    assert f"CPython {'.'.join(map(str, sys.version_info[:3]))}" in names["python"].found
    assert names["pydist"].found == d.__version__
    assert f"{len(os.sched_getaffinity(0))} of" in names["CPUs"].found
    assert "open files" in names
    assert repr(report) == f"<doctor: {len(report.checks)} checks, 0 failed>"


def test_many_threads_for_each_worker_are_warned_of(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    check = checks_of(d.doctor())["threads"]
    assert check.result == "warning"
    assert check.found == "MKL_NUM_THREADS=1, OMP_NUM_THREADS=8"
    assert "unset OMP_NUM_THREADS, or say addprocs(..., env={'OMP_NUM_THREADS': '1'})" in check.advice


def test_few_open_files_are_warned_of():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        check = checks_of(d.doctor())["open files"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert check.result == "warning"
    assert check.found.startswith("at most 512")
    assert "ulimit -n" in check.advice


def test_a_setting_that_is_not_valid_fails_but_raises_nothing(monkeypatch, capsys):
    monkeypatch.setenv("PYDIST_WORKER_TIMEOUT", "soon")
    report = d.doctor()
    assert not report.ok
    (check,) = report.failed
    assert check.name == "PYDIST_WORKER_TIMEOUT"
    assert "soon" in check.found
    assert f"-> {check.advice}" in capsys.readouterr().out


def test_a_place_for_sockets_that_is_missing_fails(monkeypatch, tmp_path):
    def fails():
        raise PermissionError("no")

    monkeypatch.setattr(_doctor._session, "_socket_folder", fails)
    check = checks_of(d.doctor())["socket folder"]
    assert check.result == "failed"
    assert "TMPDIR" in check.advice


# --- other machines -----------------------------------------------------------------------------------------


def test_a_host_that_is_not_known(capsys):
    report = d.doctor("no-such-host.invalid")
    (check,) = report.checks
    assert (check.name, check.result) == ("reachable", "failed")
    assert "no-such-host.invalid is not known" in check.found
    assert "spelling" in capsys.readouterr().out


def test_a_port_where_nobody_listens():
    port = closed_port()
    (check,) = d.doctor([f"me@127.0.0.1:{port}"]).checks
    assert check.machine == f"me@127.0.0.1:{port}"
    assert f"nothing listens at 127.0.0.1 port {port}" in check.found
    assert "sshd" in check.advice


def test_a_port_with_something_else_and_one_that_is_silent():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (check,) = d.doctor(f"127.0.0.1:{port}", timeout=0.2).checks
        assert "no answer" in check.found
        thread = threading.Thread(target=lambda: [server.accept()[0].close() for _ in range(2)])
        thread.start()
        (check,) = d.doctor(f"127.0.0.1:{port}", timeout=5).checks
        thread.join(10)
        assert "no ssh server" in check.found


@pytest.mark.parametrize("machine", ["a:b:c", "", ("host", 0), ("host", 1, 2), "ho st x"])
def test_a_malformed_machine_is_a_check_that_fails(machine):
    (check,) = d.doctor([machine]).checks
    assert (check.name, check.result) == ("machine", "failed")


def test_what_is_no_machine_at_all_is_a_type_error():
    with pytest.raises(TypeError, match="int"):
        d.doctor([3])


@pytest.mark.parametrize(
    ("says", "advice"),
    [
        ("me@127.0.0.1: Permission denied (publickey).", "ssh-copy-id me@127.0.0.1"),
        ("Host key verification failed.", "accept it once"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "ssh-keygen -R 127.0.0.1"),
        ("something new", "try it: ssh me@127.0.0.1"),
    ],
)
def test_a_login_that_fails_says_what_to_do(ssh_port, fake_ssh, says, advice):
    ssh = fake_ssh(f"echo '{says}' >&2; exit 255")
    report = d.doctor(f"me@127.0.0.1:{ssh_port}", ssh=ssh)
    names = checks_of(report)
    assert "SSH-2.0-Test" in names["reachable"].found
    assert (names["login"].result, names["login"].found) == ("failed", says)
    assert advice in names["login"].advice


def test_a_login_that_hangs_and_a_client_that_is_missing(ssh_port, fake_ssh):
    ssh = fake_ssh("exec sleep 60")
    check = checks_of(d.doctor(f"127.0.0.1:{ssh_port}", ssh=ssh, timeout=0.3))["login"]
    assert "did not end within" in check.found
    check = checks_of(d.doctor(f"127.0.0.1:{ssh_port}", ssh="/no/such/ssh"))["login"]
    assert "/no/such/ssh cannot be run" in check.found
    assert "OpenSSH" in check.advice


def test_no_python_there(ssh_port, fake_ssh):
    ssh = fake_ssh("echo Welcome; exec /bin/sh")
    check = checks_of(d.doctor(f"127.0.0.1:{ssh_port}", ssh=ssh, exename="/no/such/python"))["python"]
    assert (check.result, check.found) == ("failed", "there is no /no/such/python")
    assert "exename=" in check.advice


def test_a_python_in_the_home_folder_there(ssh_port, fake_ssh, tmp_path):
    (tmp_path / "python").symlink_to(sys.executable)
    ssh = fake_ssh(f"HOME={tmp_path} exec /bin/sh")
    names = checks_of(d.doctor(f"127.0.0.1:{ssh_port}", ssh=ssh, exename="~/python"))
    assert (names["python"].result, names["login"].result) == ("ok", "ok")


def test_a_python_that_cannot_tell_of_itself(ssh_port, fake_ssh, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'bad interpreter' >&2; exit 1\n")
    python.chmod(0o700)
    ssh = fake_ssh("exec /bin/sh")
    check = checks_of(d.doctor(f"127.0.0.1:{ssh_port}", ssh=ssh, exename=python))["python"]
    assert check.result == "failed"
    assert "bad interpreter" in check.found


FACTS = {**_doctor_probe.facts()}


@pytest.mark.parametrize(
    ("name", "changed", "result", "found"),
    [
        ("python", {"python": "3.10.1"}, "failed", "3.10.1"),
        ("python", {"python": "3.99.1"}, "failed", "3.99.1"),
        ("python", {"implementation": "PyPy"}, "failed", "PyPy"),
        ("pydist", {"pydist": None, "pydist_error": "ModuleNotFoundError: x"}, "failed", "ModuleNotFound"),
        ("pydist", {"pydist": "9.9.9"}, "failed", "9.9.9"),
        ("addresses", {"addresses": ["127.0.1.1"]}, "warning", "127.0.1.1"),
        ("CPUs", {"quota": 0.5}, "warning", "the time of 0.5"),
        ("temporary files", {"temporary": {"folder": "/t", "free": 1}}, "warning", "0.0 GB"),
        ("temporary files", {"temporary": {"folder": None, "error": "full"}}, "failed", "full"),
    ],
)
def test_what_another_machine_tells_is_judged(
    ssh_port, fake_ssh, tmp_path, monkeypatch, name, changed, result, found
):
    import json

    told = tmp_path / "told"
    told.write_text(
        f"{_doctor_probe.MARK}{sys.executable}\n{_doctor_probe.MARK}{json.dumps(FACTS | changed)}\n"
    )
    report = d.doctor(f"127.0.0.1:{ssh_port}", ssh=fake_ssh(f"cat {told}"))
    check = checks_of(report)[name]
    assert check.result == result
    assert found in check.found
    assert check.advice


def test_the_probe_runs_by_an_old_python_too():
    """Its text keeps to the grammar of Python 3.6."""
    import ast

    with open(_doctor_probe.__file__, encoding="utf-8") as file:
        ast.parse(file.read(), feature_version=(3, 6))


# --- a real ssh server --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start an OpenSSH server on loopback; give its port and the flags by which one logs in."""
    if not os.path.exists(SSHD) or shutil.which("ssh") is None:
        pytest.skip("OpenSSH is not installed: apt-get install openssh-server openssh-client")
    folder = tmp_path_factory.mktemp("sshd")
    for key in ("host", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key]
        subprocess.run(command, check=True)
    if os.getuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    port = closed_port()
    options = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "client.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "yes",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", "/dev/null", *words], stderr=subprocess.DEVNULL)

    def answers():
        assert process.poll() is None
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", port)) == 0

    wait_until(answers)
    client = {
        "IdentityFile": folder / "client",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": folder / "known",
    }
    flags = ["-F", "/dev/null", *(w for n, v in client.items() for w in ("-o", f"{n}={v}"))]
    yield port, flags
    process.terminate()
    process.wait(10)


def test_a_real_server_lets_in_once_its_key_is_known(server):
    port, flags = server
    machine = f"{getpass.getuser()}@127.0.0.1:{port} 127.0.0.1"
    names = checks_of(d.doctor(machine, sshflags=flags))
    assert "Host key verification failed" in names["login"].found
    report = d.doctor([(machine, 2)], sshflags=[*flags, "-o", "StrictHostKeyChecking=no"])
    assert report.ok, str(report)
    names = checks_of(report)
    assert "OpenSSH" in names["reachable"].found
    assert names["host"].found == socket.gethostname()
    assert names["pydist"].found == d.__version__
    assert names["python"].result == "ok"


def test_a_real_server_refuses_a_wrong_key(server, tmp_path):
    port, _ = server
    flags = [
        "-F",
        "/dev/null",
        "-o",
        f"UserKnownHostsFile={tmp_path}/known",
        "-o",
        "StrictHostKeyChecking=no",
    ]
    flags += ["-o", "IdentitiesOnly=yes", "-o", f"IdentityFile={tmp_path}/none"]
    machine = f"{getpass.getuser()}@127.0.0.1:{port}"
    check = checks_of(d.doctor(machine, sshflags=flags))["login"]
    assert "Permission denied" in check.found
    assert "ssh-copy-id" in check.advice
