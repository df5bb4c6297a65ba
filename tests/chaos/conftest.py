"""How long the chaos goes on, and its seed."""

from __future__ import annotations

import random

import pytest

CI_SECONDS, MILESTONE_SECONDS = 60.0, 1800.0


def seconds_of(config: pytest.Config) -> float:
    asked = config.getoption("--chaos-seconds")
    usual = MILESTONE_SECONDS if config.getoption("--milestone") else CI_SECONDS
    return float(usual if asked is None else asked)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_soak.py":
            item.add_marker(pytest.mark.timeout(seconds_of(config) + 200))


@pytest.fixture
def chaos_seconds(request: pytest.FixtureRequest) -> float:
    return seconds_of(request.config)


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    seed = request.config.getoption("--chaos-seed")
    return random.SystemRandom().randrange(10**6) if seed is None else seed
