"""Benchmark pydist beside its peers and the machine's limits, and print tables of medians and ratios."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benches.fresh import Result, measure_in_fresh_process
from benches.model import FULL, QUICK, Contestant, Row, Scale
from benches.record import record
from benches.rows import ROWS
from benches.table import report


def contestants_of(row: Row, scale: Scale) -> list[Contestant]:
    """Return the contestants of a row, of a curve those points that the scale has."""
    if not row.curve:
        return list(row.contestants)
    names = set(map(str, scale.points(tuple(int(each.name) for each in row.contestants))))
    return [each for each in row.contestants if each.name in names]


def measure_rows(rows: Sequence[Row], rounds: int, scale: Scale) -> dict[str, dict[str, Result]]:
    """Measure all contestants in turn, round after round, so that drift of the machine hits all."""
    results = {row.name: {each.name: Result() for each in contestants_of(row, scale)} for row in rows}
    for number in range(1, rounds + 1):
        for row in rows:
            for contestant in contestants_of(row, scale):
                print(f"round {number} of {rounds}: {row.name}, {contestant}", file=sys.stderr, flush=True)
                result = measure_in_fresh_process(row, contestant, scale)
                if result.problem is not None:
                    print(f"  {result.problem}", file=sys.stderr, flush=True)
                results[row.name][contestant.name].add(result)
    return results


def chosen_rows(names: str | None) -> list[Row]:
    """Return the rows with these names, all of them by default; raise ValueError for a name of none."""
    if names is None:
        return list(ROWS)
    wanted = names.split(",")
    unknown = set(wanted).difference(row.name for row in ROWS)
    if unknown:
        raise ValueError(f"no row is named {', '.join(sorted(unknown))}; --list shows the names")
    return [row for row in ROWS if row.name in wanted]


def parse_arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="fresh processes of each contestant (default 3)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--only", metavar="ROW,…", help="these rows only")
    parser.add_argument("--list", action="store_true", help="print the names of the rows and their titles")
    parser.add_argument(
        "--budget", type=float, metavar="S", help="seconds for the samples of a contestant in one round"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the results to this PNG file")
    return parser, parser.parse_args()


def main() -> None:
    parser, options = parse_arguments()
    scale = QUICK if options.quick else FULL
    if options.budget is not None:
        scale = replace(scale, budget=options.budget)
    try:
        rows = chosen_rows(options.only)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for row in rows:
            print(f"{row.name:20} {row.title(scale)}")
        return
    results = measure_rows(rows, options.rounds, scale)
    if options.json:
        text = json.dumps(record(rows, scale, results), indent=2, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")
    print(report(rows, scale, results))
    if options.plot:
        from benches.plot import plot

        plot(rows, scale, results, options.plot)


if __name__ == "__main__":
    main()
