"""The rows of the benchmark table, defined once for the command and for pytest."""

from benches import floors, ours, peers
from benches.model import Row

ROUNDTRIP = Row(
    name="roundtrip",
    title=lambda scale: "no-op round trip",
    contestants=(ours.ROUNDTRIP, *peers.ROUNDTRIP, *floors.ROUNDTRIP),
    samples=20,
    loops=200,
)
CALLS = Row(
    name="calls",
    title=lambda scale: f"{scale.calls:,} no-op calls, then all results",
    contestants=(ours.CALLS, *peers.CALLS, *floors.CALLS),
    samples=3,
)
PMAP_SINGLE = Row(
    name="pmap_single",
    title=lambda scale: f"map over {scale.items:,} short calls, one at a time",
    contestants=(ours.PMAP_SINGLE, *peers.MAP_SINGLE, *floors.MAP_SINGLE),
    samples=1,
)
PMAP_AUTO = Row(
    name="pmap_auto",
    title=lambda scale: f"map over {scale.items:,} short calls, in batches",
    contestants=(ours.PMAP_AUTO, *peers.MAP_CHUNKED, *floors.MAP_CHUNKED),
    samples=5,
)
ARRAY_THERE = Row(
    name="array_there",
    title=lambda scale: f"{scale.array_bytes // 1_000_000} MB array to a worker",
    contestants=(ours.ARRAY_THERE, *peers.ARRAY_THERE, *floors.ARRAY_THERE),
    samples=5,
)
ARRAY_BACK = Row(
    name="array_back",
    title=lambda scale: f"{scale.array_bytes // 1_000_000} MB array there and back",
    contestants=(ours.ARRAY_BACK, *peers.ARRAY_BACK, *floors.ARRAY_BACK),
    samples=5,
)
START = Row(
    name="start",
    title=lambda scale: "start of 2 workers, each answers a call",
    contestants=(ours.START, *peers.START, *floors.START),
    samples=3,
)

ROWS = (ROUNDTRIP, CALLS, PMAP_SINGLE, PMAP_AUTO, ARRAY_THERE, ARRAY_BACK, START)
