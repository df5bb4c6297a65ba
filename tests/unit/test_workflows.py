"""The workflows: what they run is there, and what they build is what the documentation says."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"


def steps_of(workflow: str) -> list[dict[str, Any]]:
    jobs = yaml.safe_load((FOLDER / workflow).read_text())["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", ["ci.yml", "release.yml"])
def test_scripts_that_are_run_are_there(workflow):
    text = "\n".join(step.get("run", "") for step in steps_of(workflow))
    found = re.findall(r"(?:bash|python) ([\w./]+/[\w.]+)", text)
    assert found
    assert [name for name in found if not (ROOT / name).exists()] == []


def test_the_release_has_the_wheels_of_the_documentation():
    jobs = yaml.safe_load((FOLDER / "release.yml").read_text())["jobs"]
    targets = {entry["target"] for entry in jobs["wheels"]["strategy"]["matrix"]["include"]}
    (build,) = [s for s in jobs["wheels"]["steps"] if s.get("uses", "").startswith("PyO3/maturin-action")]
    page = (ROOT / "docs" / "releasing.md").read_text()
    tags = set(re.findall(r"wheel `cp311-abi3-manylinux_(\w+?_\d+)_(\w+)`", page))
    assert tags == {(build["with"]["manylinux"], target) for target in targets}


def test_wheels_for_macos_are_described_and_skipped():
    jobs = yaml.safe_load((FOLDER / "release.yml").read_text())["jobs"]
    job, check = jobs["wheels-macos"], jobs["check"]
    page = (ROOT / "docs" / "releasing.md").read_text().partition("## macOS")[2]
    (variable,) = re.findall(r"`(MACOS_\w+)` to `true`", page)
    assert job["if"] == f"vars.{variable} == 'true'"
    assert {entry["target"] for entry in job["strategy"]["matrix"]["include"]} == {
        "x86_64-apple-darwin",
        "aarch64-apple-darwin",
    }
    assert "wheels-macos" in check["needs"]
    linux = len(jobs["wheels"]["strategy"]["matrix"]["include"])
    assert check["env"]["PACKAGES"] == f"${{{{ vars.{variable} == 'true' && {linux + 3} || {linux + 1} }}}}"


def test_a_job_that_is_skipped_keeps_no_release_back():
    jobs = yaml.safe_load((FOLDER / "release.yml").read_text())["jobs"]
    assert jobs["check"]["if"] == "${{ !cancelled() && !failure() }}"
    assert "!cancelled()" in jobs["publish"]["if"]
    assert "needs.check.result == 'success'" in jobs["publish"]["if"]
    assert "github.ref_type == 'tag'" in jobs["publish"]["if"]


def test_all_versions_of_python_that_are_promised_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [
        found[1] for line in project["classifiers"] if (found := re.fullmatch(r".* :: (3\.\d+)", line))
    ]
    matrix = yaml.safe_load((FOLDER / "ci.yml").read_text())["jobs"]["all"]["strategy"]["matrix"]
    assert matrix["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"


def test_publishing_waits_for_the_checks_and_has_no_password():
    publish = yaml.safe_load((FOLDER / "release.yml").read_text())["jobs"]["publish"]
    assert publish["needs"] == "check"
    assert publish["permissions"] == {"id-token": "write"}
    assert not any("with" in step and "password" in step["with"] for step in publish["steps"])


@pytest.mark.parametrize(("name", "passes"), [("v{}", True), ("v{}0", False), ("{}", False)])
def test_the_tag_is_compared_with_the_version_that_cargo_has(name, passes):
    (check,) = [
        step["run"] for step in steps_of("release.yml") if step.get("name") == "the tag is the version"
    ]
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    env = {**os.environ, "GITHUB_REF_NAME": name.format(version)}
    done = subprocess.run(["bash", "-ec", check], cwd=ROOT, env=env, check=False)
    assert (done.returncode == 0) == passes
