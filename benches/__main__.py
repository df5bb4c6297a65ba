"""Benchmark pydist beside its peers and print a Markdown table: `python -m benches --help`."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benches.model import FULL, QUICK, Contestant, Row
from benches.rows import ROWS
from benches.table import HEADER, Samples, contestant_lines, table_line

ROOT = Path(__file__).parents[1]


def measure_in_fresh_process(row: Row, contestant: Contestant, quick: bool) -> list[float]:
    command = [sys.executable, "-m", "benches.once", row.name, contestant.name, *["--quick"] * quick]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    samples: list[float] = json.loads(done.stdout)
    return samples


def measure_rows(rows: Sequence[Row], rounds: int, quick: bool) -> dict[str, Samples]:
    """Measure all contestants in turn, round after round, so that drift of the machine hits all."""
    results: dict[str, Samples] = {row.name: {each.name: [] for each in row.contestants} for row in rows}
    for number in range(1, rounds + 1):
        for row in rows:
            for contestant in row.contestants:
                print(f"round {number} of {rounds}: {row.name}, {contestant}", file=sys.stderr)
                results[row.name][contestant.name] += measure_in_fresh_process(row, contestant, quick)
    return results


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="fresh processes of each contestant (default 3)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--json", type=Path, metavar="F", help="write every sample to this file")
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="this row only")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    scale = QUICK if options.quick else FULL
    rows = [row for row in ROWS if options.row is None or row.name in options.row]
    results = measure_rows(rows, options.rounds, options.quick)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        print(contestant_lines(row, results[row.name]))
    print(f"\n{HEADER}")
    for row in rows:
        print(table_line(row, scale, results[row.name]))


if __name__ == "__main__":
    main()
