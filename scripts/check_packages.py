"""Check the packages in a folder: what they hold, what they need, how large they are.

python scripts/check_packages.py dist
"""

from __future__ import annotations

import re
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

ROOT = Path(__file__).parents[1]
WHEEL_MAX = 3_000_000
"""Bytes that a wheel may have."""
CRATES = ("node", "proto", "py")
"""The folders of `rust/` that the extension module is made of."""
RELATIVE_LINK = re.compile(r"(?:\]\(|^\[[^]]+\]: +|(?:href|src)=\")(?!\w+:|#)([^)\s\"]+)", re.MULTILINE)
"""A link of Markdown, or of HTML in it, to a file beside the page."""


def check_wheel(wheel: Path, project: dict[str, object]) -> list[str]:
    """Say what is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        info = next(name.partition("/")[0] for name in names if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    wrong = _needs(metadata, project)
    if "-cp311-abi3-" not in wheel.name:
        wrong.append("is not for the stable ABI of CPython 3.11")
    if (size := wheel.stat().st_size) >= WHEEL_MAX:
        wrong.append(f"has {size:,} bytes; at most {WHEEL_MAX:,} are allowed")
    sources = {str(path.relative_to(ROOT / "python")) for path in (ROOT / "python").rglob("*.py*")}
    wanted = {name for name in sources if name.endswith((".py", ".pyi"))} | {"pydist/py.typed"}
    wanted |= {f"{info}/licenses/LICENSE"}
    wrong += [f"lacks {name}" for name in sorted(wanted - set(names))]
    if not any(name.startswith("pydist/_core") and name.endswith(".so") for name in names):
        wrong.append("lacks the extension module")
    if "pydist=pydist._cli:main" not in entry_points:
        wrong.append("lacks the command pydist")
    others = {name for name in names if not name.startswith(("pydist/", f"{info}/", "pydist.libs/"))}
    return wrong + [f"holds {name}" for name in sorted(others)]


def check_sdist(sdist: Path, project: dict[str, object]) -> list[str]:
    """Say what is wrong with a source distribution."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        info = archive.extractfile(f"{sdist.name.removesuffix('.tar.gz')}/PKG-INFO")
        assert info is not None
        metadata = message_from_string(info.read().decode())
    wanted = {"Cargo.lock", "Cargo.toml", "LICENSE", "pyproject.toml", "python/pydist/py.typed"}
    wanted |= {str(path.relative_to(ROOT)) for path in ROOT.glob("*.md")}
    patterns = [*(f"rust/{crate}/src/**/*.rs" for crate in CRATES), "docs/**/*.md", "examples/*.py"]
    sources = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    return _needs(metadata, project) + [f"lacks {name}" for name in sorted((wanted | sources) - names)]


def _needs(metadata: Message, project: dict[str, object]) -> list[str]:
    """Say where the metadata are not those of the project."""
    required = metadata.get_all("Requires-Dist") or []
    always = [name for name in required if "extra ==" not in name]
    wrong = []
    if always != ["cloudpickle>=3.0"]:
        wrong.append(f"needs {always}, not cloudpickle alone")
    extras = sorted(metadata.get_all("Provides-Extra") or [])
    if extras != sorted(project["optional-dependencies"]):  # type: ignore[call-overload]
        wrong.append(f"has the extras {extras}")
    if metadata["Requires-Python"] != project["requires-python"]:
        wrong.append(f"needs Python {metadata['Requires-Python']}")
    if metadata["License-Expression"] != project["license"]:
        wrong.append(f"has the licence {metadata['License-Expression']}")
    return wrong + [
        f"links to {link}, which an index does not have" for link in relative_links(_page(metadata))
    ]


def relative_links(page: str) -> list[str]:
    """Give the links of a page that lead nowhere once it stands alone.

    >>> relative_links("[a](docs/a.md) [b](#b) ![c](c.png) [d](https://example.org)")
    ['docs/a.md', 'c.png']
    """
    return RELATIVE_LINK.findall(page)


def _page(metadata: Message) -> str:
    """Give what an index shows of a package."""
    page = metadata.get_payload()
    assert isinstance(page, str)
    return page


def main() -> None:
    """Check each package; end with status 1 where one is wrong."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = Path(sys.argv[1])
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if not wheels or not sdists:
        sys.exit(f"{folder}: a wheel and a source distribution are wanted")
    found = {wheel: check_wheel(wheel, project) for wheel in wheels}
    found |= {sdist: check_sdist(sdist, project) for sdist in sdists}
    for package, wrong in found.items():
        print(f"{package.name}: {package.stat().st_size:,} bytes, {'; '.join(wrong) or 'as it should be'}")
    sys.exit(any(found.values()))


if __name__ == "__main__":
    main()
