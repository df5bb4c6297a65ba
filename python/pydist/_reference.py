"""What futures and channels have in common: a name that is the same on every process."""

from __future__ import annotations

from typing import Any, Self

from . import _core


class Reference:
    """A handle of something that one process keeps and any process can name; equal where the names are."""

    __slots__ = ("_ref",)

    _ref: _core.Ref

    @property
    def where(self) -> int:
        """The process that keeps it."""
        return self._ref.owner

    @property
    def whence(self) -> int:
        """The process that made it."""
        return self._ref.whence

    @property
    def id(self) -> int:
        """Its number, unique on the process that made it."""
        return self._ref.id

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self.whence == other.whence and self.id == other.id

    def __hash__(self) -> int:
        return hash((type(self), self.whence, self.id))

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self
