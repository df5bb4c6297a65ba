"""What packages say of themselves: the page that an index shows, and the extras."""

import re
import runpy
import tomllib

from support_documents import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHECKS = runpy.run_path(str(ROOT / "scripts" / "check_packages.py"))


def test_relative_links_are_found():
    page = """[a](docs/a.md) [b](#b) ![c](c.png) [d](https://example.org) [e](mailto:e@example.org)
[f]: examples/f.py "title"
<img src="g.svg"><a href="https://example.org">"""
    assert CHECKS["relative_links"](page) == ["docs/a.md", "c.png", "examples/f.py", "g.svg"]
    assert CHECKS["relative_links"]((ROOT / "README.md").read_text()) != []


def test_the_page_that_an_index_shows_has_no_link_into_the_repository():
    assert CHECKS["relative_links"]((ROOT / PROJECT["readme"]).read_text()) == []


def test_the_page_that_an_index_shows_names_every_extra():
    page = (ROOT / PROJECT["readme"]).read_text()
    assert sorted(re.findall(r"`pydist\[(\w+)\]`", page)) == sorted(PROJECT["optional-dependencies"])


def test_the_page_that_an_index_shows_begins_as_the_readme_does():
    shown, readme = ((ROOT / name).read_text() for name in (PROJECT["readme"], "README.md"))
    first, second = (text.partition("```")[0].split() for text in (shown, readme))
    assert first == second
