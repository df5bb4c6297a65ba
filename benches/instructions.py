"""Count the instructions of calls that do nothing, in process 1 and in the worker, by callgrind.

Counts hardly depend on what else the machine does, so a regression shows where times would not. They are
those of one compiler, Python and C library: write them anew where one of these changes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benches.counted import KINDS, REPEATS

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_name("RESULTS.md")
TOLERANCE = 0.10
ATTEMPTS = 3
SECONDS = 300
SIDES = ("process 1", "worker")
LINE = re.compile(r"^\| (?P<kind>[^|]+?) \| (?P<head>[\d,]+) \| (?P<worker>[\d,]+) \|$", re.MULTILINE)

Counts = dict[str, tuple[int, int]]


def valgrind(out: Path) -> list[str]:
    """Return the command that counts, and writes what it has counted whenever `getppid` is called."""
    return ["valgrind", "--tool=callgrind", "-q", "--dump-before=getppid", f"--callgrind-out-file={out}"]


def wrapper(folder: Path) -> Path:
    """Write a program that is an interpreter whose instructions are counted, for the worker."""
    path = folder / "counted-python"
    command = " ".join(f"'{part}'" for part in (*valgrind(folder / "worker"), sys.executable))
    path.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    path.chmod(0o700)
    return path


def totals(folder: Path, name: str) -> list[int]:
    """Return what each dump of a process has counted, in the order of the dumps."""
    dumps = [path for path in folder.iterdir() if re.fullmatch(rf"{name}\.\d+", path.name)]
    dumps.sort(key=lambda path: int(path.suffix[1:]))
    return [int(re.search(r"^(?:summary|totals): (\d+)", path.read_text(), re.M)[1]) for path in dumps]


def run_counted(folder: Path) -> str | None:
    """Run `benches.counted` under callgrind, all on one core, and return what went wrong."""
    core = min(os.sched_getaffinity(0))
    command = [*valgrind(folder / "head"), sys.executable, "-m", "benches.counted", str(wrapper(folder))]
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    except subprocess.TimeoutExpired:
        return f"not done after {SECONDS} s"
    return None if done.returncode == 0 else done.stdout[-2000:]


def count() -> Counts:
    """Return the instructions of one call of each kind, in process 1 and in the worker."""
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (Debian, Ubuntu: apt-get install valgrind)")
    for _ in range(ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix="pydist-count-") as name:
            problem = run_counted(Path(name))
            if problem is None:
                sides = [per_call(totals(Path(name), side)) for side in ("head", "worker")]
                return {kind: (sides[0][kind], sides[1][kind]) for kind in KINDS}
            print(problem, file=sys.stderr)
    sys.exit(f"the counted program has failed {ATTEMPTS} times")


def per_call(dumps: list[int]) -> dict[str, int]:
    """Divide the last dumps, one for each kind in each repetition, by the number of calls."""
    wanted = REPEATS * len(KINDS)
    if len(dumps) < wanted + 1:
        sys.exit(f"{len(dumps)} dumps of callgrind where {wanted + 1} were expected")
    last = dumps[-wanted:]
    return {
        kind: round(median(last[index :: len(KINDS)]) / calls)
        for index, (kind, calls) in enumerate((kind, each.calls) for kind, each in KINDS.items())
    }


def table(counts: Counts) -> str:
    lines = [f"| call | {SIDES[0]} | {SIDES[1]} |", "|---|---:|---:|"]
    lines += [f"| {kind} | {head:,} | {worker:,} |" for kind, (head, worker) in counts.items()]
    return "\n".join(lines)


def committed() -> Counts:
    text = TABLE.read_text(encoding="utf-8")
    return {
        found["kind"]: (int(found["head"].replace(",", "")), int(found["worker"].replace(",", "")))
        for found in LINE.finditer(text)
    }


def write(counts: Counts) -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    TABLE.write_text(
        f"""# Instructions per call

What one call takes of the processor, counted by callgrind on {os.uname().machine} with CPython {version}:
everything that both processes do for it, the interpreter included. `python -m benches.instructions --write`
counts again and writes this file; `--check`, which CI runs, fails where a count has grown by more than
{TOLERANCE:.0%}.

{table(counts)}

Each call is one of `abs(-3)` on the one worker, whose the channel is too. A round trip is `remotecall_fetch`;
an element of `pmap` goes in a message of its own.
""",
        encoding="utf-8",
    )


def regressions(now: Counts, before: Counts) -> list[str]:
    """Return a line for each count that has grown too much, or is not in the table."""
    found = []
    for kind, counts in now.items():
        if kind not in before:
            found.append(f"{kind}: not in {TABLE.name}")
            continue
        for side, new, old in zip(SIDES, counts, before[kind], strict=True):
            if new > old * (1 + TOLERANCE):
                found.append(f"{kind}, {side}: {new:,} instructions, {new / old - 1:.0%} more than {old:,}")
    return found


def least(one: Counts, other: Counts) -> Counts:
    return {kind: (min(one[kind][0], other[kind][0]), min(one[kind][1], other[kind][1])) for kind in one}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.instructions", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help=f"write the counts to {TABLE.name}")
    what.add_argument("--check", action="store_true", help=f"fail where they exceed those of {TABLE.name}")
    options = parser.parse_args()
    counts = count()
    if options.check:
        # How many messages are read at once varies: a count that is too high once may be chance.
        for _ in range(ATTEMPTS - 1):
            if not regressions(counts, committed()):
                break
            counts = least(counts, count())
    print(table(counts))
    if options.write:
        write(counts)
    elif options.check and (found := regressions(counts, committed())):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
