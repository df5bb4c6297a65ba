"""Workers as tasks of Slurm: of an allocation, and as a job of their own."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import pydist as d
from pydist import _network, _session
from support import Script, executable, tcp_listeners, touch, wait_until
from support_managers import ask
from support_tls import beyond_loopback, schemes_of

IMPORTS = os.pathsep.join(sys.path)


@pytest.fixture
def three(slurm):
    """Give three workers that are a job."""
    return d.addprocs(d.SlurmManager(3))


def test_a_job_of_three_tasks(slurm, three, capfd):
    assert slurm.jobs() == ["RUNNING"]
    assert d.workers() == three
    assert [d.remotecall_fetch(os.getenv, pid, "SLURM_PROCID") for pid in three] == ["0", "1", "2"]
    jobs = {d.remotecall_fetch(os.getenv, pid, "SLURM_JOB_ID") for pid in three}
    assert len(jobs) == 1
    assert {d.remotecall_fetch(os.getenv, pid, "SLURM_STEP_ID") for pid in three} == {"0"}
    assert [ask(a, b) for a in three for b in three if a != b] == [b for a in three for b in three if a != b]
    assert d.pmap(pow, range(50), [2] * 50) == [x * x for x in range(50)]
    d.remotecall_fetch(print, three[1], "printed there")
    wait_until(lambda: f"      From worker {three[1]}:\tprinted there\n" in capfd.readouterr().out)
    d.rmprocs(three)
    slurm.wait_empty()


def test_workers_have_the_folder_the_modules_and_the_variables(slurm, tmp_path):
    (pid,) = d.addprocs(
        d.SlurmManager(1, cpus_per_task=2, job_name="named", time="10", exclusive=False),
        dir=tmp_path,
        env={"MINE": "1"},
    )
    assert d.remotecall_fetch(os.getcwd, pid) == str(tmp_path)
    names = ("MINE", "SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS")
    assert [d.remotecall_fetch(os.getenv, pid, name) for name in names] == ["1", "2", "1"]
    assert d.remotecall_eval("import sys; sys.path", pid) == [os.path.abspath(p) for p in sys.path]
    assert slurm.run("squeue", "--noheader", "--format=%j %l").split() == ["named", "10:00"]
    d.remotecall_fetch(touch, pid, "a module of this process")
    assert (tmp_path / "a module of this process").exists()


class Hears(d.SlurmManager):
    """Keeps what it is told of its workers."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.heard = []

    def manage(self, pid, config, op):
        self.heard.append((op, pid, config))
        return super().manage(pid, config, op)


def test_what_is_known_of_a_worker(slurm):
    manager = Hears(2)
    pids = d.addprocs(manager)
    found = {pid: config for op, pid, config in manager.heard if op == "register"}
    assert sorted(found) == pids
    for rank, pid in enumerate(pids):
        config = found[pid]
        assert config.host == d.remotecall_fetch(os.uname, pid).nodename
        assert config.ospid == d.remotecall_fetch(os.getpid, pid)
        job = d.remotecall_fetch(os.getenv, pid, "SLURM_JOB_ID")
        assert config.userdata == {"SLURM_PROCID": rank, "SLURM_JOB_ID": job}
    d.rmprocs(pids)
    ops = [op for op, pid, _ in manager.heard if pid == pids[0]]
    assert ops == ["register", "deregister", "finalize"]


def test_what_others_see_of_a_job(slurm, three):
    """S1: the cookie is in no command line, no environment, nothing that Slurm tells. S2: nobody listens."""
    for ospid in [os.getpid(), *(d.remotecall_fetch(os.getpid, pid) for pid in three)]:
        assert tcp_listeners(ospid) == []
    folder = Path(_session.session.folder)
    assert {str(pid) for pid in three} <= {path.name for path in folder.iterdir()}
    secrets = [d.cluster_cookie().hex(), d.cluster_cookie().hex().upper()]
    seen = slurm.run("scontrol", "show", "job", "--details") + slurm.run("scontrol", "show", "step")
    assert "pydist" in seen
    for process in psutil.process_iter():
        try:
            seen += " ".join(process.cmdline()) + str(process.environ())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    assert "srun --ntasks=3" in seen
    assert not any(secret in seen for secret in secrets)
    d.rmprocs(three)
    assert not {str(pid) for pid in three} & {path.name for path in folder.iterdir()}


