"""Calls that wait on a worker's event loop until they are let go."""

from __future__ import annotations

import asyncio


class Gate:
    """What the calls of this process wait for."""

    event: asyncio.Event | None = None


async def park() -> None:
    if Gate.event is None:
        Gate.event = asyncio.Event()
    await Gate.event.wait()


async def unpark() -> None:
    if Gate.event is not None:
        Gate.event.set()
        Gate.event = None
