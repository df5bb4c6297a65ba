"""The code blocks of a page of the documentation, and the page run as one program.

A block of `python` is run, unless it has a title, as code of other systems has. A block of `text` right
behind it is what it prints, where `...` stands for any text. A comment `# prints X` says that a line X is
among that.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(`{3,})[ ]*([\w.+-]*)[ ]*(.*)$")
PRINTS = re.compile(r"  # prints (.+)$", re.MULTILINE)
MARK = "--- the end of the block in line {} ---"


@dataclass
class Block:
    """A fenced block: `line` is that of its first line of code, counted from 1."""

    language: str
    options: str
    text: str
    line: int
    end: int

    @property
    def runs(self) -> bool:
        return self.language == "python" and "title=" not in self.options


@dataclass
class Example:
    """A block that is run, and the output that the page shows for it."""

    block: Block
    output: str | None


def blocks_of(page: Path) -> list[Block]:
    """Give the fenced blocks of a page."""
    found = []
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        if (start := FENCE.match(lines[at])) is None:
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i].rstrip() == start[1]), None)
        assert end is not None, f"{page}, line {at + 1}: the block is not closed"
        text = "".join(f"{line}\n" for line in lines[at + 1 : end])
        found.append(Block(start[2], start[3], text, at + 2, end + 1))
        at = end + 1
    return found


def examples_of(page: Path) -> list[Example]:
    """Give the blocks of a page that are run."""
    lines = page.read_text().splitlines()
    found = []
    blocks = blocks_of(page)
    for i, block in enumerate(blocks):
        if not block.runs:
            continue
        after = blocks[i + 1] if i + 1 < len(blocks) else None
        shown = after is not None and after.language == "text"
        shown = shown and not any(lines[block.end : after.line - 2])
        found.append(Example(block, after.text if shown else None))
    return found


def program_of(page: Path) -> str:
    """Give a page as a program whose lines have the numbers that they have in the page."""
    lines = [""] * len(page.read_text().splitlines())
    for example in examples_of(page):
        block = example.block
        lines[block.line - 1 : block.end - 1] = block.text.splitlines()
        lines[block.end - 1] = f"print({MARK.format(block.line)!r}, flush=True)"
    return "".join(f"{line}\n" for line in lines)


def check_output(page: Path, output: str) -> None:
    """Fail where the output of a page is not what the page shows.

    Lines that workers print come when they come: they are compared with all that the page shows of them.
    """
    printed = [line for line in output.splitlines() if line.startswith(WORKER)]
    shown = []
    rest = "".join(f"{line}\n" for line in output.splitlines() if not line.startswith(WORKER))
    for example in examples_of(page):
        got, mark, rest = rest.partition(MARK.format(example.block.line) + "\n")
        where = f"{page.name}, line {example.block.line}"
        assert mark, f"{where}: not run to its end; the output was\n{output}"
        for comment in PRINTS.findall(example.block.text):
            assert comment in got.splitlines(), f"{where}: does not print {comment}"
        if example.output is None:
            continue
        lines = example.output.splitlines()
        shown += [line for line in lines if line.startswith(WORKER)]
        want = "".join(f"{line}\n" for line in lines if not line.startswith(WORKER))
        assert matches(want, got), f"{where}: the page shows\n{want}\nbut it prints\n{got}"
    assert rest == ""
    assert sorted(printed) == sorted(shown), f"{page.name}: workers print {printed}, not {shown}"


WORKER = "      From worker "


def matches(want: str, got: str) -> bool:
    """Say whether a text is what a page shows, where `...` stands for any text.

    >>> matches("a ... c\\n", "a b c\\n"), matches("a\\n...\\n", "a\\nb\\nc\\n"), matches("a\\n", "b\\n")
    (True, True, False)
    """
    parts = [re.escape(part) for part in want.split("...")]
    return re.fullmatch(".*".join(parts), got, re.DOTALL) is not None


def replaced(page: Path, folder: Path, change: Callable[[str], str]) -> Path:
    """Give a copy of a page with something changed in it, such as the name of a host."""
    copy = folder / page.name
    copy.write_text(change(page.read_text()))
    return copy
