"""What srun is told and what it says; its labelled output; ids by the numbers of tasks."""

import json

import pytest

import pydist as d
from pydist import _mpi, _output, _ranks
from pydist.managers import _labelled, _srun, _srun_task

PARAMS = {"dir": "/work", "exename": "/usr/bin/python3", "exeflags": ["-u"]}


def command(options=None, environment=None):
    words = _srun.command("/bin/srun", 3, options or {}, PARAMS, environment or {})
    return words[words.index("/bin/srun") :]


def test_a_job_of_its_own():
    words = command({"partition": "gpu", "time": "1:00:00", "cpus_per_task": 4, "exclusive": True})
    assert words[-4:-1] == ["/usr/bin/python3", "-u", "-c"]
    flags = words[1:-4]
    assert flags[:2] == ["--ntasks=3", "--chdir=/work"]
    expected = {"--partition=gpu", "--time=1:00:00", "--cpus-per-task=4", "--exclusive", "--job-name=pydist"}
    assert expected <= set(flags)
    assert "--overlap" not in flags


def test_a_step_takes_the_cpus_of_the_allocation():
    inside = {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "2"}
    assert "--cpus-per-task=2" in command({}, inside)
    assert "--cpus-per-task=2" not in command({"cpus_per_task": 1}, inside)
    assert not any(word.startswith("--job-name") for word in command({}, inside))
    assert "--overlap" in command({}, {**inside, "SLURM_STEP_ID": "0"})
    assert "--overlap" not in command({"exact": True}, {**inside, "SLURM_STEP_ID": "0"})


