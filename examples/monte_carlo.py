"""Price a European call option by simulation, and compare with the Black-Scholes formula.

    python examples/monte_carlo.py -p 2 --tasks 100 --paths 500000

Each task has a random stream of its own, so the price does not depend on the number of workers.
numpy does the drawing where it is installed, the standard library otherwise.
"""

import argparse
import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist
from time import perf_counter
from typing import Any

import pydist

try:
    import numpy as np
except ImportError:
    np = None

SPOT, STRIKE, RATE, VOLATILITY, YEARS = 100.0, 105.0, 0.02, 0.25, 1.0
DRIFT = (RATE - VOLATILITY**2 / 2) * YEARS
SPREAD = VOLATILITY * math.sqrt(YEARS)
ROUNDS = 10


def spawn_seeds(seed: int, tasks: int) -> list[Any]:
    """Return independent seeds, one for each task."""
    if np is None:
        return [f"{seed}/{task}" for task in range(tasks)]
    return np.random.SeedSequence(seed).spawn(tasks)


def simulate(seed: Any, paths: int) -> tuple[float, float]:
    """Return the sum of the payoffs of `paths` draws, and the sum of their squares."""
    if np is None:
        draw = random.Random(seed).gauss
        ends = (SPOT * math.exp(DRIFT + SPREAD * draw(0.0, 1.0)) for _ in range(paths))
        payoffs = [max(end - STRIKE, 0.0) for end in ends]
        return math.fsum(payoffs), math.fsum(payoff * payoff for payoff in payoffs)
    normals = np.random.default_rng(seed).standard_normal(paths)
    payoffs = np.maximum(SPOT * np.exp(DRIFT + SPREAD * normals) - STRIKE, 0.0)
    return float(payoffs.sum()), float(np.square(payoffs).sum())


def estimate(sums: list[tuple[float, float]], paths: int) -> tuple[float, float]:
    """Return the price and its standard error from the sums of tasks of `paths` draws each."""
    draws = len(sums) * paths
    mean = math.fsum(total for total, _ in sums) / draws
    variance = math.fsum(squares for _, squares in sums) / draws - mean * mean
    discount = math.exp(-RATE * YEARS)
    return discount * mean, discount * math.sqrt(variance / draws)


def price(mapper: Callable[..., Any], seeds: list[Any], paths: int) -> tuple[float, float]:
    """Simulate all tasks with `mapper(f, seeds)`, printing the estimate as it becomes sharper."""
    sums: list[tuple[float, float]] = []
    step = math.ceil(len(seeds) / ROUNDS)
    for start in range(0, len(seeds), step):
        sums += mapper(lambda seed: simulate(seed, paths), seeds[start : start + step])
        value, error = estimate(sums, paths)
        print(f"  {len(sums) * paths:>12,} paths: {value:.5f} +- {error:.5f}")
    return estimate(sums, paths)


def black_scholes() -> float:
    upper = (math.log(SPOT / STRIKE) + (RATE + VOLATILITY**2 / 2) * YEARS) / SPREAD
    normal = NormalDist()
    discounted_strike = STRIKE * math.exp(-RATE * YEARS)
    return SPOT * normal.cdf(upper) - discounted_strike * normal.cdf(upper - SPREAD)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-p", "--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--tasks", type=int, default=100, help="tasks, each with its own seed (default 100)")
    parser.add_argument("--paths", type=int, default=500_000 if np else 20_000, help="draws per task")
    parser.add_argument("--seed", type=int, default=2024)
    options = parser.parse_args(argv)
    seeds = spawn_seeds(options.seed, options.tasks)

    print("One process:")
    begin = perf_counter()
    expected = price(map, seeds, options.paths)
    alone = perf_counter() - begin

    with pydist.cluster(options.workers) as workers:
        print(f"Workers {workers}:")
        begin = perf_counter()
        result = price(pydist.pmap, seeds, options.paths)
        together = perf_counter() - begin

    if result != expected:
        raise SystemExit(f"the cluster computed {result}, one process {expected}")
    print(f"price: {result[0]!r}   standard error: {result[1]!r}")
    print(f"Black-Scholes: {black_scholes()!r}")
    print(f"one process: {alone:.3f} s   cluster: {together:.3f} s   ratio: {alone / together:.2f}")


if __name__ == "__main__":
    main()
