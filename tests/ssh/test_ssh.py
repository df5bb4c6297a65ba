"""Workers that ssh starts, on a real server on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

import pydist as d
from support import tcp_listeners, wait_until
from support_managers import ask


def ospid(pid):
    return d.remotecall_fetch(os.getpid, pid)


def test_workers_of_two_hosts_work_together(ssh, capfd):
    pids = ssh.start([("pd1", 2), "pd2"])
    assert len(pids) == 3
    assert d.pmap(divmod, range(40), [7] * 40) == [divmod(i, 7) for i in range(40)]
    assert [ask(a, b) for a in pids for b in pids if a != b] == [b for a in pids for b in pids if a != b]
    channel = d.RemoteChannel(pids[0])
    d.remotecall(channel.put, pids[1], "hello")
    assert d.remotecall_fetch(channel.take, pids[2]) == "hello"
    d.remotecall_fetch(print, pids[2], "a line\nand another")
    d.remotecall_fetch(d.remotecall_eval, pids[2], "import sys; print('wrong', file=sys.stderr)", pids[2])

    def printed():
        out.append(capfd.readouterr())
        text = "".join(captured.out for captured in out)
        errors = "".join(captured.err for captured in out)
        line = f"      From worker {pids[2]}:\t"
        return f"{line}a line\n{line}and another\n" in text and f"{line}wrong\n" in errors

    out = []
    wait_until(printed)
    # One ssh for each host, and one process there beside the workers.
    assert len([p for p in psutil.Process().children() if p.name() == "ssh"]) == 2
    assert len(ssh.remote()) == 3 + 2
    d.rmprocs(pids)
    assert d.procs() == [1]
    ssh.await_end()


def test_a_single_worker_of_several_can_be_removed(ssh):
    first, second, third = ssh.start([("pd1", 3)])
    gone = ospid(second)
    d.rmprocs(second)
    assert not psutil.pid_exists(gone)
    assert ask(first, third) == third
    assert d.workers() == [first, third]


def test_auto_is_the_number_of_cpus(ssh):
    assert len(ssh.start([("pd1", "auto")])) == len(os.sched_getaffinity(0))


def test_one_host_named_twice_has_one_session(ssh):
    pids = ssh.start(["pd1", ("pd1", 2)])
    assert len(pids) == 3
    assert len(ssh.remote()) == 3 + 1


def test_a_call_is_interrupted(ssh):
    (pid,) = ssh.start(["pd1"])
    future = d.remotecall(time.sleep, pid, 60)
    wait_until(lambda: d.stats(pid)["calls_running"] == 1)
    d.interrupt(pid)
    with pytest.raises(d.RemoteException, match="KeyboardInterrupt"):
        future.fetch(timeout=20)
    assert d.remotecall_fetch(d.myid, pid) == pid


def test_user_port_and_address(ssh):
    host, port = ssh.servers.address(1)
    flags = ["-F", "none", "-i", str(ssh.servers.folder / "client_key")]
    flags += ["-o", f"UserKnownHostsFile={ssh.servers.folder / 'known_hosts'}"]
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    (pid,) = ssh.start([f"{user}@{host}:{port}"], sshflags=flags)
    assert d.remotecall_fetch(d.myid, pid) == pid


def test_ipv6(ssh):
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 on loopback")
        port = probe.getsockname()[1]
    folder = ssh.servers.folder
    lines = (folder / "sshd_config-1").read_text().splitlines()
    lines = [line for line in lines if not line.startswith(("ListenAddress", "PidFile"))]
    config = folder / "sshd_config-6"
    config.write_text("\n".join([*lines, f"ListenAddress [::1]:{port}", f"PidFile {folder}/sshd-6.pid", ""]))
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-f", config, "-E", folder / "sshd-6.log"])
    try:
        wait_until(lambda: ("::1", port) in [a[:2] for a in tcp_listeners(server.pid)])
        flags = ["-F", "none", "-i", str(folder / "client_key"), "-o", "StrictHostKeyChecking=no"]
        flags += ["-o", "UserKnownHostsFile=/dev/null"]
        pids = ssh.start([(f"[::1]:{port}", 2)], sshflags=flags)
        assert ask(*pids) == pids[1]
        assert tcp_listeners(ospid(pids[0]))[0][0] == "::1"
        d.rmprocs(pids)
        ssh.await_end()
    finally:
        server.terminate()
        server.wait(10)


def free_ports():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        with socket.socket() as two:
            two.bind(("127.0.0.1", port + 1))
    return port


def test_the_workers_of_a_bind_port_listen_on_it_and_the_next(ssh):
    port = free_ports()
    pids = ssh.start([(f"pd1 127.0.0.2:{port}", 2)])
    found = sorted(tcp_listeners(ospid(pid))[0] for pid in pids)
    assert found == [("127.0.0.2", port), ("127.0.0.2", port + 1)]


# --- what the other side is given ---------------------------------------------------------------------------

STRANGE = ["two words", 'it\'s "quoted" `x` $HOME \\n', "line\nline", "grüße €", "!bang! #*?[]{}~", ""]


@pytest.mark.parametrize("shell", ["posix", "csh"])
def test_folder_environment_and_executable(ssh, tmp_path, shell):
    flags = ssh.servers.flags
    if shell == "csh":
        flags = ssh.servers.login_shell('exec tcsh -f -c "$1"')
        if subprocess.run(["sh", "-c", "command -v tcsh"], check=False, capture_output=True).returncode:
            pytest.skip("no tcsh")
    folder = tmp_path / 'it\'s a "folder" !x $y ü'
    folder.mkdir()
    python = folder / "my python"
    python.symlink_to(sys.executable)
    # A link to the Python of a virtual environment is one of that environment by its path alone.
    env = {f"STRANGE{i}": text for i, text in enumerate(STRANGE)}
    env |= {f"PYTHONSTRANGE{i}": text for i, text in enumerate(STRANGE)}
    env |= {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "3"}
    (pid,) = ssh.start(
        ["pd1"], shell=shell, sshflags=flags, dir=folder, exename=python, exeflags="-X dev -W ignore", env=env
    )
    there = d.remotecall_fetch(lambda: dict(os.environ), pid)
    assert {name: there[name] for name in env} == env
    assert d.remotecall_fetch(os.getcwd, pid) == str(folder)
    assert d.remotecall_eval("__import__('sys').flags.dev_mode", pid) is True
    assert d.remotecall_eval("__import__('sys').executable", pid) == str(python)
    assert there["MKL_NUM_THREADS"] == "1"


def test_threaded_blas_and_paths_in_the_home_folder(ssh):
    (pid,) = ssh.start(["pd1"], enable_threaded_blas=True, dir="~/")
    assert d.remotecall_fetch(os.getcwd, pid) == os.path.expanduser("~")
    assert d.remotecall_fetch(os.environ.get, pid, "MKL_NUM_THREADS") == os.environ.get("MKL_NUM_THREADS")


def test_by_default_workers_are_in_the_folder_of_process_1(ssh, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_the_script.py").write_text("value = 41")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (pid,) = ssh.start(["pd1"])
    assert d.remotecall_fetch(os.getcwd, pid) == str(tmp_path)
    assert d.remotecall_eval("import beside_the_script; beside_the_script.value", pid) == 41


@pytest.mark.parametrize("cmdline_cookie", [False, True])
def test_s1_the_cookie_is_in_no_command_line_and_no_environment(ssh, cmdline_cookie):
    """S1: cookie absent from cmdline and environ of every process."""
    ssh.start([("pd1", 2)], tunnel=True, cmdline_cookie=cmdline_cookie)
    cookie = d.cluster_cookie()
    shown = [cookie.hex().encode(), cookie]
    for process in ssh.processes() + psutil.Process().children(recursive=True):
        for name in ("cmdline", "environ"):
            with open(f"/proc/{process.pid}/{name}", "rb") as file:
                data = file.read()
            assert not any(text in data for text in shown), process


def test_a_banner_of_the_login_shell_does_no_harm(ssh):
    flags = ssh.servers.login_shell('seq 300; printf "no newline"; echo on stderr >&2; exec sh -c "$1"')
    (pid,) = ssh.start(["pd1"], sshflags=flags)
    assert d.remotecall_fetch(d.myid, pid) == pid


# --- tunnels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiplex", [False, True])
def test_tunnels(ssh, multiplex):
    """All traffic goes through ssh: process 1 has no connection over TCP."""
    pids = ssh.start([("pd1", 2), "pd2"], tunnel=True, multiplex=multiplex, max_parallel=1)
    data = os.urandom(3_000_000)
    assert all(d.remotecall_fetch(bytes.__len__, pid, data) == len(data) for pid in pids)
    assert d.remotecall_fetch(bytes, pids[1], data) == data
    assert ask(pids[0], pids[1]) == pids[1]
    assert not [c for c in psutil.Process().net_connections("tcp") if c.status == "ESTABLISHED"]
    assert all(host == "127.0.0.1" for pid in pids for host, _ in tcp_listeners(ospid(pid)))
    clients = [p for p in psutil.Process().children() if p.name() == "ssh"]
    assert len(clients) == (2 if multiplex else 2 + 3)
    d.rmprocs(pids[0])
    assert ask(*pids[1:]) == pids[2]
    d.rmprocs(pids)
    ssh.await_end()
    wait_until(lambda: not psutil.Process().children())


# --- deaths -------------------------------------------------------------------------------------------------


def test_f01_sigkill_of_a_worker(ssh):
    """F1: the call raises, with what the other host tells; others are unaffected."""
    one, two = ssh.start([("pd1", 2)])
    future = d.remotecall(time.sleep, one, 60)
    os.kill(ospid(one), signal.SIGKILL)
    with pytest.raises(d.ProcessExitedException, match=r"signal 9 \(SIGKILL\)") as caught:
        future.fetch(timeout=20)
    assert (caught.value.pid, caught.value.host) == (one, "pd1")
    assert d.remotecall_fetch(d.myid, two) == two
    with pytest.raises(d.ProcessExitedException, match="exit code 3"):
        d.remotecall_fetch(os._exit, two, 3)


@pytest.mark.parametrize("victim", ["ssh", "host"])
@pytest.mark.parametrize("tunnel", [False, True])
def test_the_end_of_the_session_ends_the_workers(ssh, victim, tunnel):
    pids = ssh.start([("pd1", 2)], tunnel=tunnel, multiplex=tunnel)
    futures = [d.remotecall(time.sleep, pid, 60) for pid in pids]
    parents = {psutil.Process(ospid(pid)).ppid() for pid in pids}
    (client,) = [p.pid for p in psutil.Process().children() if p.name() == "ssh"]
    os.kill(client if victim == "ssh" else parents.pop(), signal.SIGKILL)
    for future in futures:
        with pytest.raises(d.ProcessExitedException):
            future.fetch(timeout=20)
    wait_until(lambda: d.procs() == [1])
    ssh.await_end()
    wait_until(lambda: not psutil.Process().children())


def test_a_worker_that_ignores_being_asked_gets_signals(ssh, monkeypatch):
    monkeypatch.setattr("pydist._cluster.TERM_AFTER", 0.2)
    monkeypatch.setattr("pydist._cluster.KILL_AFTER", 0.4)
    (pid,) = ssh.start(["pd1"])
    os.kill(ospid(pid), signal.SIGSTOP)
    d.rmprocs(pid)
    assert d.procs() == [1]
    ssh.await_end()
