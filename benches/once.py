"""One contestant of one row in a process of its own: `python -m benches.once ROW CONTESTANT [--quick]`.

Prints the samples as a JSON list of seconds.
"""

import argparse
import json

from benches.model import FULL, QUICK
from benches.rows import ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row")
    parser.add_argument("contestant")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    (row,) = (row for row in ROWS if row.name == options.row)
    (contestant,) = (each for each in row.contestants if each.name == options.contestant)
    print(json.dumps(row.measure(contestant, QUICK if options.quick else FULL)))


if __name__ == "__main__":
    main()
