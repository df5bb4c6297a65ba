"""Delays, and which elements are tried again, without processes."""

import itertools

import pytest

from pydist import ExponentialBackOff, ProcessExitedException
from pydist._retries import Retries

ERROR = ValueError("no good")


def exited(pid: int) -> ProcessExitedException:
    return ProcessExitedException(pid, "signal 9 (SIGKILL)")


def test_exponential_back_off_grows_to_its_maximum():
    delays = ExponentialBackOff(5, first_delay=0.5, max_delay=20, factor=4, jitter=0)
    assert list(delays) == [0.5, 2, 8, 20, 20]
    assert list(delays) == [0.5, 2, 8, 20, 20]
    assert len(delays) == 5
    assert list(ExponentialBackOff()) == [0.05]
    assert list(ExponentialBackOff(0)) == []
    assert list(ExponentialBackOff(2, first_delay=30, max_delay=3)) == [3, 3]


def test_exponential_back_off_varies_by_its_jitter():
    for _ in range(50):
        first, second, third = ExponentialBackOff(3, first_delay=1, max_delay=100, factor=5, jitter=0.1)
        assert first == 1
        assert 4.5 <= second <= 5.5
        assert 4.5 <= third / second <= 5.5
    assert len({list(ExponentialBackOff(2))[1] for _ in range(20)}) > 1


@pytest.mark.parametrize("name", ["n", "first_delay", "max_delay", "factor", "jitter"])
def test_exponential_back_off_refuses_negative_numbers(name):
    with pytest.raises(ValueError, match=name):
        ExponentialBackOff(**{name: -1})


@pytest.mark.parametrize(
    "make", [lambda: [1, 2], lambda: iter([1, 2]), lambda: (x for x in (1, 2)), lambda: {1: 0, 2: 0}]
)
def test_every_element_has_all_delays(make):
    retries = Retries(make(), None)
    assert retries.allowed
    for element in (7, 8, 7, 8, 7, 8):
        retries.failed(element, ERROR)
    fresh = Retries(make(), None)
    for element in (1, 2, 3):
        assert [fresh.failed(element, ERROR) for _ in range(3)] == [1, 2, None]


def test_endless_delays_are_taken_one_by_one():
    taken = []
    retries = Retries((taken.append(i) or i for i in itertools.count()), None)
    assert [retries.failed(1, ERROR) for _ in range(3)] == [0, 1, 2]
    assert [retries.failed(2, ERROR) for _ in range(2)] == [0, 1]
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("empty", [(), [], iter([]), ExponentialBackOff(0)])
def test_no_delays_mean_no_retries(empty):
    retries = Retries(empty, None)
    assert not retries.allowed
    assert retries.failed(1, ERROR) is None


def test_the_state_of_the_check_is_kept_per_element_and_begins_as_none():
    seen = []

    def check(state, error):
        seen.append((state, error))
        return (state or 0) + 1, True

    retries = Retries([0] * 3, check)
    for element in (1, 1, 2, 1, 2):
        assert retries.failed(element, ERROR) == 0
    assert [state for state, _ in seen] == [None, 1, None, 2, 1]
    assert all(error is ERROR for _, error in seen)
    assert retries.failed(1, ERROR) is None
    assert len(seen) == 5, "where no delay is left, nothing is checked"


@pytest.mark.parametrize("verdict", [False, (None, False), 0])
def test_the_check_may_refuse(verdict):
    assert Retries([0, 0], lambda state, error: verdict).failed(1, ERROR) is None


def test_an_element_is_given_up_after_three_deaths():
    retries = Retries(itertools.repeat(0), None)
    assert [retries.killed(1, exited(pid)) for pid in (2, 3, 4)] == [0, 0, None]
    assert retries.deaths(1) == 3


def test_a_suspicion_counts_once_it_is_confirmed():
    checked = []

    def check(state, error):
        checked.append(error.pid)
        return True

    retries = Retries(itertools.repeat(0), check)
    for element in range(4):
        retries.suspect(element, exited(2))
    assert retries.has_suspects()
    assert retries.failed(0, ERROR := ProcessExitedException(9)) == 0
    assert checked == [9], "it has failed by itself, and is not blamed for the death"
    retries.settle(1, 1)
    assert retries.killed(2, exited(3)) == 0
    assert checked == [9, 2, 3]
    assert retries.killed(2, exited(4)) is None
    retries.settle(2, 1)
    assert retries.has_suspects()
    retries.settle(0, 4)
    assert not retries.has_suspects()
    assert ERROR.pid == 9


def test_a_suspect_uses_a_retry_for_each_death():
    retries = Retries([0], None)
    retries.suspect(1, exited(2))
    assert retries.killed(1, exited(3)) is None
    assert retries.deaths(1) == 2


@pytest.mark.parametrize("delay", [-1, float("inf"), float("nan"), "x"])
def test_a_delay_must_be_seconds(delay):
    with pytest.raises(ValueError, match=r"seconds|convert"):
        Retries([delay], None).failed(1, ERROR)


def test_wrong_parameters():
    with pytest.raises(TypeError, match="retry_delays"):
        Retries(3, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="retry_check"):
        Retries([], "x")  # type: ignore[arg-type]
