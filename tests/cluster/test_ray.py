"""Workers on a Ray cluster: a real one of one node, in a script of its own."""

import json
import shutil
import tempfile

import pytest

import pydist as d
from support import run_script

pytest.importorskip("ray", reason="Ray is not installed: pip install --group frameworks")

SCRIPT = """
    import json, os, subprocess, sys, time
    import psutil, ray
    import pydist as d
    from support import wait_until

    CRASH = '''
    import os, signal, sys, ray
    import pydist as d
    ray.init(address=sys.argv[1], log_to_driver=False)
    pids = d.addprocs(d.RayManager(1))
    print(d.remotecall_fetch(os.getpid, pids[0]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    '''
    said = {}
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
    ray.remote(lambda: None)

    def free():
        return ray.available_resources().get("CPU", 0)

    def error_of(call):
        try:
            call()
        except Exception as error:
            return [type(error).__name__, str(error)]

    pids = d.addprocs(d.RayManager(2))
    said["pids"] = pids
    said["pmap"] = d.pmap(abs, range(-20, 0))
    said["peers"] = d.remotecall_fetch(d.remotecall_fetch, pids[0], d.myid, pids[1])
    d.remotecall_eval("print('printed there')", pids[0])
    processes = [psutil.Process(d.remotecall_fetch(os.getpid, pid)) for pid in pids]
    cookie = d.cluster_cookie().hex()
    said["told"] = [cookie in str(p.cmdline()) or cookie in str(p.environ()) for p in processes]
    said["parents"] = [p.parent().name() for p in processes]
    said["busy"] = free()
    said["blas"] = d.remotecall_fetch(os.getenv, pids[0], "OPENBLAS_NUM_THREADS")
    begin = time.monotonic()
    d.rmprocs(pids)
    said["removal"] = time.monotonic() - begin
    wait_until(lambda: free() == 2, 10)
    said["left"] = [p.pid for p in processes if p.is_running()]

    error = None
    try:
        d.addprocs(d.RayManager(1, num_cpus=64), timeout=2)
    except d.LaunchWorkerError as caught:
        error = str(caught)
    said["unplaced"] = error
    said["no_exename"] = error_of(lambda: d.addprocs(d.RayManager(1), exename="/no/such/python"))

    (pid,) = d.addprocs(d.RayManager(1, num_cpus=0))
    future = d.remotecall(time.sleep, pid, 100)
    psutil.Process(d.remotecall_fetch(os.getppid, pid)).kill()
    said["actor_dies"] = error_of(lambda: future.fetch(timeout=20))

    address = context.address_info["address"]
    crash = subprocess.run([sys.executable, "-c", __import__("textwrap").dedent(CRASH), address],
                           stdout=subprocess.PIPE, text=True, timeout=60)
    ospid = int(crash.stdout.split()[-1])
    wait_until(lambda: not psutil.pid_exists(ospid), 20)
    wait_until(lambda: free() == 2, 20)
    said["crash"] = crash.returncode

    (pid,) = d.addprocs(d.RayManager(1))
    future = d.remotecall(time.sleep, pid, 100)
    ray.shutdown()
    said["cluster_ends"] = error_of(lambda: future.fetch(timeout=20))
    wait_until(lambda: d.procs() == [1])
    said["shut_down"] = not ray.is_initialized()
    said["disconnected"] = error_of(lambda: d.addprocs(d.RayManager(1)))
    print("SAID " + json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    """Run the script once, and give what it has found."""
    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        env = {"HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        done = run_script(SCRIPT, arguments=[folder], env=env, timeout=220)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = next(line for line in done.stdout.splitlines() if line.startswith("SAID "))
    return {**json.loads(found.removeprefix("SAID ")), "output": done.stdout}


@pytest.mark.timeout(240)
def test_workers_are_members_like_any_other(said):
    assert said["pids"] == [2, 3]
    assert said["pmap"] == list(range(20, 0, -1))
    assert said["peers"] == 3
    assert "      From worker 2:\tprinted there\n" in said["output"]
    assert said["blas"] == "1"


def test_each_has_its_actor_which_takes_a_cpu(said):
    assert all("ray::" in name for name in said["parents"])
    assert said["busy"] == 0


def test_the_cookie_is_in_no_argument_and_in_no_environment(said):
    assert said["told"] == [False, False]


def test_they_end_with_rmprocs(said):
    assert said["left"] == []
    assert said["removal"] < 4


def test_one_that_ray_does_not_place_is_an_error_that_says_why(said):
    assert "Ray has not started the worker within" in said["unplaced"]
    assert "64" in said["unplaced"]


def test_one_that_cannot_be_started_is_an_error_that_says_why(said):
    name, text = said["no_exename"]
    assert name == "LaunchWorkerError"
    assert "/no/such/python" in text


def test_they_end_with_their_actor_with_the_cluster_and_after_a_crash_of_process_1(said):
    assert said["actor_dies"][0] == "ProcessExitedException"
    assert said["cluster_ends"][0] == "ProcessExitedException"
    assert said["crash"] == -9
    assert said["shut_down"]


def test_a_process_that_is_not_connected_to_ray_is_told_what_to_do(said):
    name, text = said["disconnected"]
    assert name == "RuntimeError"
    assert "ray.init" in text


def test_options_are_checked_where_the_manager_is_made():
    with pytest.raises(ValueError, match="negative"):
        d.RayManager(-1)
    with pytest.raises(ValueError, match="lifetime"):
        d.RayManager(1, lifetime="detached")
    with pytest.raises(ValueError, match="no_such_option"):
        d.RayManager(1, no_such_option=1)
