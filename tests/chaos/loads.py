"""What goes on under chaos: each load does one thing again and again, and checks all that comes back."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import remote
from crew import Crew

import pydist as d
from faults import Injector

PATIENCE = 20
"""Seconds after which a wait is a hang."""


class Load(threading.Thread):
    """Does its step again and again.

    A step that ends with an error which faults explain is taken as done; whether they do is judged at the
    end, when it is known who was lost. All other errors are failures.
    """

    def __init__(self, crew: Crew, injector: Injector, seed: int) -> None:
        super().__init__(name=type(self).__name__, daemon=True)
        self.crew = crew
        self.injector = injector
        self.random = random.Random(f"{self.name} {seed}")
        self.ended = threading.Event()
        self.steps = self.items = self.spoiled = 0
        self.moved = self.began = time.monotonic()
        self.failures: list[str] = []
        self._blamed: list[tuple[int, str]] = []

    def run(self) -> None:
        while not self.ended.is_set() and not self.failures:
            self.began = time.monotonic()
            self.attempt(self.step)
            self.steps += 1
            self.progress(0)

    def step(self) -> None:
        raise NotImplementedError

    def progress(self, items: int = 1) -> None:
        self.items += items
        self.moved = time.monotonic()

    def attempt(self, f: Callable[[], Any]) -> bool:
        """Do something that faults may end; say whether it came to its end."""
        try:
            f()
            return True
        except BaseException as error:
            self.spoiled += 1
            self._judge(error)
            return False

    def _judge(self, error: BaseException) -> None:
        text = "".join(traceback.format_exception(error))
        if isinstance(error, d.ProcessExitedException):
            self._blamed.append((error.pid, text))
        elif not (
            isinstance(error, d.RemoteException)
            and error.type_name == "KeyboardInterrupt"
            and self.injector.interrupted_since(self.began)
        ):
            self.failures.append(text)

    def verdict(self) -> list[str]:
        """Return what no fault explains."""
        unfounded = [text for pid, text in self._blamed if self.crew.why(pid) is None]
        return self.failures + [
            f"nothing was done to the worker that is blamed:\n{text}" for text in unfounded
        ]

    def pid(self) -> int:
        return self.random.choice(self.crew.pids() or [1])

    def value(self, call: d.Future) -> Any:
        """Return what a call gives; it has to end within a generous time."""
        try:
            return call.fetch(timeout=PATIENCE)
        except TimeoutError as error:
            pid = call.where
            state = "runs" if pid in d.procs() else f"is lost ({self.crew.why(pid)})"
            said = f"{call!r}: no value after {PATIENCE} s from worker {pid}, which {state}"
            raise AssertionError(f"{said}\n{d.stacks()}") from error

    def same(self, found: Any, expected: Any) -> None:
        """Fail where a result is not what it has to be."""
        if isinstance(expected, np.ndarray):
            equal = isinstance(found, np.ndarray) and np.array_equal(found, expected)
        else:
            equal = found == expected
        if not equal:
            raise AssertionError(f"{str(found)[:200]} instead of {str(expected)[:200]}")
        self.progress()


class Maps(Load):
    """`pmap` and `pgenerate` with retries: the values of all elements, in order."""

    def step(self) -> None:
        count = self.random.choice([1, 30, 500, 2000])
        start = self.random.randrange(10**9)
        elements = range(start, start + count)
        kind = self.random.randrange(4)
        if kind == 0:
            offset = self.random.randrange(1000)
            found = d.pmap(lambda x: remote.element(x + offset), elements, retry_delays=[0] * 30)
            elements = range(start + offset, start + offset + count)
        elif kind == 1:
            found = d.pmap(remote.element_async, elements, retry_delays=[0] * 30)
            return self._check(found, [remote.mix(x) for x in elements])
        elif kind == 2:
            found = []
            for value in d.pgenerate(remote.element, elements, retry_delays=[0] * 30):
                found.append(value)
                self.progress(0)
        else:
            batch = self.random.choice([1, 7])
            found = d.pmap(remote.element, elements, batch_size=batch, retry_delays=[0] * 30)
        self._check(found, list(map(expected_element, elements)))

    def _check(self, found: list[Any], expected: list[Any]) -> None:
        if len(found) != len(expected):
            raise AssertionError(f"{len(found)} values of {len(expected)} elements")
        for one, other in zip(found, expected, strict=True):
            self.same(one, other)


def expected_element(x: int) -> Any:
    return remote.block(x, 700_000) if x % 97 == 2 else remote.mix(x)


class Producers(Load):
    """Workers that put, this process takes: each producer's items once, in order, none left out."""

    def step(self) -> None:
        count, large = self.random.choice([20, 300]), self.random.choice([0, 0, 10])
        channel = d.RemoteChannel(lambda: d.Channel(10))
        ends: dict[int, bool] = {}
        threads = [
            threading.Thread(target=self._produce, args=(channel, generation, count, large, ends))
            for generation in range(3)
        ]
        taken: dict[int, int] = dict.fromkeys(range(3), 0)
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or channel.isready():
            try:
                generation, n, array = channel.take(timeout=0.05)
            except TimeoutError:
                continue
            if n != taken[generation]:
                raise AssertionError(f"item {n} of producer {generation} instead of {taken[generation]}")
            if array is not None:
                self.same(array, remote.block(n, 600_000))
            taken[generation] += 1
            self.progress()
        for generation, n in taken.items():
            if ends.get(generation) and n != count:
                raise AssertionError(f"{n} of the {count} items of producer {generation}")

    def _produce(self, channel: d.RemoteChannel, generation: int, count: int, large: int, ends: dict) -> None:
        put = [remote.produce, self.pid(), channel, generation, count, large]
        ends[generation] = self.attempt(lambda: self.same(d.remotecall_fetch(*put), count))


