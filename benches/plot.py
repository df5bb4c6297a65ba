"""The results as a picture: how many times ahead of the best peer pydist is, and the curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benches.fresh import Result
from benches.model import Row, Scale
from benches.table import best, value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AHEAD, BEHIND = "#2a7f62", "#c8553d"


def plot(rows: Sequence[Row], scale: Scale, results: Mapping[str, Mapping[str, Result]], path: Path) -> None:
    """Write the picture to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    bars = [(row, times) for row in rows if (times := times_ahead(row, results[row.name])) is not None]
    curves = [row for row in rows if row.curve and row.unit == "s"]
    height = max(2.5, 0.32 * len(bars) + 1.2)
    figure = Figure(figsize=(11, height), layout="constrained")
    count = bool(bars) + bool(curves)
    axes = figure.subplots(1, max(1, count), squeeze=False)[0]
    if bars:
        draw_bars(axes[0], [(row.title(scale), times) for row, times in bars])
    if curves:
        draw_curves(axes[-1], curves, scale, results)
    figure.savefig(path, dpi=120)


def times_ahead(row: Row, results: Mapping[str, Result]) -> float | None:
    ours, peer = best(row, "pydist", results), best(row, "peer", results)
    if row.curve or not ours or not peer or ours[1] <= 0 or peer[1] <= 0:
        return None
    return peer[1] / ours[1]


def draw_bars(axes: Axes, bars: list[tuple[str, float]]) -> None:
    titles = [title.replace("`", "") for title, _ in bars]
    times = [value for _, value in bars]
    axes.barh(
        titles, [value - 1 for value in times], left=1, color=[AHEAD if v >= 1 else BEHIND for v in times]
    )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    for index, value in enumerate(times):
        axes.annotate(
            f"{value:.3g}",
            (max(value, 1), index),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_title("times better than the best peer", fontsize=10)


def draw_curves(
    axes: Axes, rows: Sequence[Row], scale: Scale, results: Mapping[str, Mapping[str, Result]]
) -> None:
    for row in rows:
        points = [
            (int(name), value)
            for name in results[row.name]
            if (value := value_of(results[row.name], name)) is not None
        ]
        if points and points[0][1] > 0:
            axes.plot(
                [number for number, _ in points],
                [value / points[0][1] for _, value in points],
                marker="o",
                label=row.title(scale),
            )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_title("cost, as the number grows (1: the first point)", fontsize=10)
    axes.legend(fontsize=7)
