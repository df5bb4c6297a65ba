"""Parallel maps."""

from benches.rows.maps import ROWS as ROWS


def test_maps(measure, row, contestant):
    measure(row, contestant)
