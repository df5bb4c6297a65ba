"""What a command line says: options, machine files, subcommands, wrong input."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pydist import _cli, _config, _dialin, _info
from pydist._program import UsageError


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pydist", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.parametrize(
    ("argv", "kind", "target", "args"),
    [
        ([], "none", "", []),
        (["job.py"], "script", "job.py", []),
        (["job.py", "-p", "3", "--", "-h"], "script", "job.py", ["-p", "3", "--", "-h"]),
        (["-c", "x", "-i"], "code", "x", ["-i"]),
        (["-cx", "-c", "y"], "code", "x", ["-c", "y"]),
        (["-m", "pkg.tool", "--version"], "module", "pkg.tool", ["--version"]),
        (["-mpkg", "-p2"], "module", "pkg", ["-p2"]),
        (["-", "a", "-p2"], "stdin", "-", ["a", "-p2"]),
        (["--", "-p"], "script", "-p", []),
        (["--"], "none", "", []),
        (["-c", "", "a"], "code", "", ["a"]),
    ],
)
def test_all_that_follows_the_program_belongs_to_it(argv, kind, target, args):
    program = _cli.parse(["-p", "2", *argv]).program
    assert (program.kind, program.target, program.args) == (kind, target, args)


@pytest.mark.parametrize("argv", [["-p", "3"], ["-p3"], ["--procs", "3"], ["--procs=3"], ["-p1", "-p3"]])
def test_number_of_workers(argv):
    options = _cli.parse([*argv, "job.py"])
    assert (options.count, options.all_cpus, options.program.target) == (3, False, "job.py")


@pytest.mark.parametrize("argv", [["-p", "auto"], ["-pauto"], ["--procs=auto"]])
def test_one_worker_for_each_cpu(argv):
    options = _cli.parse(argv)
    assert (options.count, options.all_cpus) == (None, True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-p"], "-p needs a value"),
        (["-p", "x"], "-p takes a number of workers, or auto, not 'x'"),
        (["-p", "-1"], "not '-1'"),
        (["-p", "1.5"], "not '1.5'"),
        (["--procs="], "not ''"),
        (["-p", "²"], "not '²'"),
        (["--jobs", "3"], "unknown option '--jobs'"),
        (["-x"], "unknown option '-x'"),
        (["-ip"], "unknown option '-ip'"),
        (["--help=yes"], "--help takes no value"),
        (["-c"], "-c needs a value"),
        (["-m"], "-m needs a value"),
        (["-L", "missing.py"], "can't open the file of -L 'missing.py': No such file"),
        (["-L", "."], "can't open the file of -L '.': Is a directory"),
        (["--machine-file", "missing"], "can't open the machine file 'missing': No such file"),
        (["--slurm", "-c", "1"], "--slurm needs -p N outside of an allocation"),
        (["--slurm", "-p", "auto", "-c", "1"], "-p auto is for workers on this machine"),
        (["--slurm=3", "-c", "1"], "--slurm takes no value"),
        (["--mpi", "-c", "1"], "--mpi needs mpirun, or srun"),
        (["--mpi", "-p", "2", "-c", "1"], "no other option can ask for workers"),
        (["missing.py"], "can't open the script 'missing.py': No such file"),
    ],
)
def test_wrong_input_is_named(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    with pytest.raises(SystemExit) as raised:
        _cli.main(argv)
    out, err = capsys.readouterr()
    assert (raised.value.code, out) == (2, "")
    assert err.startswith("pydist: error: ")
    assert message in err.splitlines()[0]
    assert err.splitlines()[1:] == ["Try 'pydist --help'."]


def test_a_load_file_that_is_no_text(tmp_path):
    path = tmp_path / "setup.py"
    path.write_bytes(b"x = '\xff'\n")
    with pytest.raises(UsageError, match=r"can't read the file of -L .*setup\.py"):
        _cli.parse(["-L", str(path)])


def test_a_load_file_says_its_encoding(tmp_path):
    path = tmp_path / "setup.py"
    path.write_bytes("# coding: latin-1\nx = 'é'\n".encode("latin-1"))
    assert _cli.parse(["-L", str(path)]).loads == [("# coding: latin-1\nx = 'é'\n", str(path))]


def test_machine_file():
    text = """
    # the cluster
    node1
    4*node2            # four of them
    auto*me@node3:2222 10.0.0.3:9000
    [fe80::1]:22
    2*[::1]#nocomment
    """
    assert _cli.parse_machines(text, "hosts") == [
        "node1",
        ("node2", 4),
        ("me@node3:2222 10.0.0.3:9000", "auto"),
        "[fe80::1]:22",
        ("[::1]#nocomment", 2),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0*node", "the count must be a positive number or auto, not '0'"),
        ("-2*node", "not '-2'"),
        ("many*node", "not 'many'"),
        ("*node", "not ''"),
        ("3*", "there is no machine in '3*'"),
        ("node a b", "a line is a machine and at most an address, not 'node a b'"),
    ],
)
def test_a_wrong_line_of_a_machine_file_is_named(line, message):
    with pytest.raises(UsageError) as raised:
        _cli.parse_machines(f"# first\nnode\n{line}\n", "hosts")
    assert str(raised.value).startswith("hosts:3: ")
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n"])
def test_a_machine_file_without_a_machine(text):
    with pytest.raises(UsageError, match=r"^hosts: there is no machine in it$"):
        _cli.parse_machines(text, "hosts")


def test_workers_of_a_machine_file_come_after_those_of_p(tmp_path, monkeypatch):
    path = tmp_path / "hosts"
    path.write_text("2*node1\n")
    calls: list[object] = []
    monkeypatch.setattr("pydist._cluster.addprocs", lambda *given, **params: calls.append(given) or [])
    _cli.start_workers(_cli.parse(["--machine-file", str(path), "-p", "3"]))
    assert calls == [(3,), ([("node1", 2)],)]


def test_what_addprocs_says_of_a_machine_is_a_usage_error(tmp_path, monkeypatch):
    path = tmp_path / "hosts"
    path.write_text("a:b:c\n")

    def addprocs(machines):
        raise ValueError(f"malformed: {machines[0]}")

    monkeypatch.setattr("pydist._cluster.addprocs", addprocs)
    with pytest.raises(UsageError, match=r"hosts: malformed: a:b:c$"):
        _cli.start_workers(_cli.parse(["--machine-file", str(path)]))


def test_the_subcommand_worker_gets_its_arguments(monkeypatch):
    given: list[list[str]] = []
    monkeypatch.setattr(_dialin, "main", lambda argv: given.append(argv) or 7)
    assert _cli.main(["worker", "--connect", "host:1"]) == 7
    assert given == [["--connect", "host:1"]]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_teaches(flag):
    done = run("-p", "2", flag)
    assert (done.returncode, done.stderr) == (0, "")
    for word in [*_cli.WITH_VALUE, *_cli.FLAGS, *_cli.SUBCOMMANDS, "examples:", "PYDIST_WORKER_TIMEOUT"]:
        assert word in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 110


def test_every_variable_that_the_settings_read_is_listed():
    source = Path(_config.__file__).read_text()
    read = set(re.findall(r'"(PYDIST_[A-Z_]+)"', source))
    assert {setting.name for setting in _info.settings()} == read


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version(flag):
    import pydist

    done = run(flag)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pydist {pydist.__version__}\n", "")


def test_info():
    import cloudpickle

    import pydist

    done = run("info", PYDIST_WORKER_TIMEOUT="12.5", PYDIST_MAX_THREADS="many", PYDIST_COOKIE="topsecret")
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(re.findall(r"^  (\S.*?)  +(.*)$", done.stdout, re.MULTILINE))
    assert rows["cloudpickle"] == cloudpickle.__version__
    assert rows["pydist"] in (pydist.__version__, str(Path(pydist.__file__).parent))
    assert rows["usable CPUs"].startswith(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} ")
    assert rows["PYDIST_WORKER_TIMEOUT"] == "12.5 (set)"
    assert "'many'" in rows["PYDIST_MAX_THREADS"]
    assert rows["PYDIST_MESSAGE_MAX"] == f"{64 << 30} (default)"
    assert rows["PYDIST_COOKIE"].startswith("set")
    assert "topsecret" not in done.stdout


def test_info_takes_no_arguments():
    done = run("info", "--all")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--all'" in done.stderr
