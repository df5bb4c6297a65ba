"""Source lines that travel with functions sent by value."""

import linecache
import traceback

import pytest

from pydist import _serialize, _sources

TEXT = """\
x = 0

@str
def shown(): pass

def f(y):
    def g():
        return 1 / y
    return g

z = 1
"""
NAME = "<a cell>"


@pytest.fixture
def cell():
    """Give the names that a cell defines, whose lines only this process knows."""
    linecache.cache[NAME] = (len(TEXT), None, TEXT.splitlines(keepends=True), NAME)
    namespace = {"__name__": "__main__"}
    exec(compile(TEXT, NAME, "exec"), namespace)
    yield namespace
    linecache.cache.pop(NAME, None)


def test_the_lines_of_a_function_go_along(cell):
    assert _sources.lines_of(cell["f"].__code__) == (NAME, 6, TEXT.splitlines(keepends=True)[5:9])
    data, buffers, _ = _serialize.dumps(cell["f"])
    del linecache.cache[NAME]
    arrived = _serialize.loads(data, buffers)
    with pytest.raises(ZeroDivisionError) as raised:
        arrived(0)()
    assert "return 1 / y" in "".join(traceback.format_exception(raised.value))
    linecache.checkcache()
    assert linecache.getline(NAME, 8) == "        return 1 / y\n"
    assert linecache.getline(NAME, 1) == "\n"


def test_lines_of_several_functions_of_one_cell_add_up():
    name = "<another cell>"
    _sources.remember(name, 4, ["d\n", "e\n"])
    _sources.remember(name, 1, ["a\n"])
    _sources.remember(name, 5, ["E\n", "f\n"])
    assert linecache.cache.pop(name)[2] == ["a\n", "\n", "\n", "d\n", "E\n", "f\n"]


def test_a_file_that_is_there_is_read_itself():
    _sources.remember(__file__, 1, ["wrong\n"])
    assert linecache.getline(__file__, 1) == '"""Source lines that travel with functions sent by value."""\n'
    _sources.remember(__file__, 1, ["wrong\n"])
    assert linecache.getline(__file__, 1) != "wrong\n"


def test_a_function_without_known_lines_goes_without():
    namespace = {"__name__": "__main__"}
    exec(compile("def f(): return 1", "<unknown>", "exec"), namespace)
    assert _sources.lines_of(namespace["f"].__code__) is None
    data, buffers, _ = _serialize.dumps(namespace["f"])
    assert _serialize.loads(data, buffers)() == 1
    assert b"_sources" not in data
