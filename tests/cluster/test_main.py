"""Functions and classes of the user's script, however it is run: tracebacks, redefinition, identity."""

from __future__ import annotations

import linecache
import textwrap
from types import ModuleType
from typing import Any

import pytest

import support

Workers = list[int]
HOWS = ["file", "-c", "-"]

CLASSES = """
    import abc, collections, dataclasses, enum, typing
    import pydist as d

    class MyError(Exception):
        def __init__(self, a, b):
            super().__init__(a)
            self.b = b

    @dataclasses.dataclass
    class Point:
        x: int
        y: int = 2

    @dataclasses.dataclass(frozen=True, slots=True)
    class Frozen:
        a: int

    class Color(enum.Enum):
        RED = 1

    class Flag(enum.IntFlag):
        A = 1
        B = 2

    Pair = collections.namedtuple("Pair", "a b")

    class Named(typing.NamedTuple):
        a: int
        b: str = "q"

    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self): ...

    class Square(Shape):
        def area(self):
            return 4

    T = typing.TypeVar("T")

    class Box(typing.Generic[T]):
        def __init__(self, v):
            self.v = v

    class Meta(type):
        def __call__(cls, *args):
            made = super().__call__(*args)
            made.by_meta = True
            return made

    class WithMeta(metaclass=Meta):
        pass

    class Outer:
        class Inner:
            pass

    class Slots:
        __slots__ = ("a", "__private")

        def __init__(self, a):
            self.a = self.__private = a

    class Sub(Point):
        pass

    made_subclasses = []

    class Registry:
        def __init_subclass__(cls):
            made_subclasses.append(cls)

    class Registered(Registry):
        pass

    def make_all():
        return [
            Point(1), Frozen(3), Color.RED, Flag.A | Flag.B, Pair(1, 2), Named(1), Square(), Box[int](3),
            WithMeta(), Outer.Inner(), Slots(1), Sub(3), Registered(),
        ]

    def same(x):
        return x

    def raising(x=None):
        raise MyError("a", 7)

    pid, = d.addprocs(1)
    methods = Square.area, Slots.__init__, Meta.__call__
    for _ in range(3):
        here = make_all()
        there = [
            d.remotecall_fetch(make_all, pid),
            d.remotecall_fetch(same, pid, here),
            d.remotecall(make_all, pid).fetch(),
            d.pmap(same, here),
        ]
        for values in there:
            assert [type(a) for a in values] == [type(a) for a in here]
            assert values[:6] == here[:6]
        assert d.remotecall_fetch(same, pid, Color.RED) is Color.RED
        assert d.remotecall_fetch(same, pid, Point) is Point
        assert d.remotecall_fetch(lambda: Slots(5), pid)._Slots__private == 5
        for call in (lambda: d.remotecall_fetch(raising, pid), lambda: d.pmap(raising, [1])):
            try:
                call()
            except MyError as error:
                assert error.b == 7 and type(error.captured) is MyError
            else:
                raise AssertionError("it did not raise")
    assert methods == (Square.area, Slots.__init__, Meta.__call__)
    assert all(m.__globals__ is globals() for m in methods)
    assert made_subclasses == [Registered]
    assert d.remotecall_fetch(lambda x: isinstance(x, Point) and not isinstance(x, Shape), pid, Sub(1))

    future = d.remotecall(lambda: Point(5), pid)
    assert d.remotecall_fetch(lambda: type(future.fetch()) is Point, pid)
    channel = d.RemoteChannel(pid)
    channel.put(Point(3))
    assert type(channel.take()) is Point
    print("fine")
"""

REDEFINITION = """
    import pydist as d

    pid, = d.addprocs(1)

    def same(x):
        return x

    def version(x=None):
        return 1

    def calls_version():
        return version()

    class Thing:
        number = 1

        def get(self):
            return "old"

    old = Thing()
    for _ in range(3):
        assert d.remotecall_fetch(calls_version, pid) == 1
        assert d.pmap(version, [0]) == [1]
        assert d.remotecall_fetch(lambda: Thing().get(), pid) == "old"

    def version(x=None):
        return 2

    OldThing = Thing

    class Thing:
        def get(self):
            return "new"

    for _ in range(3):
        assert d.remotecall_fetch(calls_version, pid) == 2
        assert d.pmap(version, [0]) == [2]
        assert d.remotecall_fetch(lambda: Thing().get(), pid) == "new"
        assert d.remotecall_fetch(lambda x: (x.get(), isinstance(x, Thing)), pid, old) == ("old", False)
        assert type(d.remotecall_fetch(same, pid, old)) is OldThing

    # What changes in a class is taken up with the next message that has the class in it, and only from here.
    OldThing.number = 2
    OldThing.get = lambda self: "changed"
    assert d.remotecall_fetch(lambda x: (x.get(), x.number), pid, old) == ("changed", 2)

    def change(x):
        type(x).number = 3
        return x

    assert d.remotecall_fetch(change, pid, old).number == 2
    assert d.remotecall_fetch(lambda x: x.number, pid, old) == 2
    print("fine")
"""

