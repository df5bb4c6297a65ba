"""Functions that are sent once by plain calls: whatever changes in them is seen by the next call."""

from __future__ import annotations

import gc
import itertools
import math
import os.path
import re
import sys
import textwrap
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import pydist
from pydist import _function_cache, _functions, _serialize
from pydist._snapshots import snapshot

HERE, THERE = 1, 2


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process be both the sender and the receiver, without a cluster."""
    numbers = itertools.count(1)
    with monkeypatch.context() as patch:
        patch.setattr(_functions, "new_key", lambda: (HERE, next(numbers)))
        patch.setattr(_functions, "_received", {HERE: {}})
        patch.setattr(_function_cache, "_entries", {})
        patch.setattr(_function_cache, "_retired", type(_function_cache._retired)())
        yield


def namespace(source: str) -> dict[str, Any]:
    """Run a text as `__main__` does, and return its globals."""
    variables: dict[str, Any] = {"__name__": "__main__"}
    exec(textwrap.dedent(source), variables)
    return variables


def send(f: Any, *args: Any, pid: int = THERE, **kwargs: Any) -> tuple[Any, _function_cache.Sending | None]:
    """Send a call and receive it; return what arrives, and how it went."""
    (data, buffers, _), sending = _function_cache.dumps_call(f, pid, args, kwargs)
    if sending is not None:
        with sending:
            pass
    return _serialize.loads(data, buffers), sending


def outcome(call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> str:
    """Run a call, and say what it gave."""
    f, args, kwargs = call
    try:
        return repr(f(*args, **kwargs))
    except Exception as error:
        return repr(error)


def kept(f: Any) -> bool:
    """Call a function a few times, and say whether only its key is sent in the end."""
    for _ in range(3):
        _, sending = send(f)
    return sending is not None and not sending.defines


PROGRAM = """
    import math
    import os
    number = 1
    text = "a"
    pair = (1, ("x", 2.5))
    items = [1]

    def helper(x, k=1):
        return (x, k, number, inner_helper(x))

    def inner_helper(x):
        return x + 1

    def make():
        n = 0

        def f(x=0, *, y=2):
            return (
                x, y, n, number, type(number), text, pair, helper(x), math.floor(2.5), len("abc"),
                getattr(f, "mark", None), f.__name__, f.__doc__, f.__annotations__, f.__kwdefaults__,
                __name__, os.path.basename("a/b"),
            )

        def g(x=0):
            return (f(x), items, n)

        def bump(value):
            nonlocal n
            n = value

        return f, g, bump

    f, g, bump = make()

    def other_code(x=5, *, y=6):
        return ("other", x, y, number, missing)
