"""Classes that go by value: each is the same class again wherever it has been, and where it was defined.

cloudpickle gives each class a number by which it is found again, but it makes a class each time one arrives,
and then lets what arrived overwrite the class that is there: methods of the user's class would become copies,
with globals of their own, after every round trip. Here the process that defined a class has the last word on
it: what changes there is taken up elsewhere whenever the class is sent again, never the other way round.
"""

from __future__ import annotations

import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle.cloudpickle as cloudpickle  # type: ignore[import-untyped, unused-ignore]

_arrived: weakref.WeakSet[type] = weakref.WeakSet()
"""The classes that were defined in other processes."""
_bare: weakref.WeakSet[type] = weakref.WeakSet()
"""Those of them that have not got their attributes yet."""


def reduce_by_value(cls: type, reduced: Any) -> Any:
    """Returns how a class is pickled, from how cloudpickle would do it."""
    if not isinstance(reduced, tuple) or len(reduced) != 6:
        return reduced
    make, arguments, (attributes, slots), _, _, restore = reduced
    attributes = {
        name: value
        for name, value in attributes.items()
        if name != "__slotnames__" and not isinstance(value, types.MemberDescriptorType)
    }
    is_named_tuple = typing.NamedTuple in cls.__dict__.get("__orig_bases__", ())  # it makes its own slots
    if make is cloudpickle._make_skeleton_class and "__slots__" in cls.__dict__ and not is_named_tuple:
        constructor, name, bases, namespace, *rest = arguments
        arguments = constructor, name, bases, {**namespace, "__slots__": cls.__dict__["__slots__"]}, *rest
    state = restore, (attributes, slots), cls not in _arrived
    return build_class, (make, arguments), state, None, None, restore_class


def build_class(make: Callable[..., type], arguments: tuple[Any, ...]) -> type:
    """Finds a class by its number, or makes one without attributes."""
    *_, number, _ = arguments
    known: type | None = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(number)
    if known is not None:
        return known
    cls = make(*arguments)
    _arrived.add(cls)
    _bare.add(cls)
    return cls


def restore_class(cls: type, state: tuple[Callable[[type, Any], Any], Any, bool]) -> None:
    """Gives a class its attributes, if it is new here, or comes from where it was defined."""
    restore, attributes, from_definition = state
    if cls in _bare or (from_definition and cls in _arrived):
        restore(cls, attributes)
        _bare.discard(cls)
