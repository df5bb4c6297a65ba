"""The command line: what it says, and carrying it out."""

from __future__ import annotations

import atexit
import os
import re
import sys
from dataclasses import dataclass, field
from typing import Any

from . import _program
from ._program import Program, UsageError

HELP = """\
usage: pydist [options] [script.py | -c code | -m module | -] [arguments]
       pydist info
       pydist top [URL | PID]
       pydist worker [options]

Runs a Python program with worker processes; without a program, an interactive session.
`python -m pydist` is the same as `pydist`.

The program runs as plain Python would run it, in process 1 of a cluster. Workers are up when it begins:
`import pydist as d`, then `d.workers()` lists them, and `d.pmap`, `d.remotecall` and the rest use them.
They end with the program, however it ends; its exit status is that of pydist.

options:
  -p, --procs N|auto      start N workers on this machine; auto: one for each usable CPU
  --machine-file FILE     start workers through ssh on the machines listed in FILE, one a line:
                          [count*][user@]host[:port] [bind_addr[:port]]
                          count is a number or auto, the machine's CPUs; # begins a comment
      --tunnel            have all traffic with these machines go through ssh
  --slurm                 the workers are tasks of Slurm: those of the allocation that this runs in (sbatch,
                          salloc); with -p N, N of them, or outside of one a job of N tasks
  --mpi                   the processes that mpirun has started: the first runs the program, the others are
                          the workers; found out without --mpi, too, unless other workers are asked for
  --allow-plaintext       let connections to other hosts go without encryption (TLS)
      --dashboard[=PORT]  show what the cluster does on a live page on 127.0.0.1; its address is printed
  -L, --load FILE         run FILE in __main__ of every process before the program; may be given several times
  -i, --interactive       an interactive session after the program
  -c CODE                 the program is the text CODE
  -m MODULE               the program is a module, found as an import would find it
  -                       the program is read from standard input, as it is when that is no terminal
  -h, --help              print this
  -V, --version           print the version

Options come before the program; all that follows it is passed to it in sys.argv.

subcommands:
  info                    print versions, limits, paths and settings
  top                     show in the terminal what a program with a dashboard does: `pydist top --help`
  worker                  start a worker that joins a cluster; `pydist worker --help` says how

examples:
  pydist -p 4 simulate.py --steps 1000
  pydist -p auto -c 'import pydist as d; print(d.pmap(abs, range(-5, 0)))'
  pydist -p 2 -L setup.py                       interactive; setup.py has run everywhere
  pydist --machine-file hosts -m mypackage
  sbatch -n 8 --wrap 'pydist --slurm simulate.py'
  mpirun -n 9 pydist simulate.py
  printf '4*node1\\nauto*me@node2:2222\\n' > hosts

environment variables:
"""

WITH_VALUE = {
    "-p": "-p",
    "--procs": "-p",
    "--machine-file": "--machine-file",
    "-L": "-L",
    "--load": "-L",
    "-c": "-c",
    "-m": "-m",
}
FLAGS = {
    "--tunnel": "--tunnel",
    "--slurm": "--slurm",
    "--mpi": "--mpi",
    "--allow-plaintext": "--allow-plaintext",
    "-i": "-i",
    "--interactive": "-i",
    "-h": "-h",
    "--help": "-h",
    "-V": "-V",
    "--version": "-V",
}
SUBCOMMANDS = ("info", "top", "worker")


@dataclass
class Options:
    """A command line, read."""

    count: int | None = None
    all_cpus: bool = False
    machines: list[Any] = field(default_factory=list)
    machine_file: str = ""
    machine_params: dict[str, bool] = field(default_factory=dict)
    dashboard: int | None = None
    slurm: bool = False
    mpi: bool = False
    loads: list[tuple[str, str]] = field(default_factory=list)
    interactive: bool = False
    shows: str = ""
    program: Program = field(default_factory=lambda: Program("none"))

    def params(self) -> dict[str, Any]:
        """The keywords of `addprocs` for workers of Slurm and mpirun."""
        return {name: value for name, value in self.machine_params.items() if name == "allow_plaintext"}


