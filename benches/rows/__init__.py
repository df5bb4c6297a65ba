"""The rows of the benchmark table, defined once for the command and for pytest."""

from benches.rows import calls, channels, curves, data, footprint, maps

ROWS = (*calls.ROWS, *maps.ROWS, *data.ROWS, *channels.ROWS, *footprint.ROWS, *curves.ROWS)

__all__ = ["ROWS"]
