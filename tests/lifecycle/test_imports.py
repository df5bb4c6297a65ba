"""What is imported when: a program pays for what it uses alone."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pydist

SELDOM = {
    *("argparse", "asyncio", "cloudpickle", "concurrent.futures", "dataclasses", "dis", "inspect", "logging"),
    *("random", "secrets", "shutil", "ssl", "tempfile", "traceback"),
}
"""Modules whose import takes long, and which a start and a call by name have no use for."""


def run(text: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout.split()


def test_importing_pydist_imports_nothing_else():
    loaded = run(
        "import sys; before = set(sys.modules); import pydist; print(*set(sys.modules) - before, sep='\\n')"
    )
    assert loaded == ["pydist"]


def test_a_start_and_a_call_by_name_import_nothing_that_is_seldom_used():
    here, there = run("""
import sys
before = set(sys.modules)
import pydist as d
(pid,) = d.addprocs(1)
assert d.remotecall_fetch(pow, pid, 2, 10) == 1024
assert d.remotecall(abs, pid, -1).fetch() == 1
print(",".join(set(sys.modules) - before))
print(d.remotecall_fetch(eval, pid, "','.join(__import__('sys').modules)"))
""")
    assert not SELDOM & set(here.split(","))
    assert not SELDOM & set(there.split(","))
    assert "pydist._calls" in here.split(",")
    assert "pydist._worker" in there.split(",")


def test_every_name_is_found_where_it_is_said_to_be():
    tree = ast.parse(Path(pydist.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    for checkers in block.body:
        assert isinstance(checkers, ast.ImportFrom)
        for alias in checkers.names:
            assert pydist._home_of[alias.name] == checkers.module
    names = {alias.name for node in block.body for alias in node.names}
    assert names == set(pydist._home_of)
    hidden = {"__version__", "load_ipython_extension", "unload_ipython_extension"}
    assert set(pydist.__all__) == names - hidden
    for name, home in pydist._home_of.items():
        assert getattr(pydist, name) is getattr(import_module(f"pydist.{home}"), name)
    assert names <= set(dir(pydist))


def test_star_import_gives_all_names():
    namespace: dict[str, object] = {}
    exec("from pydist import *", namespace)
    assert set(pydist.__all__) <= set(namespace)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(pydist, "nothing_of_this_name")


def test_every_module_can_be_the_first_to_be_imported():
    run("""
import importlib, pathlib, sys
import pydist._core
folder = pathlib.Path(pydist.__file__).parent
kept = {"pydist._core"}
for path in sorted(folder.rglob("*.py")):
    if path.name == "__main__.py":
        continue
    for name in [n for n in sys.modules if n.startswith("pydist") and n not in kept]:
        del sys.modules[name]
    parts = path.relative_to(folder.parent).with_suffix("").parts
    importlib.import_module(".".join(parts if parts[-1] != "__init__" else parts[:-1]))
""")


def test_unpickling_a_function_while_the_pickler_is_imported():
    """Two threads import the package and the module in it: neither gives up for fear of a deadlock."""
    run("""
import sys, threading, time
import pydist, pydist._serialize

errors = []

def unpickle():
    try:
        import cloudpickle.cloudpickle
    except BaseException as error:
        errors.append(error)

other = threading.Thread(target=unpickle)

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "cloudpickle" and other.ident is None:
            other.start()
            until = time.monotonic() + 10
            while not waits(names(other)) and time.monotonic() < until:
                pass

def waits(names):
    return names[:1] == ["acquire"] and names.count("_find_and_load") == 2

def names(thread):
    frame, found = sys._current_frames().get(thread.ident), []
    while frame is not None:
        found.append(frame.f_code.co_name)
        frame = frame.f_back
    return found

sys.meta_path.insert(0, Finder())
import pydist._pickler
other.join()
assert not errors, errors
""")