def parse(argv: list[str]) -> Options:
    """Reads a command line, without the name of the command.

    Parameters:
        argv: the arguments. All that follows the program belongs to it.

    Returns:
        What they say.

    Raises:
        UsageError: they make no sense, or a file that they name cannot be read.

    >>> options = parse(["-p", "2", "job.py", "-p", "7"])
    >>> options.count, options.program.target, options.program.args
    (2, 'job.py', ['-p', '7'])
    """
    options = Options()
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            word = rest.pop(0) if rest else ""
        elif word.startswith("-") and word != "-":
            name, value = _option(word, rest)
            if name in ("-c", "-m"):
                options.program = Program("code" if name == "-c" else "module", value, rest)
                return options
            _apply(options, name, value)
            if options.shows:
                return options
            continue
        if word:
            options.program = Program("stdin" if word == "-" else "script", word, rest)
        return options
    return options


def _option(word: str, rest: list[str]) -> tuple[str, str]:
    """Splits an option from its value, which may be the next word."""
    name, equals, value = word.partition("=") if word.startswith("--") else (word[:2], word[2:], word[2:])
    if name == "--dashboard":
        return name, value
    if name in FLAGS:
        if equals:
            raise UsageError(f"unknown option {word!r}" if name == word[:2] else f"{name} takes no value")
        return FLAGS[name], ""
    if name not in WITH_VALUE:
        raise UsageError(f"unknown option {word!r}")
    if not equals:
        if not rest:
            raise UsageError(f"{name} needs a value")
        value = rest.pop(0)
    return WITH_VALUE[name], value


def _apply(options: Options, name: str, value: str) -> None:
    if name == "-p":
        options.all_cpus = value == "auto"
        options.count = None if options.all_cpus else _count(value)
    elif name == "--machine-file":
        options.machine_file = value
        options.machines += parse_machines(_text(value, "the machine file"), value)
    elif name == "-L":
        options.loads.append((_text(value, "the file of -L"), os.path.abspath(value)))
    elif name == "-i":
        options.interactive = True
    elif name in ("--tunnel", "--allow-plaintext"):
        options.machine_params[name[2:].replace("-", "_")] = True
    elif name == "--dashboard":
        options.dashboard = _port(value)
    elif name == "--slurm":
        options.slurm = True
    elif name == "--mpi":
        options.mpi = True
    else:
        options.shows = name


def _count(text: str) -> int:
    if re.fullmatch("[0-9]+", text):
        return int(text)
    raise UsageError(f"-p takes a number of workers, or auto, not {text!r}")


def _port(text: str) -> int:
    if re.fullmatch("[0-9]*", text) and int(text or 0) < 1 << 16:
        return int(text or 0)
    raise UsageError(f"--dashboard takes the number of a port, not {text!r}")


def _text(path: str, what: str) -> str:
    import tokenize

    try:
        with tokenize.open(path) as file:
            return file.read()
    except OSError as error:
        raise UsageError(f"can't open {what} {path!r}: {error.strerror or error}") from None
    except (UnicodeDecodeError, SyntaxError) as error:
        raise UsageError(f"can't read {what} {path!r}: {error}") from None


def parse_machines(text: str, filename: str) -> list[Any]:
    """Reads a machine file.

    Parameters:
        text: its lines: `[count*][user@]host[:port] [bind_addr[:port]]`; `#` begins a comment.
        filename: its name, for errors.

    Returns:
        What `addprocs` takes: a machine, or a pair of a machine and the number of workers there.

    Raises:
        UsageError: a line makes no sense.

    >>> parse_machines("node1  # fast\\n4*me@node2:2222\\nauto*node3", "hosts")
    ['node1', ('me@node2:2222', 4), ('node3', 'auto')]
    """
    machines: list[Any] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = re.sub(r"(^|\s)#.*", "", line).split()
        if not words:
            continue
        place = f"{filename}:{number}"
        count, star, host = words[0].rpartition("*")
        if not host:
            raise UsageError(f"{place}: there is no machine in {line.strip()!r}")
        if len(words) > 2:
            raise UsageError(f"{place}: a line is a machine and at most an address, not {line.strip()!r}")
        machine = " ".join([host, *words[1:]])
        if not star:
            machines.append(machine)
        elif count == "auto":
            machines.append((machine, "auto"))
        elif re.fullmatch("0*[1-9][0-9]*", count):
            machines.append((machine, int(count)))
        else:
            raise UsageError(f"{place}: the count must be a positive number or auto, not {count!r}")
    if not machines:
        raise UsageError(f"{filename}: there is no machine in it")
    return machines


