"""A large array to a worker, and there and back."""

import pytest

from benches.rows import ARRAY_BACK, ARRAY_THERE


@pytest.mark.parametrize("contestant", ARRAY_THERE.contestants, ids=str)
def test_array_there(measure, contestant):
    measure(ARRAY_THERE, contestant)


@pytest.mark.parametrize("contestant", ARRAY_BACK.contestants, ids=str)
def test_array_back(measure, contestant):
    measure(ARRAY_BACK, contestant)
