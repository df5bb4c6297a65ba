"""Telling, cheaply and surely, that a function is still what it was when it was pickled last.

That is so where all that is pickled with it is the same: code, defaults, attributes, closure variables and
globals, also of the functions that it uses and that go by value, if none of these can change in place. A
function that uses anything that can (a list, an array, an instance, a class of `__main__`) has no snapshot.
"""

from __future__ import annotations

import operator
import re
import sys
import types
import weakref
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ._reducers import by_name, global_names, modules_by_value, registered_by_value

VALUE, MODULE, NAMED, FUNCTION = range(4)

Spec: TypeAlias = tuple[int, Any]
"""What a variable is: VALUE and the value, MODULE and its name, NAMED and (module, name), FUNCTION and its
place in the plan."""
FunctionPlan: TypeAlias = tuple[Any, ...]
Plan: TypeAlias = tuple[list[str], list[dict[str, Spec]], list[FunctionPlan]]
"""What makes a function elsewhere: the submodules to import, the namespaces, the functions, that one first.
Each: code, number of its namespace, name, qualified name, module, docstring, defaults, and specs of keyword
defaults, annotations, attributes and closure variables."""

_IMMUTABLE = {
    *(type(None), bool, int, float, complex, str, bytes, range, type(...), type(NotImplemented)),
    re.Pattern,
}
_HEAP_TYPE = 1 << 9
_TYPING = {
    "_GenericAlias",
    "_UnionGenericAlias",
    "_SpecialForm",
    "_CallableGenericAlias",
    "_LiteralGenericAlias",
}
_BASE_NAMES = ("__package__", "__name__", "__path__", "__file__")
"""What cloudpickle copies of a function's globals besides those that it uses."""
_MISSING = object()
_parts = operator.attrgetter(
    *("__code__", "__defaults__", "__name__", "__qualname__", "__module__", "__doc__"),
    *("__kwdefaults__", "__annotations__", "__dict__", "__closure__", "__globals__"),
)
_names: weakref.WeakKeyDictionary[types.CodeType, tuple[str, ...]] = weakref.WeakKeyDictionary()


class _Changeable(Exception):
    """Something in a function can change in place, or is not known not to."""


def is_immutable(value: Any, depth: int = 20) -> bool:
    """Says whether a value, whose type is known, can change neither itself nor in what it contains."""
    cls = type(value)
    if cls in _IMMUTABLE:
        return True
    if depth == 0:
        return False
    if cls is tuple or cls is frozenset:
        return all(is_immutable(item, depth - 1) for item in value)
    if cls is type:
        return not value.__flags__ & _HEAP_TYPE and by_name(value)
    if cls in (types.GenericAlias, types.UnionType) or (
        cls.__module__ == "typing" and cls.__name__ in _TYPING
    ):
        return all(
            is_immutable(part, depth - 1) or (isinstance(part, type) and by_name(part))
            for part in (getattr(value, "__origin__", None), *getattr(value, "__args__", ()))
        )
    return False


def _size(value: Any) -> int:
    if type(value) in (str, bytes):
        return len(value)
    return sum(map(_size, value)) if type(value) in (tuple, frozenset) else 8


def _names_of(code: types.CodeType) -> tuple[str, ...]:
    names = _names.get(code)
    if names is None:
        names = _names[code] = tuple(dict.fromkeys((*_BASE_NAMES, *global_names(code))))
    return names


