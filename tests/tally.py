"""What the tests count for the table at the end of a run."""

from __future__ import annotations

from collections import Counter

bad_inputs = 0
faults: Counter[str] = Counter()
longest_recovery = 0.0


def bad_input(n: int = 1) -> None:
    """Count inputs that no process of the cluster may take."""
    global bad_inputs
    bad_inputs += n


def fault(kind: str, n: int = 1) -> None:
    """Count injected faults of a kind."""
    faults[kind] += n


def recovery(seconds: float) -> None:
    """Note how long it took until all was well after a fault."""
    global longest_recovery
    longest_recovery = max(longest_recovery, seconds)
