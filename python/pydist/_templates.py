"""Functions that arrive as plans: each call gets a function of its own, as if it had been sent again."""

from __future__ import annotations

import builtins
import importlib
import sys
import types
from collections.abc import Callable
from typing import Any

from ._snapshots import FUNCTION, MODULE, NAMED, VALUE, Plan, Spec


class Template:
    """Makes functions of a plan; what one call changes in its function, or in its globals, no other sees.

    >>> code = (lambda x: x + n).__code__
    >>> parts = (code, 0, "add", "add", "__main__", None, None, None, None, None, None)
    >>> Template(([], [{"n": (VALUE, 2)}], [parts])).make()(3)
    5
    """

    def __init__(self, plan: Plan) -> None:
        submodules, spaces, functions = plan
        for name in submodules:
            importlib.import_module(name)
        self._spaces = []
        for space in spaces:
            constant = {name: value for name, (kind, value) in space.items() if kind == VALUE}
            constant["__builtins__"] = builtins.__dict__
            self._spaces.append((constant, [(n, spec) for n, spec in space.items() if spec[0] != VALUE]))
        self._functions = functions

    def make(self) -> Callable[..., Any]:
        """Returns a new function."""
        spaces = [constant.copy() for constant, _ in self._spaces]
        functions = [_bare(parts, spaces) for parts in self._functions]
        for space, (_, others) in zip(spaces, self._spaces, strict=True):
            for name, spec in others:
                space[name] = _resolve(spec, functions)
        for function, parts in zip(functions, self._functions, strict=True):
            _complete(function, parts, functions)
        return functions[0]


def _bare(parts: tuple[Any, ...], spaces: list[dict[str, Any]]) -> types.FunctionType:
    code, number, name, qualname, module, doc, defaults, _, _, _, cells = parts
    closure = None if cells is None else tuple(types.CellType() for _ in cells)
    function = types.FunctionType(code, spaces[number], name, defaults, closure)
    if function.__qualname__ != qualname:
        function.__qualname__ = qualname
    if function.__module__ != module:
        function.__module__ = module
    if function.__doc__ != doc:
        function.__doc__ = doc
    return function


def _complete(function: Any, parts: tuple[Any, ...], functions: list[types.FunctionType]) -> None:
    kwdefaults, annotations, attributes, cells = parts[7:]
    if kwdefaults:
        function.__kwdefaults__ = {name: _resolve(spec, functions) for name, spec in kwdefaults}
    if annotations:
        function.__annotations__ = {name: _resolve(spec, functions) for name, spec in annotations}
    if attributes:
        function.__dict__.update({name: _resolve(spec, functions) for name, spec in attributes})
    if cells:
        for cell, spec in zip(function.__closure__, cells, strict=True):
            cell.cell_contents = _resolve(spec, functions)


def _resolve(spec: Spec, functions: list[types.FunctionType]) -> Any:
    kind, what = spec
    if kind == VALUE:
        return what
    if kind == FUNCTION:
        return functions[what]
    if kind == MODULE:
        return sys.modules.get(what) or importlib.import_module(what)
    assert kind == NAMED
    module, name = what
    return getattr(sys.modules.get(module) or importlib.import_module(module), name)