class Consumers(Load):
    """This process puts, workers take: each item at least once, twice only where its taker has died.

    A consumer that has taken an item and ends before it has said so takes that one item with it.
    """

    def step(self) -> None:
        count, large = self.random.choice([20, 300]), self.random.choice([0, 0, 10])
        source = d.RemoteChannel(lambda: d.Channel(20))
        results = d.RemoteChannel(lambda: d.Channel(float("inf")))
        ended: dict[int, bool] = {}
        where: dict[int, int] = {}
        lock = threading.Lock()
        numbers = iter(range(10**6))

        def run() -> None:
            finished = False
            while not finished and not self.failures:
                with lock:
                    number = next(numbers)
                where[number] = self.pid()
                call = [remote.consume, where[number], source, results, number]
                finished = ended[number] = self.attempt(partial(d.remotecall_fetch, *call))

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for n in range(count):
                array = remote.block(n, 600_000) if large and n % large == large - 1 else None
                source.put((n, array), timeout=PATIENCE)
                self.progress()
        finally:
            source.close()
            for thread in threads:
                thread.join()
        takers: dict[int, list[int]] = {n: [] for n in range(count)}
        while results.isready():
            n, number, total = results.take(timeout=PATIENCE)
            whole = large and n % large == large - 1
            self.same(total, int(remote.block(n, 600_000).sum()) if whole else n)
            takers[n].append(number)
        while True:  # what has come back from consumers that died after the channel had been closed
            try:
                takers[source.take(timeout=PATIENCE)[0]].append(-1)
            except d.ChannelClosedError:
                break
        cut_short = sum(not finished for finished in ended.values())
        missing = [n for n, numbers_of in takers.items() if not numbers_of]
        if len(missing) > cut_short:
            raise AssertionError(f"items {missing} are lost; {cut_short} consumers were cut short")
        for n, numbers_of in takers.items():
            for number in numbers_of[:-1]:
                what = f"item {n} was taken by worker {where[number]}, and again: {numbers_of}, {where}"
                self._blamed.append((where[number], what))


class Elsewhere(Load):
    """A channel between two workers that a third owns: all in order, or an error that names who was lost."""

    def step(self) -> None:
        owner, giver, taker = self.pid(), self.pid(), self.pid()
        count = self.random.choice([5, 100])
        channel = d.RemoteChannel(lambda: d.Channel(5), owner)
        calls: list[d.Future] = []
        # Where one of both is lost the other waits for it, until the channel is closed.
        try:
            calls.append(d.remotecall(remote.collect, taker, channel, count))
            large = self.random.choice([0, 4])
            calls.append(d.remotecall(remote.produce, giver, channel, 0, count, large))
            for call in d.as_completed(calls, timeout=PATIENCE):
                self.same(call.fetch(), list(range(count)) if call is calls[0] else count)
        finally:
            self.attempt(channel.close)
            for call in calls:
                self.attempt(partial(self._ends, call))

    def _ends(self, call: d.Future) -> None:
        try:
            self.value(call)
        except d.ChannelClosedError:
            pass