@pytest.mark.parametrize(
    ("options", "environment", "count"),
    [
        ({}, {}, 1),
        ({"nodes": 3}, {}, 3),
        ({"nodes": "2", "ntasks_per_node": 4}, {}, 8),
        ({}, {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "5"}, 5),
        ({}, {"SLURM_JOB_ID": "1", "SLURM_NPROCS": "6"}, 6),
        ({}, {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3"}, 3),
        ({}, {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS_PER_NODE": "2(x3)"}, 6),
        ({"ntasks_per_node": 2}, {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "3", "SLURM_NTASKS": "9"}, 6),
        ({}, {"SLURM_NTASKS": "5"}, 1),
    ],
)
def test_how_many_tasks_where_nobody_says_it(options, environment, count):
    assert _srun.count_tasks(options, environment) == count


@pytest.mark.parametrize(
    ("arguments", "options", "error", "says"),
    [
        ((0,), {}, ValueError, "ntasks must be positive, not 0"),
        ((True,), {}, TypeError, "not bool"),
        (("4",), {}, TypeError, "not str"),
        ((1,), {"label": True}, ValueError, "sets the option label itself"),
        ((1,), {"export": "NONE"}, ValueError, "sets the option export itself"),
        ((1,), {"N": 3}, ValueError, "'N' is no option of Slurm"),
        ((1,), {"time": {}}, TypeError, "the option time must be"),
    ],
)
def test_wrong_parameters(arguments, options, error, says):
    with pytest.raises(error, match=says):
        d.SlurmManager(*arguments, **options)


def test_what_srun_says():
    assert _srun.is_queued("srun: job 7 queued and waiting for resources")
    assert _srun.is_allocated("srun: job 7 has been allocated resources")
    assert _srun.job_of("srun: job 7 has been allocated resources") == "7"
    assert not _srun.is_queued("srun: error: Unable to allocate resources: queued and waiting for resources")
    ends = list(_srun.ends_of("srun: error: n[1-2]: tasks 0-1,4: Segmentation fault (core dumped)"))
    assert ends == [(0, -11), (1, -11), (4, -11)]
    assert list(_srun.ends_of("srun: error: n1: task 3: unheard of")) == [(3, None)]
    assert list(_srun.ends_of("srun: error: Unable to create step for job 12: no")) == []


@pytest.mark.parametrize(
    "line", [b"", b"pydist_task_start:", b"pydist_task_start:1#x#h", b"pydist_task_start:1#2#"]
)
def test_a_malformed_first_line_is_another_line(line):
    assert _srun_task.parse_start(line) is None


def labelled():
    """Return a labelled pipe of eleven tasks that feeds lists, and these."""
    lines: dict[int, list[bytes]] = {rank: [] for rank in range(11)}
    own: list[str] = []

    class Into(_output.Stream):
        def __init__(self, into):
            super().__init__(2, -1, lambda: None)
            self.into = into

        def _print(self, data):
            self.into.append(data)

    streams = {rank: Into(into) for rank, into in lines.items()}
    ends: list[int] = []
    pipe = _labelled.Labelled(
        -1,
        streams.get,
        _labelled.OwnStream(own.append),
        lambda rank, line: line == b"secret",
        lambda: ends.append(1),
    )
    return pipe, lines, own, ends


def test_lines_go_to_their_tasks_however_they_are_cut():
    text = (
        b" 0: one\n10: ten\nsrun: error: x: task 1: Killed\n 0:  two\n99: nobody\n 0: secret\n 1: \n 1: last"
    )
    for size in (1, 3, 7, len(text)):
        pipe, lines, own, ends = labelled()
        for start in range(0, len(text), size):
            pipe.feed(text[start : start + size])
        pipe.finish()
        assert b"".join(lines[0]) == b"one\n two\n"
        assert b"".join(lines[10]) == b"ten\n"
        assert b"".join(lines[1]) == b"\nlast\n"
        assert own == ["srun: error: x: task 1: Killed", "99: nobody"]
        assert ends == [1]


def test_a_line_without_end_is_not_kept_whole():
    pipe, lines, _, _ = labelled()
    data = b"x" * (3 * _output.LINE_BYTES)
    pipe.feed(b" 4: ")
    for start in range(0, len(data), 1000):
        pipe.feed(data[start : start + 1000])
        assert len(pipe._partial) <= _output.LINE_BYTES
    pipe.feed(b"\n 5: next\n")
    assert b"".join(lines[4]) == data + b"\n"
    assert lines[5] == [b"next\n"]


def test_ids_by_number():
    ranges = _ranks._ranges([2, 3, 4, 9, 11, 12])
    assert ranges == [[2, 3], [9, 1], [11, 2]]
    assert [_ranks.id_at(json.loads(json.dumps(ranges)), rank) for rank in range(6)] == [2, 3, 4, 9, 11, 12]
    with pytest.raises(ValueError, match="more tasks than process 1 has ids for"):
        _ranks.id_at(ranges, 6)


def settings(host, addresses):
    return {"host": host, "head": "unix:/nowhere/1", "addresses": addresses}


def test_which_addresses_a_task_dials(monkeypatch):
    both = ["tls:10.0.0.5:7", "tls:127.0.0.1:7"]
    monkeypatch.setattr(_ranks._session, "host", lambda: "here")
    assert _ranks.targets(settings("here", both)) == ["tls:127.0.0.1:7", "tls:10.0.0.5:7"]
    assert _ranks.targets(settings("there", both)) == ["tls:10.0.0.5:7"]
    with pytest.raises(ValueError, match="process 1 runs on there and listens on loopback alone"):
        _ranks.targets(settings("there", ["tcp:127.0.0.1:7"]))


@pytest.mark.parametrize(
    ("environment", "steps", "place"),
    [
        ({}, True, None),
        ({"PMI_RANK": "2", "PMI_SIZE": "3"}, False, (2, 3)),
        ({"OMPI_COMM_WORLD_RANK": "0"}, False, None),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, True, (1, 4)),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, False, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, True, None),
    ],
)
def test_the_place_of_a_process_under_mpirun(environment, steps, place):
    assert _mpi.place(environment, steps=steps) == place
