"""How objects are shown in notebooks: small tables, in the colours of the page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

LONG = 120
"""A longer text loses its end."""


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Makes a table of rows of text below a heading.

    >>> table(["a"], [["<1>"]])
    '<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;1&gt;</td></tr></tbody></table>'
    """
    body = "".join(f"<tr>{_cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{_cells('th', heading)}</tr></thead><tbody>{body}</tbody></table>"


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def card(title: str, facts: Mapping[str, object]) -> str:
    """Makes a table of one object: what is known of it, by name.

    >>> print(card("Future 1.2", {"process": 2}).partition("<tbody>")[2])
    <tr><td>process</td><td>2</td></tr></tbody></table>
    """
    return table([title, ""], [[name, short(fact)] for name, fact in facts.items()])


def blocks(heading: Sequence[str], rows: Iterable[tuple[str, str]]) -> str:
    """Makes a table of names and texts of several lines.

    >>> print(blocks(["a", "b"], [("1", "x < y")]).partition("<tbody>")[2])
    <tr><td>1</td><td style="text-align: left"><pre>x &lt; y</pre></td></tr></tbody></table>
    """
    left = 'style="text-align: left"'
    body = "".join(
        f"<tr><td>{html.escape(name)}</td><td {left}><pre>{html.escape(text)}</pre></td></tr>"
        for name, text in rows
    )
    return f"<table><thead><tr>{_cells('th', heading)}</tr></thead><tbody>{body}</tbody></table>"


def short(value: object) -> str:
    """Returns the text of a value on one line, without its end where that is long; never raises."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except Exception as error:
        text = f"<its __repr__ raised {type(error).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= LONG else f"{text[: LONG - 1]}…"


def several(pids: Iterable[int]) -> str:
    """Returns the text of some ids.

    >>> several([2, 3, 4, 7])
    '2-4, 7'
    """
    runs: list[list[int]] = []
    for pid in sorted(pids):
        if runs and runs[-1][1] == pid - 1:
            runs[-1][1] = pid
        else:
            runs.append([pid, pid])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "none"
