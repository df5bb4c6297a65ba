"""How costs grow."""

from benches.rows.curves import ROWS as ROWS


def test_curves(measure, row, contestant):
    measure(row, contestant)
