"""Large arrays to workers and back."""

from benches.rows.data import ROWS as ROWS


def test_data(measure, row, contestant):
    measure(row, contestant)
