"""The results as JSON, with what they were measured on."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from statistics import median

from benches.fresh import Result
from benches.model import Contestant, Row, Scale
from benches.table import best

PACKAGES = ("pydist", "numpy", "joblib", "distributed", "ray", "mpi4py", "ipyparallel")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, object]:
    return {
        "processors": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": os.getloadavg(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def row_record(row: Row, scale: Scale, results: Mapping[str, Result]) -> dict[str, object]:
    contestants = {each.name: each for each in row.contestants}
    record: dict[str, object] = {
        "title": row.title(scale),
        "unit": row.unit,
        "curve": row.curve,
        "contestants": {
            name: contestant_record(contestants[name], result) for name, result in results.items()
        },
    }
    ours = best(row, "pydist", results)
    for role in ("peer", "limit"):
        other = best(row, role, results)
        if not row.curve and ours and other and other[1] > 0:
            record[role] = {"name": other[0].name, "ratio": ours[1] / other[1]}
    return record


def contestant_record(contestant: Contestant, result: Result) -> dict[str, object]:
    return {
        "role": contestant.role,
        "median": median(result.samples) if result.samples else None,
        "samples": result.samples,
        "problem": result.problem,
    }


def record(
    rows: Sequence[Row], scale: Scale, results: Mapping[str, Mapping[str, Result]]
) -> dict[str, object]:
    """Return everything that was measured; values are seconds, bytes or counts, less is better."""
    return {
        "scale": scale.name,
        "machine": machine(),
        "rows": {row.name: row_record(row, scale, results[row.name]) for row in rows},
    }
