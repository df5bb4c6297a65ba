"""What several families of rows share."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from benches.model import Contestant
from benches.systems import SYSTEMS, Pydist, System

Open = Callable[..., AbstractContextManager]


def compete(
    open_: Open,
    systems: Iterable[type[System]] = SYSTEMS,
    method: str | None = None,
    **options: Any,
) -> tuple[Contestant, ...]:
    """Return a contestant for each system, of those only that have the method if one is named."""
    return tuple(
        Contestant(
            system.name,
            "pydist" if system is Pydist else "peer",
            partial(open_, system=system, **options),
            system.needs,
            system.environment,
        )
        for system in systems
        if method is None or hasattr(system, method)
    )


def ours(open_: Open, **options: Any) -> Contestant:
    return Contestant("pydist", "pydist", partial(open_, **options))


def points(open_: Open, numbers: Iterable[int], *needs: str) -> tuple[Contestant, ...]:
    """Return the contestants of a curve: `open_` gets the number."""
    return tuple(
        Contestant(str(number), "pydist", partial(open_, number=number), needs) for number in numbers
    )


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} KB"