"""
VALUES = [
    1,
    True,
    1.0,
    0.0,
    -0.0,
    "a",
    b"a",
    None,
    (1,),
    (True,),
    frozenset({1}),
    10**30,
    [1],
    {"a": 1},
    math,
    len,
]


def change_code(variables: dict[str, Any], value: Any) -> None:
    def closed(n: Any, f: Any) -> Callable[..., Any]:
        def inner(x: Any = 0, *, y: Any = 2) -> Any:
            return (n, f.__name__, x, y)

        return inner

    code = closed(0, len).__code__
    f = variables["f"]
    if len(code.co_freevars) == len(f.__code__.co_freevars):
        f.__code__ = code.replace(co_name=str(value))


CHANGES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "global": lambda v, value: v.update(number=value),
    "global back": lambda v, value: v.update(number=1),
    "other global": lambda v, value: v.update(text=value, pair=(value, 1)),
    "global gone": lambda v, value: v.pop("text", None),
    "list": lambda v, value: v["items"].append(value),
    "list for a global": lambda v, value: v.update(number=v["items"]),
    "list in a tuple": lambda v, value: v.update(pair=(1, v["items"])),
    "cell": lambda v, value: v["bump"](value),
    "defaults": lambda v, value: setattr(v["f"], "__defaults__", (value,)),
    "keyword defaults": lambda v, value: setattr(v["f"], "__kwdefaults__", {"y": value}),
    "keyword defaults in place": lambda v, value: v["f"].__kwdefaults__.update(y=value),
    "code": change_code,
    "attribute": lambda v, value: setattr(v["f"], "mark", value),
    "no attribute": lambda v, value: v["f"].__dict__.clear(),
    "annotations": lambda v, value: v["f"].__annotations__.update(x=value),
    "no annotations": lambda v, value: v["f"].__annotations__.clear(),
    "name": lambda v, value: setattr(v["f"], "__name__", str(value)),
    "docstring": lambda v, value: setattr(v["f"], "__doc__", str(value)),
    "helper": lambda v, value: v.update(helper=lambda x: (value, x)),
    "helper by name": lambda v, value: v.update(helper=math.sqrt),
    "helper's defaults": lambda v, value: setattr(v["inner_helper"], "__defaults__", (value,)),
    "helper's code": lambda v, value: setattr(v["inner_helper"], "__code__", (lambda x: (x, "new")).__code__),
    "helper's helper": lambda v, value: v.update(inner_helper=lambda x: (x, value)),
    "builtin": lambda v, value: v.update(len=value),
    "module": lambda v, value: v.update(math=value),
    "module name": lambda v, value: v.update(__name__=str(value)),
}


@hypothesis.settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    st.lists(
        st.tuples(st.sampled_from(sorted(CHANGES)), st.sampled_from(VALUES), st.integers(1, 4)), max_size=12
    )
)
def test_every_change_is_seen(steps: list[tuple[str, Any, int]]) -> None:
    """A call gives what it does where the function is pickled each time, whatever has changed before."""
    variables = namespace(PROGRAM)
    for change, value, calls in [("global back", 1, 3), *steps]:
        try:
            CHANGES[change](variables, value)
        except (AttributeError, KeyError, ValueError, TypeError):
            continue
        for name in ("f", "g"):
            for _ in range(calls):
                function = variables[name]
                plain = _serialize.loads(*_serialize.dumps_call(function, (3,), {})[:2])
                assert outcome(send(function, 3)[0]) == outcome(plain), (change, value)


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_each_change_is_seen(change: str) -> None:
    """The same for each change of a function that is kept elsewhere."""
    variables = namespace(PROGRAM)
    f = variables["f"]
    for _ in range(3):
        send(f, 3)
    CHANGES[change](variables, 7)
    plain = _serialize.loads(*_serialize.dumps_call(f, (3,), {})[:2])
    assert outcome(send(f, 3)[0]) == outcome(plain)


def test_the_program_above_is_kept() -> None:
    """The two tests above would prove nothing if it were pickled each time."""
    variables = namespace(PROGRAM)
    assert kept(variables["f"])
    assert not kept(variables["g"])


KEPT = {
    "lambda": "f = lambda: 1",
    "default": "def f(x=(1, 'a', None)): return x",
    "importable function": "from os.path import join\ndef f(): return join('a', 'b')",
    "importable class": "from fractions import Fraction\ndef f(): return Fraction(1, 2)",
    "built-in": "from math import sqrt\ndef f(): return sqrt(4)",
    "module": "import os.path\ndef f(): return os.path.join('a', 'b')",
    "pattern": "import re\npattern = re.compile('a')\ndef f(): return pattern.match('a').group()",
    "recursion": "def f(n=3): return n and n * f(n - 1)",
    "mutual recursion": "def f(n=3): return n and g(n - 1)\ndef g(n): return n and f(n - 1)",
    "annotations": "from typing import Optional\ndef f(x: Optional[int] = None) -> list[int]: return [1]",
    "wrapped": (
        "import functools\ndef deco(g):\n    @functools.wraps(g)\n    def inner(): return g() + 1\n"
        "    return inner\n@deco\ndef f(): return 1"
    ),
    "async": "async def f(): return 1",
    "generator": "def f(): yield 1",
    "missing global": "def f(): return missing if False else 1",
    "nested": "number = 2\ndef f(): return [(lambda: number)() for _ in range(2)]",
}
NOT_KEPT = {
    "list": "items = []\ndef f(): return items",
    "list in a nested function": "items = []\ndef f(): return (lambda: items)()",
    "list in a tuple": "pair = (1, [])\ndef f(): return pair",
    "list as a default": "def f(x=[]): return x",
    "keyword default": "def f(*, x={}): return x",
    "attribute": "def f(): return f.x\nf.x = []",
    "class": "class C: pass\ndef f(): return C.__name__",
    "instance": "class C: pass\nc = C()\ndef f(): return c.__class__.__name__",
    "str of a class": "class S(str): pass\ns = S('a')\ndef f(): return s",
    "array": "import numpy\na = numpy.arange(3)\ndef f(): return a",
    "method": "append = [].append\ndef f(): return append",
    "list in a helper": "items = []\ndef g(): return items\ndef f(): return g()",
    "module of the user": "import types\nm = types.ModuleType('m')\ndef f(): return m.__name__",
    "empty cell": "def make():\n    if False: x = 1\n    def f(): return x\n    return f\nf = make()",
}


@pytest.mark.parametrize("name", sorted(KEPT))
def test_what_cannot_change_unseen_is_kept(name: str) -> None:
    f = namespace(KEPT[name])["f"]
    plain = _serialize.loads(*_serialize.dumps_call(f, (), {})[:2])[0]
    assert kept(f)
    arrived = send(f)[0][0]
    assert {*arrived.__globals__} == {*plain.__globals__}
    for part in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__"):
        assert getattr(arrived, part) == getattr(plain, part)
    assert arrived.__annotations__ == plain.__annotations__
    assert {*arrived.__dict__} == {*plain.__dict__}
    if "yield" not in KEPT[name] and "async" not in KEPT[name]:
        assert outcome((arrived, (), {})) == outcome((plain, (), {}))


@pytest.mark.parametrize("name", sorted(NOT_KEPT))
def test_what_can_change_unseen_is_pickled_each_time(name: str) -> None:
    assert not kept(namespace(NOT_KEPT[name])["f"])


def test_calls_see_nothing_of_what_others_changed_there() -> None:
    """Globals, closure variables and attributes that a call changes are its own, as if it were sent again."""
    source = """
        count = 0
        def make():
            n = 0
            def f():
                nonlocal n
                global count
                n += 1
                count += 1
                f.calls = getattr(f, "calls", 0) + 1
                return n, count, f.calls
            return f
        f = make()
    """
    f = namespace(source)["f"]
    for _ in range(5):
        arrived = send(f)[0][0]
        assert arrived() == (1, 1, 1)
        assert arrived() == (2, 2, 2)


def test_a_submodule_that_is_imported_later_is_imported_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = types.ModuleType("a_package"), types.ModuleType("a_package.part")
    package.__package__ = "a_package"
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "a_package", package)
    f = namespace("import a_package\ndef f(): return a_package.part")["f"]
    assert kept(f)
    monkeypatch.setitem(sys.modules, "a_package.part", module)
    _, sending = send(f)
    assert sending is None


def test_a_rebound_importable_function_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    f = namespace("from os.path import basename\ndef f(): return basename('a/b')")["f"]
    assert kept(f)
    monkeypatch.setattr(os.path, "basename", lambda path: "other")
    assert send(f)[1] is None
    assert send(f)[0][0]() == "b"


def test_importable_functions_are_looked_up_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where they are pickled by name each time."""
    f = namespace("import textwrap\nfrom textwrap import dedent\ndef f(): return dedent(' a')")["f"]
    assert kept(f)
    (data, buffers, _), sending = _function_cache.dumps_call(f, THERE, (), {})
    assert sending is not None
    monkeypatch.setattr(textwrap, "dedent", lambda text: "patched")
    assert outcome(_serialize.loads(data, buffers)) == "'patched'"


