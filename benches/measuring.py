"""Samples of one contestant, as many as the budget of time allows."""

from itertools import repeat
from time import perf_counter

from benches.model import Contestant, Operation, Reading, Row, Scale, Work

LATENCIES = 5_000
SPAN = 1.0
"""Seconds over which latencies are taken, however soon there are enough: milliseconds tell of one moment."""
FEWEST_LATENCIES = 20
TRIAL = 100


def measure(row: Row, contestant: Contestant, scale: Scale) -> list[float]:
    """Return samples of one operation, or of one step of it."""
    with contestant.open(scale) as measured:
        match measured:
            case Operation():
                if row.quantile is not None:
                    return [latency_quantile(measured, row.quantile, scale.budget)]
                return operation_samples(row, measured, scale.budget)
            case Work():
                return work_samples(row, measured, scale.budget)
            case Reading():
                return [measured.take() for _ in repeat(None, row.samples)]


def timed(operation: Operation, loops: int) -> float:
    begin = perf_counter()
    for _ in repeat(None, loops):
        operation.once()
    seconds = perf_counter() - begin
    if operation.after is not None:
        operation.after()
    return seconds / loops


def operation_samples(row: Row, operation: Operation, budget: float) -> list[float]:
    first = timed(operation, 1)
    if not row.warm:
        return [first]
    loops = clamp(budget / row.samples / first, row.loops)
    samples = clamp(budget / loops / first, row.samples)
    return [timed(operation, loops) for _ in range(samples)]


def work_samples(row: Row, work: Work, budget: float) -> list[float]:
    """Try a few steps first, and take as many as can be done in time."""
    trial = max(1, work.count // TRIAL)
    per_step = min(timed_steps(work, trial) for _ in range(2))
    count = clamp(budget / per_step, work.count)
    samples = clamp(budget / per_step / count, row.samples)
    return [timed_steps(work, count) for _ in range(samples)]


def timed_steps(work: Work, count: int) -> float:
    begin = perf_counter()
    work.run(count)
    return (perf_counter() - begin) / count


def latency_quantile(operation: Operation, q: float, budget: float) -> float:
    """Time operations one by one, as many as there are to be; a fifth of the budget is warm-up."""
    clock = perf_counter
    once = operation.once
    warm_until = clock() + budget / 5
    while clock() < warm_until:
        once()
    latencies = []
    started = clock()
    until, enough = started + budget, started + SPAN
    now = started
    while len(latencies) < FEWEST_LATENCIES or (now < until and (now < enough or len(latencies) < LATENCIES)):
        begin = clock()
        once()
        now = clock()
        latencies.append(now - begin)
    return quantile(latencies, q)


def quantile(values: list[float], q: float) -> float:
    """Return the smallest of the values that at least the share `q` of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def clamp(wanted: float, most: int) -> int:
    return max(1, min(most, int(wanted)))
