"""The Markdown tables of medians and ratios."""

from collections.abc import Mapping, Sequence
from statistics import median

from benches.fresh import Result
from benches.model import Contestant, Row, Scale

Results = Mapping[str, Result]

HEADER = "| | pydist | best peer | pydist : peer | limit | pydist : limit |\n|---|---:|---:|---:|---:|---:|"
NOTHING = "-"
SECONDS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
BYTES = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0))
RATES = (("M", 1e6), ("", 1.0))


def significant(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def scaled(value: float, units: Sequence[tuple[str, float]]) -> str:
    for unit, size in units:
        if value >= size:
            return f"{significant(value / size)} {unit}".rstrip()
    unit, size = units[-1]
    return f"{significant(value / size)} {unit}".rstrip()


def shown(row: Row, scale: Scale, value: float) -> str:
    """Return a value in words: seconds, bytes, or a rate where the row has one."""
    if row.per == "B":
        return f"{scaled(row.amount(scale) / value, BYTES)}/s"
    if row.per is not None and value > 0:
        return f"{scaled(row.amount(scale) / value, RATES)} {row.per}/s"
    if row.unit == "B":
        return scaled(value, BYTES)
    if row.unit == "count":
        return f"{value:g}"
    return scaled(value, SECONDS) if value > 0 else "0 s"


def value_of(results: Results, name: str) -> float | None:
    """Return the median of a contestant's samples, where it was measured and has some."""
    result = results.get(name)
    return median(result.samples) if result is not None and result.samples else None


def best(row: Row, role: str, results: Results) -> tuple[Contestant, float] | None:
    """Return the best of a role; of the limits the first, which is the one that the row is held against."""
    found = [
        (each, value)
        for each in row.contestants
        if each.role == role and (value := value_of(results, each.name)) is not None
    ]
    if role == "limit":
        return found[0] if found else None
    return min(found, key=lambda pair: pair[1], default=None)


def ratio(ours: float, theirs: float) -> str:
    return f"{ours / theirs:.2f}" if theirs > 0 else NOTHING


def table_line(row: Row, scale: Scale, results: Results) -> str:
    ours = best(row, "pydist", results)
    cells = [row.title(scale), shown(row, scale, ours[1]) if ours else NOTHING]
    for role in ("peer", "limit"):
        other = best(row, role, results)
        cells.append(f"{shown(row, scale, other[1])} ({other[0]})" if other else NOTHING)
        cells.append(ratio(ours[1], other[1]) if ours and other else NOTHING)
    return "| " + " | ".join(cells) + " |"


def curve_table(row: Row, scale: Scale, results: Results) -> str:
    """Return a curve as a table, with each point against the first one."""
    names = [each.name for each in row.contestants if each.name in results]
    values = [value_of(results, name) for name in names]
    first = next((value for value in values if value), None)
    cells = [shown(row, scale, value) if value is not None else NOTHING for value in values]
    ratios = [ratio(value, first) if value is not None and first else NOTHING for value in values]
    return "\n".join(
        (
            "| " + " | ".join((row.title(scale), *(f"{int(name):,}" for name in names))) + " |",
            "|---|" + "---:|" * len(names),
            "| " + " | ".join(("", *cells)) + " |",
            "| " + " | ".join((": the first", *ratios)) + " |",
        )
    )


def contestant_lines(row: Row, scale: Scale, results: Results) -> str:
    """Return the median of every contestant of a row with the range of its samples, or what is in its way."""
    lines = [f"{row.name}: {row.title(scale)}"]
    for name, result in results.items():
        values = result.samples
        if values:
            spread = f"{shown(row, scale, min(values))} to {shown(row, scale, max(values))}"
            text = f"{shown(row, scale, median(values))} ({spread}, {len(values)} samples)"
            lines.append(f"  {name}: {text}")
        if result.problem is not None:
            lines.append(f"  {name}: {result.problem}")
    return "\n".join(lines)


def report(rows: Sequence[Row], scale: Scale, results: Mapping[str, Results]) -> str:
    parts = [contestant_lines(row, scale, results[row.name]) for row in rows]
    lines = [table_line(row, scale, results[row.name]) for row in rows if not row.curve]
    if lines:
        parts.append("\n".join((HEADER, *lines)))
    parts += [curve_table(row, scale, results[row.name]) for row in rows if row.curve]
    return "\n\n".join(parts)
