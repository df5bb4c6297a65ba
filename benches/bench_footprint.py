"""What workers cost to start and to have."""

from benches.rows.footprint import ROWS as ROWS


def test_footprint(measure, row, contestant):
    measure(row, contestant)
