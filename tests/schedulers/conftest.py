"""A Slurm of one node, and the launcher of Open MPI, for the tests that need them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pydist as d
from support import wait_until

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(os.environ.get("PYDIST_TESTING_SCRIPTS", ROOT.parent / "shared" / "testing"))
"""Scripts that start servers; the variable PYDIST_TESTING_SCRIPTS names another folder."""
MISSING_PACKAGES = 3


class Slurm:
    """A Slurm of one node with four CPUs."""

    def run(self, *words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def jobs(self) -> list[str]:
        """Return the states of the jobs that have not ended."""
        return self.run("squeue", "--noheader", "--format=%T").split()

    def wait_empty(self) -> None:
        wait_until(lambda: not self.jobs(), 20, "the end of all jobs")


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    script = SCRIPTS / "slurm_up.sh"
    if not script.exists():
        pytest.skip(f"there is no {script}, which starts a Slurm")
    if os.getuid() != 0:
        pytest.skip("a Slurm can be started by root alone")
    folder = tmp_path_factory.mktemp("slurm") / "slurm"
    up = subprocess.run(
        [script, "--dir", folder, "--cpus", "4"], capture_output=True, text=True, timeout=110, check=False
    )
    if up.returncode == MISSING_PACKAGES:
        pytest.skip(f"Slurm is not installed: {up.stderr.strip()}")
    assert up.returncode == 0, up.stdout + up.stderr
    yield folder / "etc" / "slurm.conf"
    subprocess.run([SCRIPTS / "slurm_down.sh", "--dir", folder], capture_output=True, timeout=60, check=True)


@pytest.fixture
def slurm(slurm_cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """Give a Slurm without jobs; this process is in no allocation of it."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster))
    cluster = Slurm()
    cluster.wait_empty()
    yield cluster
    d.rmprocs([pid for pid in d.procs() if pid != 1])
    for job in cluster.run("squeue", "--noheader", "--format=%A").split():
        cluster.run("scancel", job)
    cluster.wait_empty()


@pytest.fixture
def mpirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the beginning of a command that starts processes by Open MPI."""
    if shutil.which("mpirun") is None:
        pytest.skip("mpirun is not installed")
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    if "Open MPI" not in version:
        pytest.skip(f"mpirun is not that of Open MPI: {version.splitlines()[0]}")
    monkeypatch.setenv("PYDIST_MEETING_FOLDER", str(tmp_path / "meeting"))
    root: list[Any] = ["--allow-run-as-root"] if os.getuid() == 0 else []
    return ["mpirun", *root, "--oversubscribe"]