class Futures(Load):
    """Futures that are passed on, set elsewhere, asked for by several, and dropped."""

    def step(self) -> None:
        x = self.random.randrange(10**6)
        value = d.remotecall(remote.mix, self.pid(), x)
        expected = remote.mix(x)
        for k in range(self.random.randrange(1, 5)):
            value = d.remotecall(remote.add, self.pid(), value, k)
            expected += k
        self.same(self.value(value), expected)
        empty = d.Future(self.pid())
        try:
            waiting = [d.remotecall(remote.add, self.pid(), empty, k) for k in range(3)]
            d.remotecall_fetch(remote.put, self.pid(), empty, x)
        finally:  # where who was to set it has been lost, those that wait would wait on
            self.attempt(partial(self._set, empty, x))
        for k, future in enumerate(waiting):
            self.same(self.value(future), x + k)

    def _set(self, empty: d.Future, x: int) -> None:
        if not empty.isready():
            empty.put(x)


class Nested(Load):
    """Calls that call others, each at most once."""

    def step(self) -> None:
        x = self.random.randrange(10**6)
        path = [self.pid() for _ in range(self.random.randrange(1, 5))]
        expected = x
        for _ in path:
            expected = remote.mix(expected)
        found = d.remotecall_fetch(remote.through, path[0], path[1:], x)
        self.same(found, expected)
        tokens = [self.random.getrandbits(60) for _ in range(50)]
        pid = self.pid()
        calls = [d.remotecall(remote.once, pid, token) for token in tokens]
        for token, call in zip(tokens, calls, strict=True):
            self.same(self.value(call), remote.mix(token))


class Coroutines(Load):
    """`async def`: many at once, some of which wait for other processes."""

    def step(self) -> None:
        x = self.random.randrange(10**6)
        pids = self.crew.pids()
        calls = [
            d.remotecall(remote.later, self.pid(), x + i, 0.05 * self.random.random()) for i in range(40)
        ]
        sums = [d.remotecall(remote.gather, self.pid(), pids, x, 0.01) for _ in range(3)]
        for i, call in enumerate(calls):
            self.attempt(lambda i=i, call=call: self.same(self.value(call), remote.mix(x + i)))
        expected = sum(remote.mix(x + i) for i in range(len(pids)))
        for call in sums:
            self.attempt(lambda call=call: self.same(self.value(call), expected))


class Large(Load):
    """Arrays and bytes of half a megabyte to eight, there and back, in shared memory and in streams."""

    def step(self) -> None:
        size = self.random.randrange(500_000, 8_000_000)
        seed = self.random.randrange(10**6)
        array = remote.block(seed, size)
        found = d.remotecall_fetch(remote.turned, self.pid(), array)
        self.same(found, -array)
        self.same(array, remote.block(seed, size))
        made = d.remotecall(remote.block, self.pid(), seed, size)
        passed = d.remotecall(d.fetch, self.pid(), made)
        self.same(self.value(made), array)
        self.same(self.value(passed), array)
        data = array.tobytes()[: size // 4]
        self.same(d.remotecall_fetch(remote.reverse, self.pid(), data), data[::-1])


class Cancellations(Load):
    """Calls that are cancelled before, while or after they run: cancelled, or their value."""

    def step(self) -> None:
        x = self.random.randrange(10**6)
        pid = self.pid()
        calls = [d.remotecall(remote.work, pid, x + i, 0.002) for i in range(8)]
        calls.append(d.remotecall(remote.later, pid, x + 8, 0.2))
        self.attempt(calls[self.random.randrange(8)].fetch)
        cancelled = [self._cancel(call) for call in calls]
        for i, call in enumerate(calls):
            self.attempt(lambda i=i, call=call: self._check(call, cancelled[i], remote.mix(x + i)))

    def _cancel(self, call: d.Future) -> bool | None:
        """Cancel a call; return whether that took effect, None where its owner was lost before the answer."""
        took_effect = None

        def cancel() -> None:
            nonlocal took_effect
            took_effect = call.cancel()

        self.attempt(cancel)
        return took_effect

    def _check(self, call: d.Future, cancelled: bool | None, expected: int) -> None:
        try:
            found = self.value(call)
        except d.CancelledError:
            if cancelled is False:
                raise
            self.progress()
            return
        if cancelled:
            raise AssertionError(f"a call that was cancelled has the value {found}")
        self.same(found, expected)


ALL = (Maps, Producers, Consumers, Elsewhere, Futures, Nested, Coroutines, Large, Cancellations)
