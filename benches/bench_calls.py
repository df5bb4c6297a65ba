"""Many calls made one by one, all in flight at once."""

import pytest

from benches.rows import CALLS


@pytest.mark.parametrize("contestant", CALLS.contestants, ids=str)
def test_calls(measure, contestant):
    measure(CALLS, contestant)
