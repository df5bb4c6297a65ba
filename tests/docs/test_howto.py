"""How-tos that are not run as one program: a notebook, and a cluster whose workers dial in."""

import shlex
import socket
import subprocess
import sys

import nbformat
import pytest

import support
from support_documents import ROOT, blocks_of, check_output, examples_of, matches, program_of, replaced

HOWTO = ROOT / "docs" / "howto"
COOKIE = "a cookie for the pods of a test"
EXECUTE = """
import sys
import nbclient, nbformat
path = sys.argv[1]
notebook = nbformat.read(path, as_version=4)
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
nbformat.write(notebook, path)
"""


def test_the_cells_of_the_notebook(tmp_path, monkeypatch):
    token = "notebook-page"
    monkeypatch.setenv(support.TOKEN, token)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    examples = examples_of(HOWTO / "notebooks.md")
    cells = [nbformat.v4.new_code_cell(example.block.text) for example in examples]
    path = tmp_path / "page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    subprocess.run([sys.executable, "-c", EXECUTE, str(path)], check=True, timeout=100, cwd=tmp_path)
    support.wait_until(lambda: not support.holders(token), 10, "the end of the kernel and its workers")

    done = nbformat.read(path, as_version=4).cells
    assert len(done) == len(examples)
    for cell, example in zip(done, examples, strict=True):
        if example.output is not None:
            assert matches(example.output, shown_by(cell)), f"line {example.block.line}: {shown_by(cell)}"


def shown_by(cell: nbformat.NotebookNode) -> str:
    """Give what a cell prints and shows."""
    found = ""
    for output in cell.outputs:
        if output.output_type == "stream":
            found += output.text
        elif "text/plain" in output.get("data", {}):
            found += output.data["text/plain"] + "\n"
    return found


@pytest.fixture
def port() -> int:
    """Give a port that is free."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_the_program_for_kubernetes_with_a_worker_that_dials_in(tmp_path, port):
    def here(text: str) -> str:
        assert '"0.0.0.0", 9000' in text
        return text.replace('"0.0.0.0", 9000', f'"127.0.0.1", {port}')

    page = replaced(HOWTO / "kubernetes.md", tmp_path, here)
    (command,) = [b.text for b in blocks_of(page) if b.language == "sh" and "worker" in b.text.split()]
    words = shlex.split(command.replace("pydist-head:9000", f"127.0.0.1:{port}"))
    assert words.pop(0) == "python"
    env = {"PYDIST_COOKIE": COOKIE}
    with support.Script(program_of(page), cwd=tmp_path, env=env) as script:
        with subprocess.Popen(
            [sys.executable, *words], env={**support.os.environ, **env}, stderr=subprocess.PIPE, text=True
        ) as worker:
            done = script.finish()
            errors = worker.communicate(timeout=30)[1]
        assert (done.returncode, done.stderr) == (0, "")
        check_output(page, done.stdout)
        assert "Traceback" not in errors
        script.wait_gone(10)


def test_the_program_for_kubernetes_and_the_manifest_are_of_one_kind():
    manifest = (ROOT / "docs" / "kubernetes.yaml").read_text()
    page = (HOWTO / "kubernetes.md").read_text()
    line = 'manager = d.ElasticManager("0.0.0.0", 9000, cookie=os.environ["PYDIST_COOKIE"])'
    assert line in manifest
    assert line in page
    for line in page.splitlines():
        if line.startswith(("kubectl create", "kubectl scale")):
            assert line in manifest
