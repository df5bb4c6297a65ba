"""The Markdown table of medians and ratios."""

from statistics import median

from benches.model import Contestant, Row, Scale

Samples = dict[str, list[float]]

HEADER = "| | pydist | best peer | pydist : peer | floor | pydist : floor |\n|---|---:|---:|---:|---:|---:|"


def duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"


def fastest(row: Row, role: str, samples: Samples) -> tuple[Contestant, float]:
    found = [(each, median(samples[each.name])) for each in row.contestants if each.role == role]
    return min(found, key=lambda pair: pair[1])


def table_line(row: Row, scale: Scale, samples: Samples) -> str:
    _, ours = fastest(row, "pydist", samples)
    cells = [row.title(scale), duration(ours)]
    for role in ("peer", "floor"):
        contestant, seconds = fastest(row, role, samples)
        cells += [f"{duration(seconds)} ({contestant})", f"{ours / seconds:.2f}"]
    return "| " + " | ".join(cells) + " |"


def contestant_lines(row: Row, samples: Samples) -> str:
    """Return the median of every contestant of a row, with the fastest and slowest sample."""
    lines = [f"{row.name}:"]
    for each in row.contestants:
        values = samples[each.name]
        spread = f"{duration(min(values))} to {duration(max(values))}"
        lines.append(f"  {each.name}: {duration(median(values))} ({spread}, {len(values)} samples)")
    return "\n".join(lines)
