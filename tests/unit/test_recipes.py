"""The recipes in the documentation: the manifest for Kubernetes, and the command lines."""

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from pydist import _cli, _dialin, _network

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def manifest() -> dict[tuple[str, str], dict[str, Any]]:
    documents = list(yaml.safe_load_all((DOCS / "kubernetes.yaml").read_text()))
    return {(one["kind"], one["metadata"]["name"]): one for one in documents}


def container(document: dict[str, Any]) -> dict[str, Any]:
    (found,) = document["spec"]["template"]["spec"]["containers"]
    return found


def worker_options(words: list[str]) -> argparse.Namespace:
    at = words.index("worker")
    assert words[at - 2 : at] == ["-m", "pydist"]
    return _dialin._parser().parse_args(words[at + 1 :])


def test_the_manifest_has_all_that_it_names(manifest):
    assert set(manifest) == {
        ("Service", "pydist-head"),
        ("Job", "pydist-head"),
        ("Deployment", "pydist-worker"),
        ("NetworkPolicy", "pydist"),
    }
    assert {document["apiVersion"] for document in manifest.values()} == {
        "v1",
        "batch/v1",
        "apps/v1",
        "networking.k8s.io/v1",
    }


def test_workers_dial_the_service_of_process_1(manifest):
    words = container(manifest["Deployment", "pydist-worker"])["command"]
    assert all(isinstance(word, str) for word in words)
    options = worker_options(words)
    assert [_network.split(text) for text in options.connect] == [("pydist-head", 9000)]
    assert not options.allow_plaintext
    service = manifest["Service", "pydist-head"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["ports"][0]["port"] == 9000
    labels = manifest["Job", "pydist-head"]["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert container(manifest["Job", "pydist-head"])["ports"] == [{"containerPort": 9000}]
    text = (DOCS / "kubernetes.yaml").read_text()
    assert 'ElasticManager("0.0.0.0", 9000, cookie=os.environ["PYDIST_COOKIE"])' in text


def test_the_cookie_is_a_secret_in_all_pods(manifest):
    for key in (("Job", "pydist-head"), ("Deployment", "pydist-worker")):
        (variable,) = [one for one in container(manifest[key])["env"] if one["name"] == "PYDIST_COOKIE"]
        assert variable["valueFrom"] == {"secretKeyRef": {"name": "pydist-cookie", "key": "cookie"}}
    spec = manifest["Deployment", "pydist-worker"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_the_command_lines_of_the_recipes_are_understood(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    found = 0
    for line in (DOCS / "schedulers.md").read_text().splitlines():
        start = re.match(r"(?:mpirun -n \d+ |srun -n \d+ )?python -m pydist ", line)
        if start is None:
            continue
        words = shlex.split(line)
        found += 1
        if "worker" in words:
            assert worker_options(words).cookie_file == "FILE"
        else:
            assert _cli.parse(words[words.index("pydist") + 1 :]).program.target == "simulate.py"
    assert found == 3