def test_registering_a_module_is_seen() -> None:
    f = namespace("import textwrap\ndef f(): return textwrap.dedent(' a')")["f"]
    assert kept(f)
    pydist.register_by_value("textwrap")
    try:
        assert send(f)[1] is None
    finally:
        pydist.unregister_by_value("textwrap")


def test_small_functions_are_sent_with_the_second_call_large_ones_with_the_first() -> None:
    small, large = (namespace(f"text = 'a' * {n}\ndef f(): return len(text)")["f"] for n in (10, 10_000))
    assert send(small)[1] is None
    sending = send(small)[1]
    assert sending is not None
    assert sending.defines
    sending = send(large)[1]
    assert sending is not None
    assert sending.defines


def test_each_process_is_sent_it() -> None:
    f = namespace("f = lambda: 1")["f"]
    send(f)
    for pid in (2, 3):
        first, second = send(f, pid=pid)[1], send(f, pid=pid)[1]
        assert first is not None
        assert second is not None
        assert first.defines
        assert not second.defines


def test_it_counts_as_sent_only_once_the_message_has_been() -> None:
    f = namespace("f = lambda x: 1")["f"]
    send(f, 1)
    with pytest.raises(TypeError, match="lock"):
        _function_cache.dumps_call(f, THERE, (threading.Lock(),), {})
    _, sending = _function_cache.dumps_call(f, THERE, (1,), {})
    assert sending is not None
    with pytest.raises(KeyboardInterrupt), sending:
        raise KeyboardInterrupt
    sending = send(f, 1)[1]
    assert sending is not None
    assert sending.defines


