"""Workers on a Dask cluster: a real `LocalCluster`, in a script of its own."""

import copyreg
import importlib.util
import json
from collections.abc import Iterator

import pytest

import pydist as d
from support import run_script

if importlib.util.find_spec("distributed") is None:
    pytest.skip(
        "Dask's distributed is not installed: pip install --group frameworks", allow_module_level=True
    )


@pytest.fixture(autouse=True, scope="module")
def reducers() -> Iterator[None]:
    """Undo what Dask has tblib do when it is imported: change how exceptions are pickled in this process."""
    before = dict(copyreg.dispatch_table)
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


SCRIPT = """
    import json, os, subprocess, sys, textwrap, time
    import psutil
    import pydist as d
    from distributed import Client, LocalCluster
    from support import wait_until

    CRASH = '''
    import os, signal, sys
    import pydist as d
    from distributed import Client
    client = Client(sys.argv[1])
    pids = d.addprocs(d.DaskManager(client, 1))
    print(d.remotecall_fetch(os.getpid, pids[0]), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    '''

    def error_of(call):
        try:
            call()
        except Exception as error:
            return [type(error).__name__, str(error)]

    def main():
        said = {}
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
            with Client(cluster) as client:
                use(client, cluster, said)
            said["client_closed"] = error_of(lambda: said.pop("future").fetch(timeout=20))
            said["closed_client"] = error_of(lambda: d.addprocs(d.DaskManager(client)))
        print("SAID " + json.dumps(said))

    def use(client, cluster, said):
        pids = d.addprocs(d.DaskManager(client))
        said["pids"] = pids
        said["pmap"] = d.pmap(abs, range(-20, 0))
        said["peers"] = d.remotecall_fetch(d.remotecall_fetch, pids[0], d.myid, pids[1])
        d.remotecall_eval("print('printed there')", pids[0])
        processes = [psutil.Process(d.remotecall_fetch(os.getpid, pid)) for pid in pids]
        cookie = d.cluster_cookie().hex()
        said["told"] = [cookie in str(p.cmdline()) or cookie in str(p.environ()) for p in processes]
        said["hosts"] = sorted(p.ppid() for p in processes)
        said["dask"] = sorted(client.run(os.getpid).values())
        said["dask_works_on"] = client.map(lambda x: x + 1, range(10))[-1].result(timeout=20)
        begin = time.monotonic()
        d.rmprocs(pids)
        said["removal"] = time.monotonic() - begin
        said["left"] = [p.pid for p in processes if p.is_running()]

        more = d.addprocs(d.DaskManager(client, 3))
        said["more"] = len(more)
        victim = psutil.Process(d.remotecall_fetch(os.getpid, more[0]))
        future = d.remotecall(time.sleep, more[0], 100)
        victim.kill()
        said["killed"] = error_of(lambda: future.fetch(timeout=20))
        d.rmprocs(more)
        said["no_exename"] = error_of(lambda: d.addprocs(d.DaskManager(client, 1), exename="/no/such/python"))

        crash = subprocess.run([sys.executable, "-c", textwrap.dedent(CRASH), cluster.scheduler_address],
                               stdout=subprocess.PIPE, text=True, timeout=60)
        ospid = int(crash.stdout.split()[-1])
        wait_until(lambda: not psutil.pid_exists(ospid), 20)
        said["crash"] = crash.returncode

        (pid,) = d.addprocs(d.DaskManager(client, 1))
        future = d.remotecall(time.sleep, pid, 100)
        psutil.Process(d.remotecall_fetch(os.getppid, pid)).kill()
        said["host_dies"] = error_of(lambda: future.fetch(timeout=20))
        client.wait_for_workers(2, timeout=20)
        (pid,) = d.addprocs(d.DaskManager(client, 1))
        said["future"] = d.remotecall(time.sleep, pid, 100)
        cluster.scale(0)
        wait_until(lambda: d.procs() == [1], 20)

    if __name__ == "__main__":
        main()
"""


@pytest.fixture(scope="module")
def said():
    """Run the script once, and give what it has found."""
    done = run_script(SCRIPT, timeout=220)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    found = next(line for line in done.stdout.splitlines() if line.startswith("SAID "))
    return {**json.loads(found.removeprefix("SAID ")), "output": done.stdout}


@pytest.mark.timeout(240)
def test_workers_are_members_like_any_other(said):
    assert said["pids"] == [2, 3]
    assert said["pmap"] == list(range(20, 0, -1))
    assert said["peers"] == 3
    assert "      From worker 2:\tprinted there\n" in said["output"]


def test_each_dask_worker_has_one_and_works_on(said):
    assert said["hosts"] == said["dask"]
    assert said["dask_works_on"] == 10
    assert said["more"] == 3


def test_the_cookie_is_in_no_argument_and_in_no_environment(said):
    assert said["told"] == [False, False]


def test_they_end_with_rmprocs(said):
    assert said["left"] == []
    assert said["removal"] < 4


def test_one_that_is_killed_is_named(said):
    assert said["killed"][0] == "ProcessExitedException"


def test_one_that_cannot_be_started_is_an_error_that_says_why(said):
    name, text = said["no_exename"]
    assert name == "LaunchWorkerError"
    assert "/no/such/python" in text


def test_they_end_with_their_dask_worker_with_the_cluster_and_after_a_crash_of_process_1(said):
    assert said["host_dies"][0] == "ProcessExitedException"
    assert said["client_closed"][0] == "ProcessExitedException"
    assert said["crash"] == -9


def test_a_closed_client_is_an_error(said):
    assert said["closed_client"] is not None


def test_arguments_are_checked_where_the_manager_is_made():
    with pytest.raises(TypeError, match=r"distributed\.Client, not str"):
        d.DaskManager("tcp://127.0.0.1:1")
