"""pmap with one element in each message: plain elements and values take the short way, others go beside."""

import itertools
import threading
import time
import traceback

import numpy as np
import pytest

import pydist as d
from support import wait_until

ELEMENTS = [
    0,
    -1,
    2**31,
    2**63,
    -(2**70),
    1.5,
    float("inf"),
    True,
    None,
    "",
    "naïve",
    "long " * 100,
    b"bytes",
    b"b" * 300,
    (),
    (1, (2, "three")),
    [1, [2]],
    {"a": 1},
    {1, 2},
    1j,
    bytearray(b"x"),
    range(3),
]


def same(x):
    return x


def both(x, y):
    return x, y


@pytest.mark.parametrize("repeat", [1, 20])
def test_plain_and_other_elements_mixed(workers, repeat):
    elements = ELEMENTS * repeat
    values = d.pmap(same, elements, batch_size=1)
    assert values == elements
    assert list(map(type, values)) == list(map(type, elements))


def test_several_iterables_of_several_kinds(workers):
    values = d.pmap(both, iter(ELEMENTS), itertools.count(), batch_size=1)
    assert values == [(x, i) for i, x in enumerate(ELEMENTS)]


def test_one_object_twice_arrives_as_one(workers):
    shared = ["once"]
    (value,) = d.pmap(
        lambda pair, other: pair[0] is pair[1] is other, [(shared, shared)], [shared], batch_size=1
    )
    assert value


def test_elements_and_values_with_references_and_buffers(workers):
    futures = [d.remotecall(pow, workers[0], 2, i) for i in range(20)]
    assert d.pmap(d.fetch, futures, batch_size=1) == [2**i for i in range(20)]
    arrays = d.pmap(np.full, [3, 200_000] * 5, [1.5] * 10, batch_size=1)
    assert [len(a) for a in arrays] == [3, 200_000] * 5
    assert all(a.flags.writeable for a in arrays)


def test_a_value_that_cannot_be_pickled_is_the_error_of_its_element_alone(workers):
    def value_of(i):
        return threading.Lock() if i == 7 else i

    values = d.pmap(value_of, range(200), batch_size=1, on_error=lambda error: str(error))
    assert "pickle" in values.pop(7)
    assert values == [i for i in range(200) if i != 7]


def test_an_element_that_cannot_be_pickled_is_named(workers):
    with pytest.raises(Exception, match=r"iterables\[0\]\[3\]"):
        d.pmap(same, [0, 1, 2, threading.Lock(), 4], batch_size=1)


@pytest.mark.parametrize(
    "call", [d.pmap, lambda *a, **k: list(d.pgenerate(*a, **k))], ids=["pmap", "pgenerate"]
)
def test_an_error_of_the_input_ends_the_map(workers, call):
    def elements():
        yield from range(100)
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        call(same, elements(), batch_size=1)
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)


def test_a_generator_yields_what_came_before_the_error_of_the_input(workers):
    def elements():
        yield from range(100)
        raise LookupError("no more")

    values = []
    with pytest.raises(LookupError):
        for value in d.pgenerate(same, elements(), batch_size=1):
            values.append(value)
    assert values == list(range(100))


def test_a_function_that_returns_a_coroutine(workers):
    async def later(x):
        return x + 1

    assert d.pmap(lambda x: later(x), range(50), batch_size=1) == list(range(1, 51))


def test_errors_carry_their_traceback_and_retries_find_the_rest(workers, tmp_path):
    def once(i):
        mark = tmp_path / str(i)
        if i % 10 == 0 and not mark.exists():
            mark.touch()
            raise OSError(f"first attempt at {i}")
        return i

    assert d.pmap(once, range(100), batch_size=1, retry_delays=[0]) == list(range(100))
    with pytest.raises(ZeroDivisionError) as caught:
        d.pmap(lambda x: 1 // x, [1, 0], batch_size=1)
    assert "1 // x" in "".join(traceback.format_exception(caught.value))


def test_progress_counts_each_element_once(workers):
    class Bar:
        total = done = 0

        def update(self, count):
            self.done += count

    bar = Bar()
    d.pmap(same, ELEMENTS * 10, batch_size=1, progress=bar)
    assert bar.done == len(ELEMENTS) * 10


def test_process_1_works_beside_workers(workers):
    places = d.pmap(lambda x: (x, d.myid()), range(400), batch_size=1, pool=[1, *workers])
    assert [x for x, _ in places] == list(range(400))
    assert {pid for _, pid in places} <= {1, *workers}


def test_long_elements_behind_others_are_given_to_who_idles(workers):
    def work(i):
        time.sleep(0.05 if i % 2 else 0)
        return i

    assert d.pmap(work, range(20), batch_size=1) == list(range(20))


def test_a_generator_that_is_closed_leaves_nothing(workers):
    values = d.pgenerate(same, itertools.count(), batch_size=1)
    assert [next(values) for _ in range(100)] == list(range(100))
    values.close()
    wait_until(lambda: d.stats()["calls_outstanding"] == 0)
