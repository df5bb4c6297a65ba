"""Pickling of what `__main__` defines, as seen from another process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pydist import _serialize
from pydist._serialize import loads

PACKAGES = Path(_serialize.__file__).parent.parent


MAIN = """
import sys, enum, functools, collections, dataclasses, typing
from pydist import _serialize as s

GREETING = "hello"
@dataclasses.dataclass
class Point:
    x: int
    y: int = 2
    @property
    def norm(self): return self.x + self.y
    @staticmethod
    def origin(): return Point(0, 0)
    @classmethod
    def make(cls, x): return cls(x)
    class Inner:
        z = 3
        def where(self): return type(self).__name__
class Slotted:
    __slots__ = ("a",)
    def __init__(self, a): self.a = a
class Colour(enum.Enum):
    RED = 1
    def shout(self): return self.name + "!"
class Flag(enum.IntFlag):
    A = 1
    B = 2
Pair = collections.namedtuple("Pair", "left right")
class Typed(typing.NamedTuple):
    n: int = 4
UserId = typing.NewType("UserId", int)
T = typing.TypeVar("T")
P = typing.ParamSpec("P")
class Box(typing.Generic[T]):
    def __init__(self, item): self.item = item
@functools.lru_cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
def plain(x): return GREETING, x
def deco(f):
    @functools.wraps(f)
    def inner(*a): return "deco", f(*a)
    return inner
@deco
def decorated(x): return x
def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else even(n - 1)
class Base:
    def who(self): return "base"
class Derived(Base):
    def who(self): return "derived " + super().who()
class MyError(Exception):
    def __init__(self, a, b): super().__init__(f"{a}-{b}"); self.a = a; self.b = b
class Meta(type):
    def __len__(cls): return 6
class WithMeta(metaclass=Meta): pass
async def coro(): return 8
p = Point(1)
values = {
    "plain": plain, "lambda": lambda x: x + 1, "point": [p, {"again": p}], "point_class": Point,
    "inner": Point.Inner(), "slotted": Slotted(7), "colour": Colour.RED, "flag": Flag.A | Flag.B,
    "pair": Pair(1, 2), "typed": Typed(), "user_id": UserId, "box": Box(3), "fib": fib,
    "decorated": decorated,
    "even": even, "derived": Derived(), "error": MyError(1, 2), "method": p.make,
    "partial": functools.partial(plain, 5),
    "origin": Point.origin, "with_meta": WithMeta, "coro": coro, "param": P, "static": staticmethod(plain),
}
"""

DUMP = MAIN + "data, buffers, refs = s.dumps(values)\nassert not buffers\nsys.stdout.buffer.write(data)\n"

LOAD = """
import sys, asyncio
from pydist import _serialize as s
data = sys.stdin.buffer.read()
v, w = s.loads(data), s.loads(data)
import __main__
assert not hasattr(__main__, "Point")
assert v["plain"](1) == ("hello", 1)
assert v["lambda"](1) == 2
p, again = v["point"][0], v["point"][1]["again"]
assert p is again and p.x == 1 and p.norm == 3 and p == v["point_class"](1), p
assert type(p) is type(w["point"][0]) is v["point_class"]
assert v["inner"].where() == "Inner" and v["inner"].z == 3
assert v["slotted"].a == 7
assert v["colour"].shout() == "RED!" and v["colour"] is w["colour"]
assert v["flag"] == 3 and v["flag"].name == "A|B"
assert v["pair"].left == 1 and v["pair"]._replace(right=5) == (1, 5)
assert v["typed"].n == 4
assert v["user_id"](4) == 4 and v["user_id"].__name__ == "UserId"
assert v["box"].item == 3
assert v["fib"](20) == 6765 and v["fib"].cache_info().hits > 0
assert v["decorated"](3) == ("deco", 3) and v["decorated"].__name__ == "decorated"
assert v["even"](10) is True
assert v["derived"].who() == "derived base"
e = v["error"]
assert (e.a, e.b, str(e), e.args) == (1, 2, "1-2", ("1-2",))
assert v["method"](4).x == 4
assert v["partial"]() == ("hello", 5)
assert v["origin"]().x == 0
assert len(v["with_meta"]) == 6
assert asyncio.run(v["coro"]()) == 8
assert v["param"].__name__ == "P"
assert v["static"](2) == ("hello", 2)
back = s.dumps([p, v["point_class"], v["lambda"]])[0]
sys.stdout.buffer.write(back)
"""


def run(code: str, stdin: bytes = b"", *flags: str) -> bytes:
    done = subprocess.run(
        [sys.executable, *(flags or ("-c", code))],
        input=stdin if flags[:1] != ("-",) else code.encode(),
        capture_output=True,
        env={"PYTHONPATH": str(PACKAGES)},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("how", ["-c", "-", "script"])
def test_what_main_defines_arrives_where_main_is_another(how: str, tmp_path: Path) -> None:
    if how == "script":
        (tmp_path / "script.py").write_text(DUMP)
        data = run("", b"", str(tmp_path / "script.py"))
    else:
        data = run(DUMP, b"", *(("-",) if how == "-" else ()))
    assert run(LOAD, data)


def test_main_classes_come_back_as_themselves() -> None:
    code = MAIN + textwrap.dedent("""
        data, _, _ = s.dumps(values)
        import subprocess
        loader = sys.argv[1]
        command = [sys.executable, "-c", loader]
        back = subprocess.run(command, input=data, capture_output=True, check=True).stdout
        q, cls, f = s.loads(back)
        assert cls is Point and type(q) is Point and q == p
        print("same")
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, LOAD],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(PACKAGES)},
        timeout=60,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr


def test_modules_beside_the_script_go_by_name(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def f(x): return x + 1\nclass C: pass\n")
    (tmp_path / "script.py").write_text(
        "import sys, helper\nfrom pydist import _serialize as s\n"
        "data, _, _ = s.dumps_call(helper.f, (1, helper.C()), {})\n"
        "assert b'helper' in data and len(data) < 150, data\n"
        "sys.stdout.buffer.write(data)"
    )
    data = run("", b"", str(tmp_path / "script.py"))
    with pytest.raises(ModuleNotFoundError) as caught:
        loads(data)
    assert "'helper' could not be imported" in caught.value.__notes__[0]
    assert str(sys.path) in caught.value.__notes__[0]


def test_a_global_of_main_by_name_is_refused() -> None:
    assert (
        run("""
from pydist import _serialize as s
class Missing:
    def __reduce__(self): return "MISSING"
MISSING = Missing()
try:
    s.dumps_call(print, ([MISSING],), {})
except s.PicklingError as e:
    assert "args[0][0]" in str(e) and "__main__.MISSING" in str(e), e
    print("refused")
""")
        == b"refused\n"
    )