def start_workers(options: Options) -> None:
    """Starts the workers that a command line asks for.

    Raises:
        UsageError: a machine makes no sense.
        LaunchWorkerError: some did not start.
    """
    from ._cluster import addprocs

    if options.slurm:
        _start_in_slurm(options)
    elif options.count is not None or options.all_cpus:
        addprocs(options.count)
    if options.machines:
        try:
            addprocs(options.machines, **options.machine_params)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{options.machine_file}: {error}") from error


def _start_in_slurm(options: Options) -> None:
    from ._cluster import addprocs
    from .managers import _srun
    from .managers.slurm import SlurmManager

    if options.all_cpus:
        raise UsageError(
            "-p auto is for workers on this machine; --slurm alone uses all tasks of the allocation"
        )
    if options.count is None and not _srun.is_inside(os.environ):
        raise UsageError(
            "--slurm needs -p N outside of an allocation; inside of one (sbatch, salloc) it uses all tasks"
        )
    if options.count != 0:
        addprocs(SlurmManager(options.count), **options.params())


def _place(options: Options) -> tuple[int, int] | None:
    """The rank and the number of the processes that mpirun started, where they are the cluster.

    Raises:
        UsageError: they are to be, and nothing has started several; or other workers are asked for, too.
    """
    from . import _mpi

    others = options.count is not None or options.all_cpus or options.slurm or bool(options.machines)
    if options.mpi and others:
        raise UsageError("--mpi takes the workers that mpirun starts: no other option can ask for workers")
    found = None if others or _mpi.is_taken() else _mpi.place(os.environ, steps=options.mpi)
    if options.mpi and found is None:
        raise UsageError("--mpi needs mpirun, or srun: mpirun -n 4 pydist --mpi script.py")
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs the command line of pydist.

    Parameters:
        argv: its arguments; those of this process by default.

    Returns:
        The exit status. What the program raises comes through.
    """
    argv = sys.argv[1:] if argv is None else argv
    atexit.register(_program.keep_interrupt)
    if argv and argv[0] in SUBCOMMANDS:
        return _subcommand(argv[0], argv[1:])
    try:
        options = parse(argv)
        if options.shows:
            return _show(options.shows)
        return _run(options)
    except UsageError as error:
        _program.fail(f"{error}\nTry 'pydist --help'.", 2)
    except BaseException as error:
        _program.hide_own_frames()
        _program.interrupted = isinstance(error, KeyboardInterrupt)
        raise


def _show(what: str) -> int:
    from . import _core, _info

    if what == "-V":
        print("pydist", _core.__version__)
    else:
        print(HELP + _info.settings_help(), end="")
    return 0


def _subcommand(name: str, argv: list[str]) -> int:
    if name == "worker":
        from . import _dialin

        return _dialin.main(argv)
    if name == "top":
        from ._dashboard import terminal

        return terminal.main(argv)
    if argv:
        _program.fail(f"pydist info takes no arguments, not {argv[0]!r}", 2)
    from . import _info

    print(_info.report(), end="")
    return 0


def _run(options: Options) -> int:
    from ._errors import LaunchWorkerError

    place = _place(options)
    if place is not None:
        from . import _mpi

        _mpi.take()
        if place[0] > 0:
            return _mpi.serve(place[0])
    program = options.program
    if program.kind == "none" and not options.interactive and not _is_terminal():
        program.kind = "stdin"
    greets = program.kind == "none"
    asks = greets or options.interactive
    try:
        code = program.prepare()
    except SyntaxError as error:
        if not asks:
            raise
        _program.print_error(error)
        program, code = Program("none"), None
    try:
        if options.dashboard is not None:
            _show_dashboard(options.dashboard)
        start_workers(options)
        if place is not None and place[1] > 1:
            _take_up_others(place[1], options)
    except LaunchWorkerError as error:
        _program.fail(str(error), 1)
    for text, filename in options.loads:
        _program.load_everywhere(text, filename)
    if not asks:
        program.run(code)
        return 0
    try:
        program.run(code)
    except BaseException as error:
        _program.print_error(error)
    from . import _console

    return _console.interact(greets=greets)


def _show_dashboard(port: int) -> None:
    from ._dashboard import announced

    try:
        announced(port)
    except (ImportError, OSError) as error:
        _program.fail(str(error), 1)


def _take_up_others(size: int, options: Options) -> None:
    from . import _mpi
    from ._cluster import addprocs

    addprocs(_mpi.MpiManager(size), **options.params())


def _is_terminal() -> bool:
    return sys.stdin is None or sys.stdin.isatty()
