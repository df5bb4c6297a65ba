"""A notebook, run by a kernel as Jupyter runs it: magics, output, tracebacks, redefinition."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest

import support

NOTEBOOK = Path(__file__).with_name("cluster.ipynb")
RUN = """
import sys
import nbclient, nbformat
notebook, folder, done = sys.argv[1:]
notebook = nbformat.read(notebook, as_version=4)
resources = {"metadata": {"path": folder}}
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()
nbformat.write(notebook, done)
"""


class Cell:
    """What a cell has printed, shown and raised."""

    def __init__(self, outputs: list[Any]) -> None:
        self.stdout = self._stream(outputs, "stdout")
        self.stderr = self._stream(outputs, "stderr")
        self.shown = [
            each["data"] for each in outputs if each["output_type"] in ("execute_result", "display_data")
        ]
        self.value = next(
            (each["data"]["text/plain"] for each in outputs if each["output_type"] == "execute_result"), None
        )
        errors = ["\n".join(each["traceback"]) for each in outputs if each["output_type"] == "error"]
        self.error = re.sub(r"\x1b\[[0-9;]*m", "", "".join(errors))

    @staticmethod
    def _stream(outputs: list[Any], name: str) -> str:
        return "".join(each["text"] for each in outputs if each.get("name") == name)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Cell]]:
    """Run the notebook, and see that its processes end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(support.TOKEN, token := "notebook-test")
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        folder = str(tmp_path_factory.mktemp("run"))
        done = Path(folder, "done.ipynb")
        # In a process of its own: the client leaves descriptors of its event loop behind.
        subprocess.run([sys.executable, "-c", RUN, str(NOTEBOOK), folder, str(done)], check=True, timeout=100)
        notebook = nbformat.read(done, as_version=4)
    yield {cell["id"]: Cell(cell["outputs"]) for cell in notebook.cells}
    support.wait_until(lambda: not support.holders(token), 10, "the end of the kernel and its workers")


def test_workers_start(cells):
    assert cells["start"].value == "[2, 3]"


def test_everywhere_defines_on_all_processes_or_on_some(cells):
    assert cells["define"].shown == []
    assert cells["use"].value == "[10, 40, 90]"
    assert cells["fetchfrom"].value == "1000"


def test_spawnat_binds_a_future(cells):
    assert cells["spawnat"].value.startswith("<Future ")
    assert cells["fetch"].value == "45"


def test_a_table_of_the_processes(cells):
    (shown,) = cells["table"].shown
    lines = shown["text/plain"].splitlines()
    assert {"state", "memory", "running"} <= set(lines[0].split())
    assert [line.split()[0] for line in lines] == ["id", "1", "2", "3"]
    assert shown["text/html"].startswith("<table>")
    assert shown["text/html"].count("<tr>") == 4


def test_a_progress_bar(cells):
    cell = cells["progress"]
    assert cell.value == "20100"
    assert "200/200" in cell.stderr + str(cell.shown)


def test_output_appears_below_the_cell_that_caused_it(cells):
    lines = [f"      From worker 2:\tline {i}" for i in range(50)] * 20
    assert cells["print"].stdout.splitlines() == lines
    assert cells["print-again"].stdout == "      From worker 2:\tfrom everywhere\n"
    for name, text in (("both", "from the first"), ("both-again", "from the second")):
        assert sorted(cells[name].stdout.splitlines()) == [f"      From worker {n}:\t{text}" for n in (2, 3)]
    printing = {name for name, cell in cells.items() if "From worker" in cell.stdout + cell.stderr}
    assert printing == {"print", "print-again", "both", "both-again", "outlives", "outlived"}


def test_output_of_a_call_that_outlives_its_cell_appears_below_the_cell_that_runs_then(cells):
    assert sorted(cells["outlives"].stdout.splitlines()) == [
        "      From worker 3:\tbegins",
        "      From worker 3:\tbeside it",
    ]
    assert cells["outlived"].stdout == "      From worker 3:\tends\n"


def test_objects_are_shown_as_small_tables_in_the_colours_of_the_page(cells):
    shown = [data["text/html"] for data in cells["objects"].shown]
    titles = [re.search(r"<th>(.*?)</th>", text)[1] for text in shown]
    assert [title.partition(" ")[0] for title in titles] == [
        *("Future", "Future", "RemoteChannel", "WorkerPool", "WorkerPool", "CachingPool", "process"),
        *("Executor", "Future"),
    ]
    for text in shown:
        assert text.startswith("<table>")
        assert not re.search(r"color|background|class=|<script|<style", text)
        ElementTree.fromstring(text)  # well-formed
        assert len(text) < 3000
    assert "&lt;b&gt;&amp;odd" in shown[-1]
    assert "2-3" in shown[4]
    assert "pending here" in shown[0]


def test_tracebacks_show_the_lines_of_cells(cells):
    remote = cells["error"].error.rpartition("On worker 2")[2]
    assert "return 1 / x  # the culprit" in remote
    assert (
        "raise LookupError('there')  # the text" in cells["error-text"].stderr
    )  # where IPython prints groups


def test_what_is_defined_again_is_sent_again(cells):
    assert cells["class"].value == "True"
    assert cells["class-again"].value == "(True, -1)"
    assert cells["again"].value == "'divided'"


def test_workers_end(cells):
    assert cells["end"].value == "[1]"
