"""The programs of the how-to on Slurm, in a Slurm."""

import subprocess
import sys

from support_documents import ROOT, blocks_of, matches

PAGE = ROOT / "docs" / "howto" / "slurm.md"


def test_the_programs_of_the_how_to(slurm, tmp_path, monkeypatch):
    blocks = blocks_of(PAGE)
    files = {b.options.partition('title="')[2].rstrip('"'): b for b in blocks if "title=" in b.options}
    assert sorted(files) == ["dice.py", "dice.sh", "own_job.py"]
    for name, block in files.items():
        (tmp_path / name).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    folder = str(sys.executable).rpartition("/")[0]
    monkeypatch.setenv("PATH", folder, prepend=":")
    first, second = (block.text for block in blocks if block.language == "text")

    slurm.run("sbatch", "--wait", "dice.sh")
    assert matches(first, (tmp_path / "dice.txt").read_text())

    done = subprocess.run(
        [sys.executable, "own_job.py"], capture_output=True, text=True, timeout=60, check=True
    )
    assert matches(second, done.stdout)