TRACEBACKS = """
    import sys
    import pydist as d

    pid, = d.addprocs(1)

    def fails(x):
        # a comment
        return helper(x)  # the line of fails

    def helper(x):
        return 1 / x  # the line of helper

    class Thing:
        def method(self):
            raise ValueError("bad")  # the line of method

    for _ in range(3):
        try:
            d.remotecall_fetch(fails, pid, 0)
        except ZeroDivisionError as error:
            print(error.remote_traceback)
    try:
        d.pmap(fails, [0])
    except ZeroDivisionError as error:
        print(error.remote_traceback)
    try:
        d.remotecall_fetch(Thing().method, pid)
    except ValueError as error:
        print(error.remote_traceback)
    d.remote_do(fails, pid, 0)
    while d.remotecall_fetch(d.stats, pid)["calls_running"] > 1:
        pass
    d.rmprocs(pid)
"""


@pytest.mark.parametrize("how", HOWS)
def test_instances_come_back_as_instances_of_the_same_class(how: str) -> None:
    done = support.run_script(CLASSES, how=how)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.parametrize("how", HOWS)
def test_what_is_defined_again_is_sent_again(how: str) -> None:
    done = support.run_script(REDEFINITION, how=how)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.parametrize("how", HOWS)
def test_tracebacks_show_the_lines_of_the_script(how: str) -> None:
    done = support.run_script(TRACEBACKS, how=how)
    assert done.returncode == 0, done.stderr
    name = {"file": "script.py", "-c": "<string>", "-": "<stdin>"}[how]
    raised, printed = done.stdout, done.stderr
    assert raised.count("return helper(x)  # the line of fails") == 4
    assert raised.count("return 1 / x  # the line of helper") == 4
    assert raised.count('raise ValueError("bad")  # the line of method') == 1
    assert raised.count(f'{name}", line') == 9
    assert "_executor.py" not in raised + printed
    lines = [line for line in (raised + printed).splitlines() if "From worker" in line]
    assert sum("the line of helper" in line for line in lines) == 1


def in_file(name: str, source: str, function: str = "f") -> Any:
    """Define a function as a notebook does: its file name is known to `linecache` alone."""
    source = textwrap.dedent(source)
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    variables: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, name, "exec"), variables)
    return variables[function]


def traceback_of(d: ModuleType, f: Any, pid: int) -> str:
    with pytest.raises(ZeroDivisionError) as caught:
        d.remotecall_fetch(f, pid)
    return str(caught.value.remote_traceback)


@pytest.mark.parametrize("name", ["/no/such/folder/ipykernel_1/123.py", "<ipython-input-1-abc>"])
def test_tracebacks_show_the_lines_of_a_notebook(d: ModuleType, workers: Workers, name: str) -> None:
    f = in_file(name, "\n\n\ndef f():\n    # a comment\n    return 1 / 0  # in the cell\n")
    for pid in workers:
        text = traceback_of(d, f, pid)
        assert f'File "{name}", line 6, in f' in text
        assert "return 1 / 0  # in the cell" in text


def test_tracebacks_show_the_latest_lines_of_a_name(d: ModuleType, workers: Workers) -> None:
    name = "<one name for two texts>"
    for comment in ("first", "second"):
        f = in_file(name, f"def f():\n    return 1 / 0  # {comment}\n")
        assert f"# {comment}" in traceback_of(d, f, workers[0])


def test_lines_of_several_functions_of_a_file(d: ModuleType, workers: Workers) -> None:
    source = "\n\n".join(f"def f{i}():\n    return {i} / 0" for i in range(3))
    for i in (2, 0, 1, 2):
        f = in_file("<three functions>", source, f"f{i}")
        assert f"return {i} / 0" in traceback_of(d, f, workers[0])


def test_code_with_the_file_name_of_a_command_shows_no_lines_of_it() -> None:
    """Only what is surely of the text behind `-c` gets its lines."""
    script = """
        import pydist as d
        pid, = d.addprocs(1)
        exec("\\n\\ndef f():\\n    return 1 / 0")
        try:
            d.remotecall_fetch(f, pid)
        except ZeroDivisionError as error:
            print(error.remote_traceback)
    """
    done = support.run_script(script, how="-c")
    assert done.returncode == 0, done.stderr
    assert '"<string>", line 4, in f\nZeroDivisionError' in done.stdout