def test_one_worker_leaves_and_the_others_stay(slurm, three):
    first, second, third = three
    d.rmprocs(first)
    assert d.workers() == [second, third]
    with pytest.raises(d.ProcessExitedException) as caught:
        d.remotecall_fetch(os._exit, second, 7)
    assert caught.value.pid == second
    assert caught.value.reason == "exit code 7"
    assert d.remotecall_fetch(d.myid, third) == third
    assert slurm.jobs() == ["RUNNING"]
    with pytest.raises(d.ProcessExitedException, match="signal 9"):
        d.remotecall_fetch(os.kill, third, d.remotecall_fetch(os.getpid, third), signal.SIGKILL)
    slurm.wait_empty()


def test_a_cancelled_job(slurm, three):
    future = d.remotecall(time.sleep, three[0], 60)
    slurm.run("scancel", d.remotecall_fetch(os.getenv, three[0], "SLURM_JOB_ID"))
    with pytest.raises(d.ProcessExitedException):
        future.fetch(timeout=30)
    wait_until(lambda: d.procs() == [1], 20)
    assert d.remotecall_fetch(abs, 1, -1) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"no_such_option": 3}, "unrecognized option '--no-such-option=3'"),
        ({"mem": "100G"}, "Requested node configuration is not available"),
    ],
)
def test_what_slurm_refuses(slurm, options, says):
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(d.SlurmManager(2, **options))
    assert len(caught.value.failures) == 2
    assert says in str(caught.value)
    assert caught.value.status == (255 if "no_such_option" in options else 1)
    assert d.procs() == [1]
    assert slurm.jobs() == []


def test_no_python_there(slurm):
    with pytest.raises(d.LaunchWorkerError, match="no_such_python"):
        d.addprocs(d.SlurmManager(1), exename="/no_such_python")
    slurm.wait_empty()


