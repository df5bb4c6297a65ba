"""The context of OpenTelemetry goes along with calls, where a span is current; it is not imported here.

It travels among the keyword arguments of a call, under a name that no parameter can have.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Coroutine
from typing import Any

API = "opentelemetry.trace"
"""Where this module has not been imported, no span can be current."""
KEY = "\0opentelemetry"


def carried() -> dict[str, Any]:
    """Returns what is to go along with calls from here: the keyword argument, or nothing.

    >>> carried()
    {}
    """
    api = sys.modules.get(API)
    if api is None:
        return {}
    try:
        if not api.get_current_span().get_span_context().is_valid:
            return {}
        from opentelemetry import propagate

        carrier: dict[str, str] = {}
        propagate.inject(carrier)
    except Exception:  # a propagator of the user, or a module that is just being imported
        return {}
    return {KEY: tuple(carrier.items())} if carrier else {}


def within(f: Callable[..., Any], kwargs: dict[str, Any]) -> Callable[..., Any]:
    """Makes a function that does what another does, in the context that has come along with a call.

    Parameters:
        f: the other one.
        kwargs: the keyword arguments of the call, from which the context is taken.
    """
    carrier = dict(kwargs.pop(KEY))
    try:
        from opentelemetry import context, propagate

        there = propagate.extract(carrier)
    except Exception:  # it is not installed here
        return f

    def call(*args: Any, **kwargs: Any) -> Any:
        token = context.attach(there)
        try:
            value = f(*args, **kwargs)
        finally:
            context.detach(token)
        return _awaited(value, context, there) if isinstance(value, types.CoroutineType) else value

    return call


async def _awaited(coroutine: Coroutine[Any, Any, Any], context: Any, there: Any) -> Any:
    token = context.attach(there)
    try:
        return await coroutine
    finally:
        context.detach(token)
