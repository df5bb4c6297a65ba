"""Play a fair game until the stake is lost or has become the goal, many times over, and compare with theory.

    python examples/random_walk.py -p 2 --tasks 200 --games 200

Games differ much in length, so workers take tasks as they come; each task has a random stream of its own,
made by `pydist.random_streams`, so the result is the same whatever ran where. Needs numpy.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter
from typing import Any

import numpy as np

import pydist

STEPS = 256


def play(stream: np.random.Generator, stake: int, goal: int) -> tuple[bool, int]:
    """Return whether the goal was reached, and after how many steps."""
    fortune, steps = stake, 0
    while True:
        path = fortune + np.cumsum(stream.choice((-1, 1), STEPS))
        ends = np.flatnonzero((path <= 0) | (path >= goal))
        if len(ends):
            return bool(path[ends[0]] >= goal), steps + int(ends[0]) + 1
        fortune, steps = int(path[-1]), steps + STEPS


def measure(
    mapper: Callable[..., Iterable[Any]], streams: Sequence[Any], games: int, stake: int, goal: int
) -> tuple[float, float]:
    """Return the share of games that were won and their mean length."""

    def task(stream: np.random.Generator) -> tuple[int, int]:
        played = [play(stream, stake, goal) for _ in range(games)]
        return sum(won for won, _ in played), sum(steps for _, steps in played)

    won = steps = 0
    for task_won, task_steps in mapper(task, streams):
        won += task_won
        steps += task_steps
    return won / (len(streams) * games), steps / (len(streams) * games)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-p", "--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument(
        "--tasks", type=int, default=200, help="tasks, each with its own stream (default 200)"
    )
    parser.add_argument("--games", type=int, default=200, help="games of a task (default 200)")
    parser.add_argument("--stake", type=int, default=10)
    parser.add_argument("--goal", type=int, default=40)
    parser.add_argument("--seed", type=int, default=2024)
    options = parser.parse_args(argv)
    streams = pydist.random_streams(options.seed, options.tasks)
    game = (options.games, options.stake, options.goal)

    begin = perf_counter()
    expected = measure(map, streams, *game)
    alone = perf_counter() - begin
    with pydist.cluster(options.workers):
        begin = perf_counter()
        result = measure(pydist.pgenerate, streams, *game)
        together = perf_counter() - begin

    if result != expected:
        raise SystemExit(f"the cluster computed {result}, one process {expected}")
    print(f"won: {result[0]!r}   theory: {options.stake / options.goal!r}")
    print(f"mean length: {result[1]!r}   theory: {options.stake * (options.goal - options.stake)}")
    print(f"one process: {alone:.3f} s   cluster: {together:.3f} s   ratio: {alone / together:.2f}")


if __name__ == "__main__":
    main()