class _Node:
    """What one function looked like; functions are referred to weakly, as they may refer to each other."""

    __slots__ = (
        *(
            "annotations",
            "attributes",
            "cell_functions",
            "cells",
            "code",
            "defaults",
            "doc",
            "global_functions",
        ),
        *("globals", "kwdefaults", "may_get_name", "module", "name", "qualname", "ref"),
    )

    def __init__(self, function: types.FunctionType) -> None:
        self.ref = weakref.ref(function)
        self.code, self.defaults, self.name, self.qualname, self.module, self.doc = _parts(function)[:6]
        self.may_get_name = self.module != "__main__" and "<" not in self.qualname
        self.kwdefaults: list[tuple[Any, Any]] | None = None
        self.annotations: list[tuple[Any, Any]] | None = None
        self.attributes: list[tuple[Any, Any]] | None = None
        self.globals: list[tuple[str, Any]] = []
        self.global_functions: list[tuple[str, weakref.ref[Any]]] = []
        self.cells: list[tuple[int, Any]] = []
        self.cell_functions: list[tuple[int, weakref.ref[Any]]] = []

    def is_unchanged(self) -> bool:
        """Says whether the function looks the same."""
        function = self.ref()
        if function is None:
            return False
        code, defaults, name, qualname, module, doc, kwdefaults, annotations, attributes, closure, space = (
            _parts(function)
        )
        if (
            code is not self.code
            or defaults is not self.defaults
            or name is not self.name
            or qualname is not self.qualname
            or module is not self.module
            or doc is not self.doc
            or (self.may_get_name and by_name(function))
        ):
            return False
        for key, value in self.globals:
            if space.get(key, _MISSING) is not value:
                return False
        for key, ref in self.global_functions:
            if space.get(key) is not ref():
                return False
        try:
            for index, value in self.cells:
                if closure[index].cell_contents is not value:
                    return False
            for index, ref in self.cell_functions:
                if closure[index].cell_contents is not ref():
                    return False
        except ValueError:  # it is empty now
            return False
        return (
            _same_items(kwdefaults, self.kwdefaults)
            and _same_items(annotations, self.annotations)
            and _same_items(attributes, self.attributes)
        )


def _same_items(found: Mapping[Any, Any] | None, expected: list[tuple[Any, Any]] | None) -> bool:
    if not found or not expected:
        return not found and not expected
    if len(found) != len(expected):
        return False
    for (name, value), (expected_name, expected_value) in zip(found.items(), expected, strict=True):
        if name != expected_name:
            return False
        if type(expected_value) is weakref.ref:
            expected_value = expected_value()
        if value is not expected_value:
            return False
    return True


class Snapshot:
    """What a function looked like, what to send of it, and about how many bytes that takes along."""

    __slots__ = ("_absent", "_modules", "_named", "_nodes", "_registry", "plan", "size")

    def __init__(self, builder: _Builder) -> None:
        self._nodes = builder.nodes
        self._modules = list(builder.modules.items())
        self._named = builder.named
        self._absent = frozenset(builder.absent)
        self._registry = modules_by_value()
        self.plan: Plan = (builder.submodules, list(builder.spaces.values()), builder.functions)
        self.size = builder.size

    def is_unchanged(self) -> bool:
        """Says whether pickling the function now would send the same."""
        for node in self._nodes:
            if not node.is_unchanged():
                return False
        loaded = sys.modules
        for name, module in self._modules:
            if loaded.get(name) is not module:
                return False
        for owner, name, value in self._named:
            if getattr(loaded.get(owner), name, None) is not value or value.__module__ != owner:
                return False
        if self._absent and not loaded.keys().isdisjoint(self._absent):
            return False
        return modules_by_value() == self._registry


def snapshot(function: types.FunctionType) -> Snapshot | None:
    """Returns what a function looks like, None where it may change unseen.

    >>> factor = 3
    >>> def scaled(x):
    ...     return x * factor
    >>> taken = snapshot(scaled)
    >>> taken.is_unchanged()
    True
    >>> factor = 4
    >>> taken.is_unchanged()
    False
    >>> factor = [4]
    >>> snapshot(scaled) is None
    True
    """
    builder = _Builder()
    try:
        builder.add(function)
        while builder.todo:
            builder.describe(builder.todo.pop())
    except (_Changeable, AttributeError, NameError, RecursionError):
        return None
    return Snapshot(builder)


