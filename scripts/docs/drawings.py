"""Draw the figures of docs/architecture.md: `python scripts/docs/drawings.py` writes docs/assets/*.svg.

They are shown on light and on dark pages: boxes have colours of their own, lines and labels a grey between.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

LINE = "#808796"
PYTHON, CORE, SYSTEM = "#3b6ea5", "#b5562d", "#5f6674"
FONT = "system-ui, 'DejaVu Sans', sans-serif"


class Drawing:
    """Elements of an SVG, with a title that says what it shows."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.size = f"{width} {height}"
        self.title = title
        self.elements: list[str] = []

    def frame(self, x: float, y: float, width: float, height: float, label: str) -> None:
        """Draw the outline of a process."""
        self.elements.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="none" '
            f'stroke="{LINE}" stroke-width="1.5"/>'
        )
        self.text(x + width / 2, y + 20, label, weight="bold")

    def box(self, x: float, y: float, width: float, colour: str, *lines: str) -> None:
        """Draw a box with lines of text."""
        height = 16 * len(lines) + 14
        self.elements.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{colour}"/>'
        )
        for i, line in enumerate(lines):
            self.text(x + width / 2, y + 20 + 16 * i, line, colour="#ffffff")

    def text(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = LINE,
        weight: str = "normal",
        anchor: str = "middle",
    ) -> None:
        """Write a line of text."""
        self.elements.append(
            f'<text x="{x}" y="{y}" fill="{colour}" font-weight="{weight}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def line(
        self, *points: tuple[float, float], both: bool = False, arrow: bool = True, dash: bool = False
    ) -> None:
        """Draw a line, with an arrow at its end or at both ends."""
        ends = ' marker-end="url(#arrow)"' if arrow else ""
        ends += ' marker-start="url(#arrow)"' if both else ""
        ends += ' stroke-dasharray="3 4"' if dash else ""
        path = " ".join(f"{x},{y}" for x, y in points)
        self.elements.append(
            f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5"{ends}/>'
        )

    def text_of_file(self) -> str:
        """Give the SVG."""
        arrow = (
            '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.size}" role="img" '
            f'font-family="{FONT}" font-size="12.5">\n'
            f"<title>{escape(self.title)}</title>\n<defs>{arrow}</defs>\n"
            + "\n".join(self.elements)
            + "\n</svg>\n"
        )


def draw_cluster() -> str:
    """Draw three processes, and how they are connected."""
    d = Drawing(
        760, 330, "Process 1 and two workers: Python above, the core below, each core connected to each"
    )
    for x, label, program in (
        (10, "process 1", ("your program", "API, pickling")),
        (270, "worker 2", ("executors: threads for calls", "pickling")),
        (530, "worker 3", ("executors: threads for calls", "pickling")),
    ):
        d.frame(x, 10, 220, 220, label)
        d.box(x + 12, 42, 196, PYTHON, *program)
        d.line((x + 110, 92), (x + 110, 120), both=True)
        d.text(x + 118, 110, "pydist._core", anchor="start")
        d.box(x + 12, 122, 196, CORE, "state machine: calls, futures,", "channels, reference counts")
        d.box(x + 12, 176, 196, CORE, "reactor: sockets, timers")
    d.line((190, 208), (190, 262), (320, 262), (320, 208), both=True)
    d.line((440, 208), (440, 262), (580, 262), (580, 208), both=True)
    d.line((120, 208), (120, 300), (650, 300), (650, 208), both=True)
    d.text(255, 254, "at the start")
    d.text(510, 254, "at the first call")
    d.text(385, 293, "connections: Unix sockets, TCP, or through ssh")
    d.text(385, 324, "large buffers on one machine: memory files, mapped by each receiver")
    return d.text_of_file()


def draw_call() -> str:
    """Draw the messages of one remote call."""
    d = Drawing(
        760, 400, "A remote call: from the caller's thread through both cores to an executor, and back"
    )
    columns = (85, 262, 502, 675)
    heads = (
        (PYTHON, "thread of the caller"),
        (CORE, "core of process 1"),
        (CORE, "core of worker 2"),
        (PYTHON, "executor of worker 2"),
    )
    for x, (colour, name) in zip(columns, heads, strict=True):
        d.box(x - 80, 10, 160, colour, name)
        d.line((x, 42), (x, 390), arrow=False, dash=True)
    steps = (
        (0, 1, 75, "pickle of (f, args), buffers"),
        (1, 0, 110, "Future, at once"),
        (1, 2, 145, "one frame: header, pickle, buffers"),
        (2, 3, 180, "next in the queue of calls"),
        (3, 2, 260, "pickle of the value"),
        (2, 1, 295, "it has ended; a small value with it"),
        (0, 1, 330, "fetch()"),
        (1, 0, 365, "the value, unpickled here"),
    )
    for start, end, y, label in steps:
        d.line((columns[start], y), (columns[end], y))
        d.text((columns[start] + columns[end]) / 2, y - 6, label)
    d.box(columns[3] - 70, 200, 140, PYTHON, "f(*args)")
    return d.text_of_file()


def draw_map() -> str:
    """Draw how a map gives batches to workers."""
    d = Drawing(
        760, 270, "A map: the schedule gives batches to workers, and takes back what waits behind a long one"
    )
    d.frame(10, 10, 250, 210, "process 1: pmap")
    d.box(24, 42, 222, PYTHON, "elements, read as needed")
    d.box(24, 84, 222, CORE, "schedule: time per element,", "batches of about 4 ms")
    d.box(24, 158, 222, PYTHON, "values, in order;", "errors, retries")
    for y, label, batch in ((10, "worker 2", "runs batch 3"), (120, "worker 3", "runs a long batch")):
        d.frame(430, y, 320, 100, label)
        d.box(444, y + 34, 150, PYTHON, batch)
        d.box(606, y + 34, 130, SYSTEM, "one more waits")
        d.line((246, 107), (345, 107), (345, y + 49), (444, y + 49))
    d.line((670, 184), (670, 250), (135, 250), (135, 222))
    d.text(400, 243, "taken back without Python, when another worker idles")
    d.text(350, 42, "f once, then batches")
    d.line((430, 195), (246, 195))
    d.text(345, 210, "values of both")
    return d.text_of_file()


DRAWINGS = {"cluster.svg": draw_cluster, "call.svg": draw_call, "map.svg": draw_map}

if __name__ == "__main__":
    for name, draw in DRAWINGS.items():
        (Path(__file__).parents[2] / "docs" / "assets" / name).write_text(draw())