def test_functions_among_the_arguments_share_globals() -> None:
    variables = namespace(
        """
        state = 1
        def f(g):
            global state
            state = 2
            return g()
        def g(): return state
        """
    )
    for _ in range(4):
        call, sending = send(variables["f"], variables["g"])
        assert sending is None
        assert outcome(call) == "2"


class Argument:
    """An argument that has a function in it, and counts how often it is pickled."""

    pickled = 0

    def __init__(self, f: Any = None) -> None:
        self.f = f

    def __reduce__(self) -> Any:
        Argument.pickled += 1
        return Argument, (lambda: 1,)


def test_arguments_that_go_by_value_are_pickled_twice_only_now_and_then() -> None:
    f = namespace("f = lambda x: 1")["f"]
    Argument.pickled = 0
    for _ in range(200):
        assert send(f, Argument())[1] is None
    assert 200 <= Argument.pickled < 210


def test_a_function_that_always_changes_is_left_as_it_is() -> None:
    variables = namespace("number = 0.5\ndef f(): return number")
    definitions = 0
    for n in range(200):
        variables["number"] = n + 0.5
        call, sending = send(variables["f"])
        assert outcome(call) == str(n + 0.5)
        definitions += sending is not None
    assert definitions < 10


def test_a_function_that_is_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = []
    monkeypatch.setattr(
        _functions, "have_dropped", lambda pid, keys: dropped.extend((pid, key) for key in keys)
    )
    monkeypatch.setattr(_function_cache._refs, "call_here", lambda f, args, kwargs: f(*args))
    for _ in range(_function_cache.RETIRED_MAX):
        variables = namespace("def f(n=3): return n and f(n - 1)")
        assert kept(variables["f"])
        alive = weakref.ref(variables["f"])
        del variables
        gc.collect()
        assert alive() is None
    assert len(dropped) == _function_cache.RETIRED_MAX
    assert not _function_cache._entries


def test_a_function_that_changed_is_forgotten_once_nobody_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = []
    monkeypatch.setattr(_functions, "have_dropped", lambda pid, keys: dropped.extend(keys))
    monkeypatch.setattr(_function_cache._refs, "call_here", lambda f, args, kwargs: f(*args))
    variables = namespace("text = 'a' * 10_000\ndef f(): return text[0]")
    send(variables["f"])
    (data, buffers, _), sending = _function_cache.dumps_call(variables["f"], THERE, (), {})
    variables["text"] = "b" * 10_000
    assert outcome(send(variables["f"])[0]) == "'b'"
    assert not dropped
    assert outcome(_serialize.loads(data, buffers)) == "'a'"
    assert sending is not None
    sending.end(sent=True)
    assert len(dropped) == 1


def test_there_is_a_bound_to_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_function_cache._refs, "call_here", lambda f, args, kwargs: None)
    functions = [namespace("f = lambda: 1")["f"] for _ in range(2 * _function_cache.ENTRIES_MAX)]
    for f in functions:
        assert kept(f)
    assert len(_function_cache._entries) == _function_cache.ENTRIES_MAX
    assert sum(len(pids) for _, pids in _function_cache._retired) == _function_cache.ENTRIES_MAX
    assert kept(functions[0])


def test_what_cannot_be_loaded_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that comes later makes the function work, as where it is pickled each time."""
    package, module = types.ModuleType("b_package"), types.ModuleType("b_package.part")
    package.__package__ = "b_package"
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "b_package", package)
    monkeypatch.setitem(sys.modules, "b_package.part", module)
    f = namespace("import b_package\ndef f(x=False): return b_package.part.__name__ if x else 1")["f"]
    send(f)
    (data, buffers, _), sending = _function_cache.dumps_call(f, THERE, (), {})
    assert sending is not None
    sending.end(sent=True)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "b_package.part")
        for _ in range(2):
            with pytest.raises(ModuleNotFoundError, match=re.escape("b_package.part")):
                _serialize.loads(data, buffers)
    assert outcome(send(f)[0]) == "1"


def test_a_snapshot_keeps_no_function_alive() -> None:
    f: typing.Any = namespace("def make():\n    def f(n=2): return n and f(n - 1)\n    return f\nf = make()")[
        "f"
    ]
    taken = snapshot(f)
    assert taken is not None
    alive = weakref.ref(f)
    del f
    gc.collect()
    assert alive() is None
    assert not taken.is_unchanged()