class _Builder:
    """Walks from a function to all that goes by value with it."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.functions: list[FunctionPlan] = []
        self.spaces: dict[int, dict[str, Spec]] = {}
        self.modules: dict[str, types.ModuleType] = {}
        self.named: list[tuple[str, str, Any]] = []
        self.submodules: list[str] = []
        self.absent: set[str] = set()
        self.size = 0
        self.todo: list[int] = []
        self._objects: list[types.FunctionType] = []
        self._places: dict[int, int] = {}

    def add(self, function: types.FunctionType) -> int:
        """Gives a function its place in the plan."""
        place = self._places.get(id(function))
        if place is None:
            place = self._places[id(function)] = len(self._objects)
            self._objects.append(function)
            self.nodes.append(_Node(function))
            self.functions.append(())
            self.todo.append(place)
        return place

    def describe(self, place: int) -> None:
        """Notes what a function looks like."""
        function, node = self._objects[place], self.nodes[place]
        space = function.__globals__
        number = list(self.spaces).index(id(space)) if id(space) in self.spaces else len(self.spaces)
        variables = self.spaces.setdefault(id(space), {})
        for name in _names_of(function.__code__):
            value = space.get(name, _MISSING)
            if value is _MISSING:
                node.globals.append((name, value))
                continue
            variables[name] = spec = self._spec(value)
            if spec[0] == FUNCTION:
                node.global_functions.append((name, weakref.ref(value)))
            else:
                node.globals.append((name, value))
        cells = self._cells(function, node)
        for value in function.__defaults__ or ():
            self._require_immutable(value)
        kwdefaults, node.kwdefaults = self._items(function.__kwdefaults__)
        annotations, node.annotations = self._items(function.__annotations__)
        attributes, node.attributes = self._items(function.__dict__)
        self.functions[place] = (
            *(node.code, number, node.name, node.qualname, node.module, node.doc, node.defaults),
            *(kwdefaults, annotations, attributes, cells),
        )
        if not (isinstance(node.module, str | None) and isinstance(node.doc, str | None)):
            raise _Changeable
        self._note_submodules(node)

    def _cells(self, function: types.FunctionType, node: _Node) -> list[Spec] | None:
        if function.__closure__ is None:
            return None
        specs = []
        for index, cell in enumerate(function.__closure__):
            try:
                value = cell.cell_contents
            except ValueError:
                raise _Changeable from None
            spec = self._spec(value)
            specs.append(spec)
            if spec[0] == FUNCTION:
                node.cell_functions.append((index, weakref.ref(value)))
            else:
                node.cells.append((index, value))
        return specs

    def _items(
        self, values: Mapping[str, Any] | None
    ) -> tuple[list[tuple[str, Spec]] | None, list[tuple[Any, Any]] | None]:
        if values is None:
            return None, None
        specs, seen = [], []
        for name, value in values.items():
            spec = self._spec(value)
            specs.append((name, spec))
            seen.append((name, weakref.ref(value) if spec[0] == FUNCTION else value))
        return specs, seen

    def _require_immutable(self, value: Any) -> None:
        if not is_immutable(value):
            raise _Changeable
        self.size += _size(value)

    def _spec(self, value: Any) -> Spec:
        if isinstance(value, types.ModuleType):
            name = value.__name__
            if sys.modules.get(name) is not value or registered_by_value(name):
                raise _Changeable
            self.modules[name] = value
            return MODULE, name
        if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType) and by_name(value):
            module, name = value.__module__, value.__qualname__
            if "." in name:
                raise _Changeable
            self.named.append((module, name, value))
            return NAMED, (module, name)
        if type(value) is types.FunctionType:
            return FUNCTION, self.add(value)
        self._require_immutable(value)
        return VALUE, value

    def _note_submodules(self, node: _Node) -> None:
        """Finds the submodules that cloudpickle would have imported: those that the code's names lead to."""
        values: Iterable[Any] = (value for _, value in (*node.globals, *node.cells))
        modules = [value for value in values if isinstance(value, types.ModuleType)]
        todo = [module.__name__ for module in modules if getattr(module, "__package__", None)]
        for package in todo:
            for token in node.code.co_names:
                name = f"{package}.{token}"
                if name not in sys.modules:
                    self.absent.add(name)
                elif name not in self.submodules:
                    self.submodules.append(name)
                    todo.append(name)