def test_no_pydist_there(slurm, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['pydist'] = None\n")
    with pytest.raises(d.LaunchWorkerError, match="No module named 'pydist") as caught:
        d.addprocs(d.SlurmManager(1), env={"PYTHONPATH": str(tmp_path)})
    assert caught.value.status == 1
    slurm.wait_empty()


def test_one_task_of_three_fails(slurm, tmp_path):
    python = executable(
        tmp_path,
        """
        if [ "$SLURM_PROCID" = 1 ]; then echo out of order >&2; exit 9; fi
        exec "$PYTHON" "$@"
        """,
    )
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(d.SlurmManager(3), exename=python)
    (failure,) = caught.value.failures
    assert failure.status == 9
    assert "out of order" in failure.output
    assert caught.value.started == d.workers()
    first, third = d.workers()
    assert [d.remotecall_fetch(os.getenv, pid, "SLURM_PROCID") for pid in (first, third)] == ["0", "2"]
    assert ask(first, third) == third


def test_tasks_that_hang(slurm, tmp_path):
    python = executable(tmp_path, "exec sleep 1000")
    with pytest.raises(d.LaunchWorkerError, match="did not come up within 1 s"):
        d.addprocs(d.SlurmManager(2), exename=python, timeout=1)
    slurm.wait_empty()


def blocked(slurm):
    """Occupy all CPUs, and return the job that does."""
    slurm.run("sbatch", "--parsable", "--ntasks=4", "--output=/dev/null", "--wrap", "sleep 600")
    wait_until(lambda: slurm.jobs() == ["RUNNING"], 20)
    return slurm.run("squeue", "--noheader", "--format=%A").strip()


def test_the_time_in_the_queue_does_not_count(slurm, caplog):
    blocker = blocked(slurm)
    started = []
    thread = threading.Thread(target=lambda: started.extend(d.addprocs(d.SlurmManager(1), timeout=5)))
    begun = time.monotonic()
    thread.start()
    wait_until(lambda: "queued and waiting for resources" in caplog.text, 20)
    wait_until(lambda: time.monotonic() > begun + 5.2)
    assert thread.is_alive()
    slurm.run("scancel", blocker)
    thread.join(30)
    assert started == d.workers() != [1]
    assert d.remotecall_fetch(d.myid, started[0]) == started[0]


def test_immediate_does_not_wait(slurm):
    blocked(slurm)
    with pytest.raises(d.LaunchWorkerError, match="Unable to allocate resources"):
        d.addprocs(d.SlurmManager(1, immediate=1))
    assert slurm.jobs() == ["RUNNING"]


def test_interrupt_in_the_queue_cancels_the_job(slurm):
    """F36: Ctrl-C in addprocs."""
    blocked(slurm)
    text = """
        import pydist as d
        try:
            d.addprocs(d.SlurmManager(2))
        except KeyboardInterrupt:
            print("interrupted", d.procs())
        """
    with Script(text) as script:
        wait_until(lambda: sorted(slurm.jobs()) == ["PENDING", "RUNNING"], 30)
        wait_until(lambda: "queued" in script.err, 20)
        script.process.send_signal(signal.SIGINT)
        assert script.finish(20).returncode == 0
        assert "interrupted [1]" in script.out
        script.wait_gone(5)
    wait_until(lambda: slurm.jobs() == ["RUNNING"], 10)


UP = """
    import os, time
    import pydist as d
    d.addprocs(d.SlurmManager(2))
    print("up", flush=True)
    """


def test_f11_killed_process_1_takes_the_job_along(slurm):
    """F11: SIGKILL of process 1."""
    with Script(UP + "time.sleep(60)") as script:
        script.wait_for("up")
        assert slurm.jobs() == ["RUNNING"]
        os.kill(script.pid, signal.SIGKILL)
        script.wait_gone(10)
        script.process.wait(10)
    slurm.wait_empty()


def test_killed_process_1_takes_a_job_in_the_queue_along(slurm):
    blocked(slurm)
    with Script(UP) as script:
        wait_until(lambda: sorted(slurm.jobs()) == ["PENDING", "RUNNING"], 30)
        os.kill(script.pid, signal.SIGKILL)
        script.wait_gone(10)
        script.process.wait(10)
    wait_until(lambda: slurm.jobs() == ["RUNNING"], 10)


@pytest.mark.parametrize(
    ("end", "status"),
    [("", 0), ("raise SystemExit(3)", 3), ("1 / 0", 1)],
    ids=["", "exit", "error"],
)
def test_f12_the_end_of_process_1_ends_the_job(slurm, end, status):
    """F12: by its last line, by sys.exit, by an exception."""
    with Script(UP + end) as script:
        assert script.finish(60).returncode == status
        script.wait_gone(5)
    slurm.wait_empty()


def salloc(*words):
    return subprocess.run(
        ["salloc", "--quiet", *words], capture_output=True, text=True, timeout=60, check=False
    )


INSIDE = """
import os, sys
import pydist as d
{start}
ask = lambda name: [d.remotecall_fetch(os.getenv, pid, name) for pid in d.workers()]
same = set(ask("SLURM_JOB_ID")) == {{os.environ["SLURM_JOB_ID"]}}
print(*ask("SLURM_PROCID"), *set(ask("SLURM_CPUS_PER_TASK")), same, d.pmap(abs, [-1, -2]))
sys.exit(4)
"""


def test_all_tasks_of_an_allocation(slurm, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INSIDE.format(start="d.addprocs(d.SlurmManager())"))
    done = salloc("-n2", "-c2", sys.executable, str(script))
    assert (done.stdout, done.returncode) == ("0 1 2 True [1, 2]\n", 4), done.stderr


def test_the_command_line_finds_the_tasks_of_a_batch_job(slurm, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INSIDE.format(start=""))
    job = tmp_path / "job.sh"
    job.write_text(f"#!/bin/bash\n{sys.executable} -m pydist --slurm {script}\necho status $?\n")
    output = tmp_path / "output"
    slurm.run("sbatch", "--ntasks=3", "--cpus-per-task=1", f"--output={output}", str(job))
    wait_until(lambda: output.exists() and "status" in output.read_text(), 60)
    assert output.read_text() == "0 1 2 1 True [1, 2]\nstatus 4\n"


def test_fewer_workers_than_tasks_and_process_1_as_a_task(slurm, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(INSIDE.format(start=""))
    inner = f"srun -n1 {sys.executable} -m pydist -p 2 --slurm {script}"
    done = salloc("-n4", "-c1", "sh", "-c", inner)
    assert done.stdout == "0 1 1 True [1, 2]\n", done.stderr
    assert done.returncode == 4


def test_more_workers_than_the_allocation_has(slurm):
    done = salloc("-n1", sys.executable, "-m", "pydist", "-p", "7", "--slurm", "-c", "print(1)")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "More processors requested than permitted" in done.stderr


def test_the_command_line_makes_a_job_of_its_own(slurm):
    code = "import pydist as d; print(len(d.procs()), d.remotecall_fetch(abs, 2, -1))"
    done = subprocess.run(
        [sys.executable, "-m", "pydist", "-p", "2", "--slurm", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("3 1\n", 0), done.stderr
    slurm.wait_empty()


def test_several_steps_at_once(slurm):
    threads = [threading.Thread(target=d.addprocs, args=(d.SlurmManager(2),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    pids = d.workers()
    assert len(pids) == 4
    assert sorted(d.remotecall_fetch(os.getenv, pid, "SLURM_PROCID") for pid in pids) == ["0", "0", "1", "1"]
    assert len({d.remotecall_fetch(os.getenv, pid, "SLURM_JOB_ID") for pid in pids}) == 2
    assert d.remotecall_fetch(ask, pids[0], pids[0], pids[3]) == pids[3]


def test_custom_python_flags_and_long_output(slurm, capfd):
    (pid,) = d.addprocs(d.SlurmManager(1), exeflags=["-X", "importtime"])
    wait_until(lambda: f"From worker {pid}:\timport time:" in capfd.readouterr().err)
    d.remotecall_fetch(print, pid, "x" * 200_000 + "end")
    text = ""

    def arrived():
        nonlocal text
        text += capfd.readouterr().out
        return "end\n" in text

    wait_until(arrived)
    assert sum(len(found) for found in re.findall("x{100,}", text)) == 200_000


@pytest.fixture
def elsewhere(tmp_path):
    """Give a Python for tasks whose host has another name for each of them, as if they were on others."""
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode:
        pytest.skip("there can be no namespace for another host name here")
    return executable(
        tmp_path, 'exec unshare --uts sh -c \'hostname "other$SLURM_PROCID"; exec "$0" "$@"\' "$PYTHON" "$@"'
    )


def test_another_host_does_not_reach_loopback(slurm, elsewhere, monkeypatch):
    monkeypatch.setattr(_network, "own_addresses", lambda port: [])
    with pytest.raises(d.LaunchWorkerError) as caught:
        d.addprocs(d.SlurmManager(1), exename=elsewhere, env={"PYTHONPATH": IMPORTS})
    assert caught.value.status == 1
    assert caught.value.host == "other0"
    assert f"process 1 runs on {os.uname().nodename} and listens on loopback alone" in caught.value.output
    slurm.wait_empty()


@pytest.mark.filterwarnings("ignore:connections over .* are not encrypted:RuntimeWarning")
@pytest.mark.parametrize("params", [{"tls": True}, {"allow_plaintext": True}], ids=["tls", "plain text"])
def test_workers_on_other_hosts(slurm, elsewhere, params):
    if all(_network.is_loopback(_network.split(address)[0]) for address in _network.own_addresses(1)):
        pytest.skip("this machine has no address beyond loopback")
    with pytest.raises(d.ProcessExitedException):
        near = d.addprocs(d.SlurmManager(1), **params)
        far = d.addprocs(d.SlurmManager(2), exename=elsewhere, env={"PYTHONPATH": IMPORTS}, **params)
        assert [schemes_of(pid) for pid in far] == [{"tls" if params.get("tls") else "tcp"}] * 2
        assert [d.procs(pid) for pid in far] == [[pid] for pid in far]
        assert d.procs(1) == [1, *near]
        pids = [*near, *far]
        assert [ask(a, b) for a in pids for b in pids if a != b] == [b for a in pids for b in pids if a != b]
        large = bytes(3_000_000)
        assert [d.remotecall_fetch(len, pid, large) for pid in pids] == [3_000_000] * 3
        d.remotecall_fetch(os._exit, far[0], 1)
    assert d.workers() == [*near, far[1]]


def test_tls_between_hosts_is_the_default(slurm, elsewhere):
    """Those of a job on the one node of process 1 do not listen on the network, as nobody is elsewhere."""
    beyond_loopback()
    (near,) = d.addprocs(d.SlurmManager(1))
    far = d.addprocs(d.SlurmManager(2), exename=elsewhere, env={"PYTHONPATH": IMPORTS})
    assert [schemes_of(pid) for pid in (near, *far)] == [set(), {"tls"}, {"tls"}]
    assert [ask(a, b) for a, b in (far, far[::-1], (near, far[0]))] == [far[1], far[0], far[0]]
    with pytest.raises(d.NotConnectedError):
        ask(far[1], near)


def test_no_srun_in_the_path(tmp_path):
    with pytest.raises(d.LaunchWorkerError, match="srun is not in PATH"):
        d.addprocs(d.SlurmManager(1), env={"PATH": str(tmp_path)})
