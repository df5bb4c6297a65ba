"""Channels and queues."""

from benches.rows.channels import ROWS as ROWS


def test_channels(measure, row, contestant):
    measure(row, contestant)
