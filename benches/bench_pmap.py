"""A parallel map over many short calls."""

import pytest

from benches.rows import PMAP_AUTO, PMAP_SINGLE


@pytest.mark.parametrize("contestant", PMAP_SINGLE.contestants, ids=str)
def test_pmap_single(measure, contestant):
    measure(PMAP_SINGLE, contestant)


@pytest.mark.parametrize("contestant", PMAP_AUTO.contestants, ids=str)
def test_pmap_auto(measure, contestant):
    measure(PMAP_AUTO, contestant)
