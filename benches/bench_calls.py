"""Single calls: their round trip under several conditions, and how many can be made."""

from benches.rows import calls

# The distribution that pytest-benchmark shows has the 99th percentile's row in it.
ROWS = tuple(row for row in calls.ROWS if row.name != "roundtrip_p99")


def test_calls(measure, row, contestant):
    measure(row, contestant)
