"""k-means over a numpy array of tens of megabytes, kept in parts on the workers.

    python examples/kmeans.py -p 2 --points 2000000

Each worker gets its part of the points once and keeps it. A step sends the centres there and sums
back; at the end the labels and the distances of all points come back.
"""

import argparse
from collections.abc import Callable, Sequence
from time import perf_counter

import numpy as np

import pydist

Array = np.ndarray
Sums = tuple[Array, Array, float]

ROWS_AT_ONCE = 32_768


def make_points(points: int, dims: int, clusters: int, seed: int = 7) -> Array:
    """Return points that lie around `clusters` centres."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform(-10, 10, (clusters, dims))
    return middles[rng.integers(clusters, size=points)] + rng.standard_normal((points, dims))


def assign(points: Array, centres: Array) -> tuple[Array, Array]:
    """Return the nearest centre of each point, and the squared distance to it."""
    labels = np.empty(len(points), dtype=np.int64)
    distances = np.empty(len(points))
    for start in range(0, len(points), ROWS_AT_ONCE):
        block = points[start : start + ROWS_AT_ONCE]
        here = slice(start, start + len(block))
        to_centres = np.square(centres).sum(axis=1) - 2.0 * (block @ centres.T)
        nearest = to_centres.argmin(axis=1)
        labels[here] = nearest
        distances[here] = np.square(block - centres[nearest]).sum(axis=1)
    return labels, distances


def partial_sums(points: Array, centres: Array) -> Sums:
    """Return for each centre the sum and the number of its points, and the sum of the distances."""
    labels, distances = assign(points, centres)
    count = len(centres)
    sums = np.stack([np.bincount(labels, column, count) for column in points.T], axis=1)
    return sums, np.bincount(labels, minlength=count), float(distances.sum())


def keep(part: Array) -> int:
    """Keep a part of the points in the worker's `__main__`, which lasts from call to call."""
    import __main__

    __main__.kept_points = part
    return part.nbytes


def partial_sums_of_kept(centres: Array) -> Sums:
    import __main__

    return partial_sums(__main__.kept_points, centres)


def assign_kept(centres: Array) -> tuple[Array, Array]:
    import __main__

    return assign(__main__.kept_points, centres)


def move_centres(centres: Array, parts: Sequence[Sums]) -> tuple[Array, float]:
    sums = np.sum([part[0] for part in parts], axis=0)
    counts = np.sum([part[1] for part in parts], axis=0)
    moved = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], centres)
    return moved, sum(part[2] for part in parts)


def iterate(step: Callable[[Array], Sequence[Sums]], centres: Array, steps: int) -> Array:
    for number in range(1, steps + 1):
        centres, spread = move_centres(centres, step(centres))
        print(f"  step {number}: sum of squared distances {spread:.6g}")
    return centres


def cluster_alone(points: Array, centres: Array, steps: int) -> tuple[Array, Array, Array]:
    centres = iterate(lambda now: [partial_sums(points, now)], centres, steps)
    return centres, *assign(points, centres)


def cluster_on(workers: list[int], points: Array, centres: Array, steps: int) -> tuple[Array, Array, Array]:
    parts = np.array_split(points, len(workers))
    sent = [pydist.remotecall(keep, worker, part) for worker, part in zip(workers, parts, strict=True)]
    print(f"  sent {sum(future.fetch() for future in sent) / 1e6:.0f} MB to the workers")

    def step(now: Array) -> list[Sums]:
        futures = [pydist.remotecall(partial_sums_of_kept, worker, now) for worker in workers]
        return [future.fetch() for future in futures]

    centres = iterate(step, centres, steps)
    futures = [pydist.remotecall(assign_kept, worker, centres) for worker in workers]
    labels, distances = zip(*(future.fetch() for future in futures), strict=True)
    joined = np.concatenate(labels), np.concatenate(distances)
    print(f"  {sum(array.nbytes for array in joined) / 1e6:.0f} MB came back")
    return centres, *joined


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-p", "--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--points", type=int, default=2_000_000, help="points (default 2000000)")
    parser.add_argument("--dims", type=int, default=4, help="coordinates of a point (default 4)")
    parser.add_argument("--clusters", type=int, default=16, help="centres (default 16)")
    parser.add_argument("--steps", type=int, default=8, help="steps (default 8)")
    options = parser.parse_args(argv)
    points = make_points(options.points, options.dims, options.clusters)
    first_centres = points[: options.clusters].copy()

    print(f"{points.nbytes / 1e6:.0f} MB of points, one process:")
    begin = perf_counter()
    expected = cluster_alone(points, first_centres, options.steps)
    alone = perf_counter() - begin

    with pydist.cluster(options.workers) as workers:
        print(f"workers {workers}:")
        begin = perf_counter()
        centres, labels, distances = cluster_on(workers, points, first_centres, options.steps)
        together = perf_counter() - begin

    if not np.array_equal(labels, expected[1]):
        raise SystemExit("the cluster and one process disagree on the labels")
    np.testing.assert_allclose(centres, expected[0], rtol=1e-9)
    np.testing.assert_allclose(distances, expected[2], rtol=1e-6, atol=1e-9)
    print(f"sizes: {np.bincount(labels, minlength=options.clusters).tolist()}")
    print(f"sum of squared distances: {float(distances.sum())!r}")
    print(f"one process: {alone:.3f} s   cluster: {together:.3f} s   ratio: {alone / together:.2f}")


if __name__ == "__main__":
    main()
