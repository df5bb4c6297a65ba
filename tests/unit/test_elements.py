"""Taking elements, batches that give back, progress bars and random streams, without processes."""

import itertools
import sys
import threading
import time
from typing import ClassVar

import numpy as np
import pytest

import pydist as d
from pydist import _batches, _core
from pydist._elements import Elements, row_of
from pydist._progress import Progress


@pytest.fixture(autouse=True)
def process_1(monkeypatch):
    monkeypatch.setattr(_core, "me", lambda: 1)


def drain(elements: Elements, count: int) -> list[tuple]:
    rows = []
    while not elements.exhausted:
        columns = elements.take(count)
        rows += [row_of(columns, place) for place in range(len(columns[0]))]
    return rows


@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize(
    "make",
    [
        lambda: ([1, 2, 3, 4],),
        lambda: (range(0, 50, 3),),
        lambda: (iter([1, 2, 3]),),
        lambda: ([], [1]),
        lambda: ([1, 2, 3], "ab"),
        lambda: (range(9), [None] * 7, tuple("abcdefgh")),
        lambda: (range(9), iter("abc")),
        lambda: (itertools.count(), [5, 6]),
        lambda: ({1: 2, 3: 4},),
        lambda: (np.arange(5),),
    ],
)
def test_elements_are_those_of_zip(make, count):
    assert drain(Elements(make()), count) == list(zip(*make(), strict=False))


def test_the_number_of_elements_is_known_where_all_are_sized():
    assert Elements(([1, 2], range(5))).total == 2
    assert Elements(({1, 2, 3},)).total == 3
    assert Elements((iter([1]), [1, 2])).total is None


def test_a_range_is_cut_into_ranges():
    (column,) = Elements((range(0, 100, 2),)).take(10)
    assert column == range(0, 20, 2)


def test_a_slow_iterable_is_not_waited_for():
    def slow():
        for i in range(100):
            time.sleep(0.003)
            yield i

    elements = Elements((slow(),))
    assert elements.take(1000) == ([0],)
    assert not elements.exhausted


def test_an_error_of_an_iterable_comes_after_what_it_gave():
    def broken():
        yield 1
        raise LookupError("broken")

    elements = Elements((broken(),))
    assert elements.take(1) == ([1],)
    assert elements.take(10) == ([],)
    assert elements.exhausted
    assert isinstance(elements.error, LookupError)


# --- batches ------------------------------------------------------------------------------------------------


def run(f, *columns, how=0):
    return _batches.run_function(f, (1, 1, 1), how, columns)


def stop_at_two(x):
    if x == 2:
        raise StopIteration("no error of ours")
    return x


