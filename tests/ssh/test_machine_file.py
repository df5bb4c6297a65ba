"""The command line with machines."""

import os
import subprocess
import sys

import pytest

from support_ssh import TOKEN

PROGRAM = (
    "import pydist as d; print(d.nworkers(), sum(d.pmap(abs, range(-4, 0))), d.check_same_host(d.workers()))"
)


@pytest.fixture
def run(ssh, tmp_path):
    """Give a function that runs the command line, where `ssh` finds the test's servers."""
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {ssh.servers.flags[1]} "$@"\n')
    wrapper.chmod(0o755)
    env = {**os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}", TOKEN: ssh.token}

    def do(machines, *words):
        path, script = tmp_path / "hosts", tmp_path / "script.py"
        path.write_text(machines)
        script.write_text(PROGRAM)
        command = [sys.executable, "-m", "pydist", "--machine-file", path, *words, script]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)

    return do


@pytest.mark.parametrize("flags", [[], ["--tunnel"]])
def test_a_script_runs_with_workers_on_machines(run, flags):
    done = run("# two and one\n2*pd1\npd2 # the other\n", *flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3 10 True\n", "")


def test_workers_here_and_there(run):
    done = run("pd1\n", "-p", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 10 True\n", "")


def test_a_machine_that_cannot_be_reached(run):
    done = run("pd1\nno-such-host.invalid\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "resolve hostname no-such-host.invalid" in done.stderr
    assert "Traceback" not in done.stderr


def test_plain_text_beyond_loopback_is_warned_of(run):
    done = run("pd1 0.0.0.0\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 10 True\n", "")
    done = run("pd1 0.0.0.0\n", "--allow-plaintext")
    assert (done.returncode, done.stdout) == (0, "1 10 True\n")
