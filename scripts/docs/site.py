"""What MkDocs needs beside `mkdocs.yml`: pages from files outside `docs/`, and links to them.

The pages are written to be read beside the code, so that they link to `../README.md` or `../examples/x.py`.
Those files become pages of the site, and the links to them, and to folders, become links to these pages.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
TEXTS = {
    "README.md": "overview.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
    "benches/RESULTS.md": "instructions.md",
}
"""Pages that stand outside `docs/`, and their names on the site."""
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {page: (ROOT / name).read_text() for name, page in TEXTS.items()}
    made |= {f"{path.relative_to(ROOT).with_suffix('.md')}": _code_page(path) for path in _examples()}
    made["examples.md"] = _list(
        "Examples",
        [f"examples/{path.stem}.md" for path in _examples()],
        [_says(path) for path in _examples()],
    )
    decisions = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    titles = [path.read_text().partition("\n")[0].lstrip("# ") for path in decisions]
    made["decisions.md"] = _list("Decisions", [f"adr/{path.name}" for path in decisions], titles)
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page into links between pages."""
    uri = page.file.src_uri
    source = next((name for name, page_uri in TEXTS.items() if page_uri == uri), f"docs/{uri}")

    def turned(match: re.Match[str]) -> str:
        target = normpath(f"{PurePosixPath(source).parent}/{match[1]}")
        found = _page_of(target)
        return match[0] if found is None else relpath(found, PurePosixPath(uri).parent) + (match[2] or "")

    return LINK.sub(turned, markdown)


def _page_of(target: str) -> str | None:
    """Give the page of a file of the repository."""
    if target in TEXTS:
        return TEXTS[target]
    if target == "docs/adr":
        return "decisions.md"
    if target == "examples":
        return "examples.md"
    if target.startswith("examples/"):
        return str(PurePosixPath(target).with_suffix(".md"))
    return target.removeprefix("docs/") if target.startswith("docs/") else None


def _examples() -> list[Path]:
    return sorted((ROOT / "examples").glob("*.py"))


def _says(path: Path) -> str:
    """Give the first line of the docstring of an example."""
    return path.read_text().partition('"""')[2].partition("\n")[0]


def _code_page(path: Path) -> str:
    return f"# {path.name}\n\n```python\n{path.read_text()}```\n"


def _list(title: str, names: list[str], texts: list[str]) -> str:
    lines = [f"- [{text}]({name})" for name, text in zip(names, texts, strict=True)]
    return "\n".join([f"# {title}", "", *lines, ""])
