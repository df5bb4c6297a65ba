"""Runs the contestants of a row under pytest-benchmark, one after the other in one process."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.model import FULL, QUICK, Contestant, Row, Scale


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="benchmark small sizes")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "benchmark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"))


@pytest.fixture
def scale(pytestconfig: pytest.Config) -> Scale:
    return QUICK if pytestconfig.getoption("--quick") else FULL


@pytest.fixture
def measure(benchmark: BenchmarkFixture, scale: Scale) -> Callable[[Row, Contestant], None]:
    def measure(row: Row, contestant: Contestant) -> None:
        benchmark.group = row.title(scale)
        with contestant.open(scale) as operation:
            benchmark.pedantic(
                operation.once,
                teardown=operation.after,
                rounds=row.samples,
                warmup_rounds=1,
                iterations=row.loops,
            )

    return measure
