"""One contestant of one row in a process of its own: `python -m benches.once ROW CONTESTANT SCALE FILE`.

Writes the samples to the file as a JSON list.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from benches.measuring import measure
from benches.model import SCALES
from benches.rows import ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row")
    parser.add_argument("contestant")
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("file", type=Path)
    parser.add_argument("--budget", type=float)
    options = parser.parse_args()
    scale = SCALES[options.scale]
    if options.budget is not None:
        scale = replace(scale, budget=options.budget)
    (row,) = (row for row in ROWS if row.name == options.row)
    (contestant,) = (each for each in row.contestants if each.name == options.contestant)
    options.file.write_text(json.dumps(measure(row, contestant, scale)), encoding="utf-8")


if __name__ == "__main__":
    main()
