"""What Distributed.jl has as macros: calls that read like statements, as functions and decorators."""

from __future__ import annotations

import ast
import itertools
import linecache
from collections.abc import Callable
from typing import Any

from ._calls import call_each, pick_worker, remotecall, remotecall_fetch
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
        where: the id of a process, or "any" for a worker that pydist picks.
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
        where: the id of a process, or "any" for a worker that pydist picks.
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
        pids: an id, or several.
        names: values that are set in `__main__` there first.

    Returns:
        For one id the value of the last expression, or None; for several None.

    Raises:
        SyntaxError: the text is no Python.
        RemoteException: what one process raised.
        ExceptionGroup: what several raised.

    Distributed.jl: `remotecall_eval`.

    >>> import pydist as d
    >>> d.remotecall_eval("a = n + 1; a * 2", d.workers()[0], n=4)
    10
    """
    if not isinstance(code, str):
        raise TypeError(f"code must be a str, not {type(code).__name__}")
    filename = f"<pydist {next(_texts)}>"
    compile(code, filename, "exec")
    if isinstance(pids, int):
        return remotecall_fetch(run_text, pids, code, filename, names)
    futures = call_each(run_text, pids, code, filename, names)
    errors: list[Exception] = []
    for future in futures:
        try:
            future.fetch()
        except Exception as error:
            errors.append(error)
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(futures)} processes raised", errors)
    return None


def run_text(code: str, filename: str, names: dict[str, Any]) -> Any:
    """Runs source text in `__main__` of this process; returns the value of the last expression."""
    import __main__

    linecache.cache[filename] = (len(code), None, code.splitlines(keepends=True), filename)
    namespace = __main__.__dict__
    namespace.update(names)
    tree = ast.parse(code, filename)
    last: ast.Expression | None = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    exec(compile(tree, filename, "exec"), namespace)
    return None if last is None else eval(compile(last, filename, "eval"), namespace)
