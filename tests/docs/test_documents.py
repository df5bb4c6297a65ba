"""The code of the documentation runs, and prints what the pages show."""

import ast
import re
import runpy

import pytest

import pydist as d
from support import Script
from support_documents import ROOT, blocks_of, check_output, program_of

DOCS = ROOT / "docs"
ELSEWHERE = {"howto/notebooks.md", "howto/slurm.md", "howto/kubernetes.md"}
"""Pages that are run by other tests: as a notebook, in a Slurm, with a worker that dials in."""
PAGES = [
    ROOT / "README.md",
    ROOT / "python" / "README.md",
    DOCS / "index.md",
    DOCS / "tutorial.md",
    DOCS / "dashboard.md",
    *(page for page in sorted(DOCS.glob("howto/*.md")) if str(page.relative_to(DOCS)) not in ELSEWHERE),
    *sorted(DOCS.glob("from/*.md")),
]
DISTRIBUTED_JL = """
@spawn @spawnat @fetch @fetchfrom @everywhere @distributed AbstractWorkerPool addprocs CachingPool clear!
ClusterManager default_worker_pool init_worker interrupt launch manage myid nprocs nworkers pmap procs
remote remotecall remotecall_eval remotecall_fetch remotecall_wait remote_do rmprocs workers WorkerPool
RemoteChannel Future WorkerConfig RemoteException ProcessExitedException process_messages remoteref_id
channel_from_id worker_id_from_socket cluster_cookie start_worker check_same_host
"""
"""The names after `export` in Distributed.jl."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_as_one_program(page, tmp_path):
    with Script(program_of(page), cwd=tmp_path) as script:
        done = script.finish()
        assert (done.returncode, done.stderr) == (0, "")
        check_output(page, done.stdout)
        script.wait_gone(10)


def test_code_of_other_systems_is_python():
    found = 0
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "python" and not block.runs:
                ast.parse(block.text, f"{page}:{block.line}")
                found += 1
    assert found >= 7


def test_every_public_name_is_in_the_reference():
    text = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    found = re.findall(r"^(?:::: |## .*\{ #)pydist\.(\w+)(?: \})?$", text, re.MULTILINE)
    assert sorted({*found} - {"joblib"}) == sorted(d.__all__)
    assert len(found) == len(set(found))


def test_the_dictionary_has_every_name_that_distributed_jl_exports():
    page = (DOCS / "from" / "julia.md").read_text()
    table = page.partition("## Every exported name")[2].partition("\nNot exported")[0]
    named = " ".join(line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `"))
    words = set(re.findall(r"@?\w+!?", named))
    assert sorted(set(DISTRIBUTED_JL.split()) - words) == []


def test_the_drawings_are_those_of_their_script():
    drawings = runpy.run_path(str(ROOT / "scripts" / "docs" / "drawings.py"))["DRAWINGS"]
    assert {path.name: path.read_text() for path in (DOCS / "assets").glob("*.svg")} == {
        name: draw() for name, draw in drawings.items()
    }
