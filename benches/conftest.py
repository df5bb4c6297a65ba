"""Runs the contestants of a row under pytest-benchmark, one after the other in one process."""

import sys
from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.__main__ import contestants_of
from benches.measuring import clamp, timed, timed_steps
from benches.model import FULL, QUICK, Contestant, Measured, Operation, Row, Scale, Work


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmark small sizes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "measure" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"))


def scale_of(config: pytest.Config) -> Scale:
    return QUICK if config.getoption("--quick") else FULL


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have the test of each module run for all that compete in its rows.

    Those that need more than the standard library are left to `python -m benches`: in one process with others
    they would not be what they are.
    """
    rows: tuple[Row, ...] = getattr(metafunc.module, "ROWS", ())
    if "contestant" not in metafunc.fixturenames:
        return
    scale = scale_of(metafunc.config)
    cases = [
        pytest.param(row, each, id=f"{row.name}-{each}")
        for row in rows
        for each in contestants_of(row, scale)
        if not each.needs
    ]
    metafunc.parametrize(("row", "contestant"), cases)


@pytest.fixture
def scale(pytestconfig: pytest.Config) -> Scale:
    return scale_of(pytestconfig)


def timed_calls(measured: Operation | Work, row: Row, budget: float) -> tuple[Callable[[], object], int, int]:
    """Return what pytest-benchmark is to call, how often in a round, and in how many rounds."""
    if isinstance(measured, Work):
        seconds = timed_steps(measured, 1)
        count = clamp(budget / seconds, measured.count)
        rounds = clamp(budget / seconds / count, row.samples)
        return lambda: measured.run(count), 1, rounds
    seconds = timed(measured, 1) if row.warm else budget
    loops = clamp(budget / row.samples / seconds, row.loops)
    return measured.once, loops, clamp(budget / seconds / loops, row.samples)


@pytest.fixture
def plain_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep processes that are spawned from importing pytest, since it is the main module."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__spec__", None)
    monkeypatch.delattr(main, "__file__", raising=False)


@pytest.fixture
def measure(benchmark: BenchmarkFixture, scale: Scale, plain_main: None) -> Callable[[Row, Contestant], None]:
    """Measure a contestant; what is read off rather than timed is in the extra information."""

    def measure(row: Row, contestant: Contestant) -> None:
        benchmark.group = row.title(scale)
        with contestant.open(scale) as measured:
            run(row, measured)

    def run(row: Row, measured: Measured) -> None:
        match measured:
            case Operation() | Work():
                function, loops, rounds = timed_calls(measured, row, scale.budget)
                after = measured.after if isinstance(measured, Operation) else None
                benchmark.pedantic(function, teardown=after, rounds=rounds, iterations=loops)
            case _:
                value = benchmark.pedantic(measured.take, rounds=1)
                assert value >= 0
                benchmark.extra_info[row.unit] = value

    return measure
