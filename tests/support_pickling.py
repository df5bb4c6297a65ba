"""What tests of pickling share: loading what was dumped, and a class to be found by name."""

from __future__ import annotations

from typing import Any

from pydist import _serialize
from pydist._serialize import dumps, loads


def received(dumped: _serialize.Dumped) -> Any:
    """What arrives, in buffers of its own."""
    data, buffers, _ = dumped
    return loads(data, [bytearray(buffer.raw()) for buffer in buffers])


def round_trip(value: Any) -> Any:
    return received(dumps(value))


class Thing:
    """An importable class."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    @classmethod
    def make(cls) -> str:
        return cls.__name__

    @staticmethod
    def static() -> int:
        return 5

    def method(self) -> Any:
        return self.value