def test_a_batch_stops_at_its_first_error_and_keeps_the_values_before():
    _, values, errors = run(lambda x: 6 // x, [3, 2, 0, 1])
    assert values == [2, 3, None]
    assert [(place, type(error.captured)) for place, error in errors] == [(2, ZeroDivisionError)]


def test_a_batch_goes_on_after_errors_where_they_are_kept():
    _, values, errors = run(lambda x, y: x // y, [3, 2, 4], [0, 1, 0], how=_batches.KEEP_ERRORS)
    assert values == [None, 2, None]
    assert [place for place, _ in errors] == [0, 2]


@pytest.mark.parametrize("items", [[2], [1, 2], [2, 3], [0, 2, 1]])
def test_stop_iteration_of_the_function_is_an_error_like_others(items):
    _, values, errors = run(stop_at_two, items, how=_batches.KEEP_ERRORS)
    assert values == [None if x == 2 else x for x in items]
    assert [place for place, _ in errors] == [items.index(2)]
    assert isinstance(errors[0][1].captured, StopIteration)


def test_an_interrupt_ends_a_batch_even_where_errors_are_kept():
    def interrupt(x):
        if x == 1:
            raise KeyboardInterrupt
        return x

    _, values, errors = run(interrupt, [0, 1, 2], how=_batches.KEEP_ERRORS)
    assert (values, [place for place, _ in errors]) == ([0, None], [1])


def test_a_batch_gives_back_what_has_not_begun():
    kept = []

    def work(x):
        if x == 3:
            kept.append(_batches.give_back((1, 1, 1)))
        return x

    assert run(work, list(range(10)))[1] == [0, 1, 2, 3]
    assert kept == [4]
    assert _batches.give_back((1, 1, 1)) is None


def test_a_batch_gives_back_nothing_at_its_last_element():
    kept = []
    assert run(lambda x: kept.append(_batches.give_back((1, 1, 1))), [1])[1] == [None]
    assert kept == [1]


def test_no_element_is_lost_or_run_twice_where_a_batch_is_given_back():
    """Another thread takes elements away while the batch runs, at every moment."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for n in range(300):
            ran, given = [], []
            begin = threading.Barrier(2)

            def take(given=given, begin=begin):
                begin.wait()
                given.append(_batches.give_back((1, 1, 1)))

            def work(x, ran=ran, begin=begin):
                if x == 0:
                    begin.wait()
                ran.append(x)
                return x

            thread = threading.Thread(target=take)
            thread.start()
            values = run(work, list(range(1 + n % 40)))[1]
            thread.join()
            total = 1 + n % 40
            assert ran == values == list(range(len(values)))
            if given[0] is not None:
                assert len(values) <= given[0] <= len(values) + 1
            else:
                assert len(values) == total
            if len(values) < total:
                assert given[0] is not None
    finally:
        sys.setswitchinterval(interval)


# --- progress -----------------------------------------------------------------------------------------------


class Bar:
    """A bar like those of tqdm."""

    made: ClassVar[list[object]] = []

    def __init__(self, total=None):
        self.total, self.n, self.closed = total, 0, False
        Bar.made.append(self)

    def update(self, n=1):
        self.n += n

    def close(self):
        self.closed = True


def test_a_class_or_function_makes_a_bar_which_is_closed():
    for make in (Bar, lambda total: Bar(total)):
        bar = Progress(make, 7)
        bar.update(3)
        bar.update(2)
        bar.close()
        made = Bar.made[-1]
        assert (made.total, made.n, made.closed) == (7, 5, True)


def test_a_bar_that_is_given_stays_open():
    mine = Bar()
    bar = Progress(mine, 7)
    bar.update(2)
    bar.close()
    bar.close()
    assert (mine.n, mine.closed) == (2, False)


def test_no_bar():
    for nothing in (False, None):
        bar = Progress(nothing, 7)
        bar.update(2)
        bar.close()


def test_what_is_no_bar_is_refused():
    with pytest.raises(TypeError, match="progress"):
        Progress(3, 7)
    with pytest.raises(TypeError, match="update"):
        Progress(lambda total: None, 7)


def test_without_tqdm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"pydist\[progress\]"):
        Progress(True, 7)


# --- random streams -----------------------------------------------------------------------------------------


def test_random_streams_are_those_of_spawn():
    children = np.random.SeedSequence(11).spawn(5)
    streams = d.random_streams(11, 5)
    assert len(streams) == 5
    for stream, child in zip(streams, children, strict=True):
        assert (stream.random(10) == np.random.default_rng(child).random(10)).all()
    assert streams[-1].random() == np.random.default_rng(children[4]).random()
    assert [s.random() for s in streams[1:3]] == [np.random.default_rng(c).random() for c in children[1:3]]
    with pytest.raises(IndexError):
        streams[5]
    with pytest.raises(ValueError, match="negative"):
        d.random_streams(1, -1)


def test_random_streams_of_a_child_are_those_of_its_children():
    child = np.random.SeedSequence(3).spawn(2)[1]
    expected = [np.random.default_rng(c).random() for c in np.random.SeedSequence(3).spawn(2)[1].spawn(2)]
    assert [stream.random() for stream in d.random_streams(child, 2)] == expected


def test_random_streams_without_a_seed_differ():
    first, second = d.random_streams(None, 1), d.random_streams(None, 1)
    assert first[0].random() != second[0].random()
    assert first[0].random() == first[0].random()
