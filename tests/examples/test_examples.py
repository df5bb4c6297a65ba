"""Each example, run as a user runs it, against the same result computed here without pydist."""

import importlib.util
import math
import os
import re
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.search(rf"one process: {NUMBER} s   cluster: {NUMBER} s   ratio: {NUMBER}", done.stdout)
    return done.stdout


def printed(output: str, pattern: str) -> str:
    found = re.search(pattern, output, re.MULTILINE)
    assert found, output
    return found.group(1)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library_texts(limit: int) -> list[str]:
    found = []
    for folder, _, names in os.walk(sysconfig.get_path("stdlib")):
        if "site-packages" not in Path(folder).parts:
            found += [Path(folder, name) for name in names if name.endswith(".py")]
    return [path.read_bytes().decode("utf-8", "replace") for path in sorted(found)[:limit]]


def test_quickstart_counts_words_shows_the_error_and_leaves_no_worker():
    output = run("quickstart", "--files", 60)

    words = sum(len(re.findall(r"\S+", text)) for text in library_texts(60))
    assert int(printed(output, r"^words: (\d+)$")) == words
    assert f"2 ** 100 = {2**100}" in output
    assert "in parse_port" in output
    assert "ValueError: invalid literal for int() with base 10: 'eighty'" in output
    assert output.rstrip().endswith("processes left: [1]")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_monte_carlo_gives_one_price_whatever_the_number_of_workers(workers):
    tasks, paths = 12, 20_000
    output = run("monte_carlo", "-p", workers, "--tasks", tasks, "--paths", paths, "--seed", 5)

    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(5).spawn(tasks)]
    normals = np.concatenate([stream.standard_normal(paths) for stream in streams])
    ends = 100 * np.exp(0.02 - 0.25**2 / 2 + 0.25 * normals)
    discounted = np.exp(-0.02) * np.clip(ends - 105, 0, None)
    price = float(printed(output, rf"^price: {NUMBER} "))
    assert price == pytest.approx(discounted.mean(), rel=1e-10)

    upper = (math.log(100 / 105) + 0.02 + 0.25**2 / 2) / 0.25
    below, above = (0.5 * math.erfc(-x / math.sqrt(2)) for x in (upper - 0.25, upper))
    exact = 100 * above - 105 * math.exp(-0.02) * below
    assert float(printed(output, rf"^Black-Scholes: {NUMBER}$")) == pytest.approx(exact)
    assert abs(price - exact) < 5 * discounted.std() / math.sqrt(tasks * paths)


@pytest.mark.parametrize("workers", [1, 3])
def test_random_walk_agrees_with_theory_whatever_the_number_of_workers(workers):
    tasks, games, stake, goal = 20, 50, 5, 20
    output = run(
        "random_walk", "-p", workers, "--tasks", tasks, "--games", games, "--stake", stake, "--goal", goal
    )

    walk = load("random_walk")
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(2024).spawn(tasks)]
    played = [walk.play(stream, stake, goal) for stream in streams for _ in range(games)]
    won = float(printed(output, rf"^won: {NUMBER} "))
    assert won == sum(w for w, _ in played) / len(played)
    assert abs(won - stake / goal) < 5 * math.sqrt(0.25 * 0.75 / len(played))
    length = float(printed(output, rf"^mean length: {NUMBER} "))
    assert length == sum(steps for _, steps in played) / len(played)


def test_ngrams_counts_words_and_pairs():
    output = run("ngrams", "--files", 80)

    words: dict[str, int] = defaultdict(int)
    pairs: dict[str, int] = defaultdict(int)
    for text in library_texts(80):
        previous = None
        for match in re.finditer(r"[A-Za-z_]\w*", text):
            word = match.group()
            words[word] += 1
            if previous is not None:
                pairs[f"{previous} {word}"] += 1
            previous = word
    for title, counts in (("words", words), ("pairs", pairs)):
        assert f"{title}: {sum(counts.values())} in all, {len(counts)} different" in output
        top = sorted(counts, key=lambda item: (-counts[item], item))[:5]
        listed = "\n".join(f"  {counts[item]:>9} {item}" for item in top)
        assert listed in output


def test_kmeans_finds_the_clusters_of_lloyds_algorithm():
    count, clusters, steps = 40_000, 6, 5
    output = run("kmeans", "--points", count, "--clusters", clusters, "--steps", steps)

    points = load("kmeans").make_points(count, 4, clusters)
    centres = points[:clusters]
    for _ in range(steps):
        labels = nearest_centres(points, centres)[0]
        centres = np.array([points[labels == label].mean(axis=0) for label in range(clusters)])
    labels, distances = nearest_centres(points, centres)
    sizes = [int((labels == label).sum()) for label in range(clusters)]
    assert printed(output, r"^sizes: (.*)$") == str(sizes)
    total = float(printed(output, rf"^sum of squared distances: {NUMBER}$"))
    assert total == pytest.approx(distances.sum(), rel=1e-9)


def nearest_centres(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances = ((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=2)
    return distances.argmin(axis=1), distances.min(axis=1)


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_example_explains_itself(name):
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert f"python examples/{name}.py" in done.stdout


def test_custom_manager_has_workers_call_each_other():
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "custom_manager.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(
        f"{pid} squared is {pid**2}, says worker {other} to worker {pid}\n"
        for pid, other in [(2, 3), (3, 4), (4, 2)]
    )
