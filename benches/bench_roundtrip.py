"""The time of one call that does nothing."""

import pytest

from benches.rows import ROUNDTRIP


@pytest.mark.parametrize("contestant", ROUNDTRIP.contestants, ids=str)
def test_roundtrip(measure, contestant):
    measure(ROUNDTRIP, contestant)
