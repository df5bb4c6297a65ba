"""Which types the items of a list have."""

from __future__ import annotations

from typing import Any

import pytest

from pydist import _core


class Number(int):
    pass


@pytest.mark.parametrize("make", [list, tuple])
@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ([], True),
        ([1, 2, 3], True),
        ([1, "a", None, 1, "b"], True),
        ([1, 2.0], False),
        ([1, Number(2)], False),
        ([True], False),
        ([[1]], False),
    ],
)
def test_the_exact_types_of_all_items_count(make: Any, items: list[Any], expected: bool) -> None:
    assert _core.all_of(make(items), {int, str, type(None)}) is expected


@pytest.mark.parametrize("values", [range(3), {1}, "ab", 7, None, iter([1])])
def test_of_anything_but_a_list_or_tuple_nothing_is_said(values: Any) -> None:
    assert not _core.all_of(values, {int, str})


def test_a_list_may_become_shorter_while_its_types_are_compared() -> None:
    values: list[Any] = []

    class Meta(type):
        def __hash__(cls) -> int:
            values.clear()
            return 1

    class Item(metaclass=Meta):
        pass

    types = {int, Item}
    values += [1, Item(), *range(1000)]
    assert not _core.all_of(values, types)
    assert values == []
