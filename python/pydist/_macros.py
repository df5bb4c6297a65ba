"""What Distributed.jl has as macros: calls that read like statements, as functions and decorators."""

from __future__ import annotations

import ast
import functools
import itertools
import linecache
import textwrap
from collections.abc import Callable
from typing import Any

from . import _calls, _core, _groups, _session
from ._calls import pick_worker, remotecall, remotecall_fetch
from ._refs import Future

_texts = itertools.count(1)


def spawn(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
    """Calls a function on a worker that pydist picks; as a decorator, binds its name to the `Future`.

    Parameters:
        f: any callable; without parameters where this is used as a decorator.
        args: passed to `f`.
        kwargs: passed to `f`.

    Returns:
        The `Future` of the value.

    Distributed.jl: `@spawn`.

    >>> import pydist as d
    >>> @d.spawn
    ... def answer():
    ...     return 6 * 7
    >>> answer.fetch()
    42
    """
    return remotecall(f, pick_worker(), *args, **kwargs)


def spawnat(where: Any, f: Callable[..., Any] | None = None, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a function on a process; as a decorator, `@spawnat(p)`, binds its name to the `Future`.

    Parameters:
        where: the id of a process, a pool, or "any" for a worker that pydist picks.
        f: any callable; left out in the decorator.
        args: passed to `f`.
        kwargs: passed to `f`.

    Returns:
        The `Future` of the value; without `f` a decorator.

    Distributed.jl: `@spawnat`.

    >>> import pydist as d
    >>> d.spawnat("any", divmod, 7, 2).fetch()
    (3, 1)
    """
    if f is None:
        if args or kwargs:
            raise TypeError("spawnat(where) as a decorator takes nothing but where")
        return lambda function: remotecall(function, where)
    return remotecall(f, where, *args, **kwargs)


def fetchfrom(where: Any, f: Callable[..., Any] | None = None, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a function on a process and waits; as a decorator, `@fetchfrom(p)`, binds its name to the value.

    Parameters:
        where: the id of a process, a pool, or "any" for a worker that pydist picks.
        f: any callable; left out in the decorator.
        args: passed to `f`.
        kwargs: passed to `f`.

    Returns:
        What `f` returns; without `f` a decorator.

    Distributed.jl: `@fetchfrom`.

    >>> import pydist as d
    >>> d.fetchfrom(d.workers()[0], max, 3, 5)
    5
    """
    if f is None:
        if args or kwargs:
            raise TypeError("fetchfrom(where) as a decorator takes nothing but where")
        return lambda function: remotecall_fetch(function, where)
    return remotecall_fetch(f, where, *args, **kwargs)


def remotecall_eval(code: str, pids: Any, /, **names: Any) -> Any:
    """Runs source text in `__main__` of processes, and waits.

    Parameters:
        code: Python statements.
        pids: an id; or several, or a pool.
        names: values that are set in `__main__` there first.

    Returns:
        For one id the value of the last expression, or None; for several None.

    Raises:
        SyntaxError: the text is no Python.
        RemoteException: what the process raised, for one id.
        ExceptionGroup: what processes raised, for several, also where it is a single one.
        ValueError: there is no such process.

    Distributed.jl: `remotecall_eval`.

    >>> import pydist as d
    >>> d.remotecall_eval("a = n + 1; a * 2", d.workers()[0], n=4)
    10
    """
    text, filename = check_text(code)
    if _groups.is_pid(pids):
        return remotecall_fetch(run_text, pids, text, filename, names)
    calls = _groups.call_each(_groups.as_pids(pids), _calls.same_call(run_text, (text, filename, names)))
    _, errors = _groups.values_of(calls)
    if errors:
        raise _groups.group_of("remotecall_eval", errors)
    return None


def check_text(code: Any) -> tuple[str, str]:
    """Source text without its common indentation, and the name of the file that it stands for in tracebacks.

    Raises:
        TypeError: it is no text.
        SyntaxError: it is no Python; the error shows the line.
    """
    if not isinstance(code, str):
        raise TypeError(f"code must be a str, not {type(code).__name__}")
    first = next((line for line in code.splitlines() if line.strip()), "")
    text = textwrap.dedent(code) if first[:1].isspace() else code
    _session.ensure_started()
    filename = _file_of(text, _core.me())
    _remember(text, filename)
    compile(text, filename, "exec", dont_inherit=True)
    return text, filename


@functools.lru_cache(1024)
def _file_of(text: str, me: int) -> str:
    return f"<pydist {me}.{next(_texts)}>"


def _remember(text: str, filename: str) -> None:
    """Lets tracebacks show the lines of a text."""
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)


def run_text(code: str, filename: str, names: dict[str, Any]) -> Any:
    """Runs source text in `__main__` of this process; returns the value of the last expression."""
    import __main__

    _remember(code, filename)
    namespace = __main__.__dict__
    namespace.update(names)
    tree = ast.parse(code, filename)
    last: ast.Expression | None = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    exec(compile(tree, filename, "exec", dont_inherit=True), namespace)
    if last is None:
        return None
    return eval(compile(last, filename, "eval", dont_inherit=True), namespace)
