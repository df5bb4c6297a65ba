"""The start of two workers."""

import pytest

from benches.rows import START


@pytest.mark.parametrize("contestant", START.contestants, ids=str)
def test_start(measure, contestant):
    measure(START, contestant)
