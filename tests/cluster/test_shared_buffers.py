"""Large buffers between processes of one machine: shared in memory, private to each, and given back."""

from __future__ import annotations

import gc
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pydist as d
from pydist import _calls
from support import run_script, wait_until

MB = 1_000_000
HELD: dict[Any, Any] = {}


def pattern(size: int, seed: int) -> np.ndarray:
    return np.arange(seed, seed + size // 4, dtype=np.uint32)


def total(array: np.ndarray) -> int:
    return int(array.sum(dtype=np.uint64))


def echo(value: Any) -> Any:
    return value


def hold(key: Any, value: Any) -> int:
    HELD[key] = value
    return total(value)


def add_to_held(key: Any, number: int) -> int:
    HELD[key] += np.uint32(number)
    return total(HELD[key])


def held_total(key: Any) -> int:
    return total(HELD[key])


def let_go(key: Any) -> None:
    HELD.pop(key, None)


def memory(kind: str) -> int:
    """Return a line of this process's memory, its share of what it shares with others, in bytes."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == kind:
            return int(rest.split()[0]) * 1024
    raise AssertionError(f"no {kind}")


def shared_bytes() -> int:
    return int(d.stats()["shared_bytes"])


def memory_files() -> int:
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            name = os.readlink(entry)
            # The other one takes the stacks of a worker.
            count += "memfd:pydist" in name and "memfd:pydist-stacks" not in name
        except OSError:
            continue
    return count


def at_rest(pids: list[int]) -> None:
    """Wait until no process uses shared memory."""

    def rests() -> bool:
        gc.collect()
        return not any([shared_bytes(), *(d.remotecall_fetch(shared_bytes, pid) for pid in pids)])

    wait_until(rests, 10, "the return of shared memory")


def nothing_idle(pids: list[int]) -> None:
    """Wait until processes keep no memory for later messages."""
    wait_until(lambda: not any(d.remotecall_fetch(memory_files, pid) for pid in pids), 10)


def let_all_go() -> None:
    HELD.clear()


@pytest.fixture(autouse=True)
def nothing_shared_left(workers):
    yield
    for pid in workers:
        d.remotecall_fetch(let_all_go, pid)
    at_rest(workers)


def test_idle_memory_is_given_up_after_a_while(workers):
    array = pattern(2 * MB, 0)
    for _ in range(3):
        assert (d.remotecall_fetch(echo, workers[0], array) == array).all()
    nothing_idle([1, workers[0]])


@pytest.mark.parametrize("size", [100_000, 700_000, 1 * MB, 20 * MB])
def test_arrays_are_exact_and_writable_on_both_sides(workers, size):
    array = pattern(size, 5)
    back = d.remotecall_fetch(echo, workers[0], array)
    assert (back == array).all()
    assert back.flags.writeable
    back += 1
    assert (array == pattern(size, 5)).all()
    assert d.remotecall_fetch(total, workers[1], back) == total(back)


def test_long_and_short_buffers_in_one_message(workers):
    value = {
        "long": pattern(2 * MB, 1),
        "short": pattern(4_000, 2),
        "bytes": bytes(range(256)) * 8_000,
        "empty": np.zeros(0),
        "other": pattern(1 * MB, 3)[::2],
        "text": "x" * 100_000,
    }
    back = d.remotecall_fetch(echo, workers[0], value)
    assert back.keys() == value.keys()
    assert all(np.array_equal(back[key], value[key]) for key in value)


def test_what_is_sent_is_what_was_there_at_the_call(workers):
    array = pattern(4 * MB, 0)
    gate = d.RemoteChannel(1)
    expected = total(array)

    def late(a: np.ndarray) -> int:
        gate.take()
        return total(a)

    future = d.remotecall(late, workers[0], array)
    array[:] = 0
    gate.put(None)
    assert future.fetch() == expected


def test_writes_are_private_to_each_process(workers):
    array = pattern(4 * MB, 0)
    base = total(array)
    call = _calls.same_call(hold, ("private", array))
    futures = [call(pid) for pid in workers]
    assert [future.fetch() for future in futures] == [base, base]
    assert d.remotecall_fetch(add_to_held, workers[0], "private", 1) == base + len(array)
    assert d.remotecall_fetch(held_total, workers[1], "private") == base
    assert d.remotecall_fetch(add_to_held, workers[1], "private", 2) == base + 2 * len(array)
    assert d.remotecall_fetch(held_total, workers[0], "private") == base + len(array)
    assert total(array) == base


def test_a_value_that_its_owner_keeps_is_private_to_each_fetch(workers):
    future = d.remotecall_wait(pattern, workers[0], 4 * MB, 7)
    expected = total(pattern(4 * MB, 7))
    assert d.remotecall_fetch(lambda f: add_all(f.fetch()), workers[1], future) == expected + MB
    assert d.remotecall_fetch(lambda f: add_all(f.fetch()), workers[0], future) == expected + MB
    mine = future.fetch()
    assert total(mine) == expected
    mine += 1


def add_all(array: np.ndarray) -> int:
    array += np.uint32(1)
    return total(array)


def test_items_of_a_channel_are_private_to_each_fetch_and_take(workers):
    channel = d.RemoteChannel(workers[0])
    array = pattern(2 * MB, 3)
    channel.put(array)
    first = channel.fetch()
    first[:] = 0
    there = d.remotecall_fetch(lambda c: add_all(c.fetch()), workers[0], channel)
    assert there == total(array) + len(array)
    assert d.remotecall_fetch(lambda c: total(c.take()), workers[1], channel) == total(array)


def test_an_item_of_a_channel_here_is_not_changed_by_who_fetches_it(workers):
    channel = d.RemoteChannel()
    array = pattern(2 * MB, 3)
    channel.put(array)
    there = d.remotecall(lambda c: hold("item", c.fetch()), workers[0], channel)
    assert there.fetch() == total(array)
    mine = channel.take()
    mine[:] = 0
    assert d.remotecall_fetch(held_total, workers[0], "item") == total(array)


def test_arrays_that_are_held_are_not_overwritten_by_later_ones(workers):
    rng = np.random.default_rng(1)
    held: dict[int, int] = {}
    mine: list[tuple[int, int, np.ndarray]] = []
    for seed in range(60):
        size = int(rng.integers(600_000, 3 * MB)) // 4 * 4
        pid = workers[seed % 2]
        array = pattern(size, seed)
        if seed % 3 == 0:
            assert d.remotecall_fetch(hold, pid, seed, array) == total(array)
            held[seed] = size
        else:
            mine.append((size, seed, d.remotecall_fetch(echo, pid, array)))
            if len(mine) > 5:
                size, old, back = mine.pop(int(rng.integers(len(mine))))
                assert (back == pattern(size, old)).all()
    for seed, size in held.items():
        pid = workers[seed % 2]
        assert d.remotecall_fetch(held_total, pid, seed) == total(pattern(size, seed))
        d.remotecall_fetch(let_go, pid, seed)
    for size, seed, back in mine:
        assert (back == pattern(size, seed)).all()


def test_many_threads_send_at_once(workers):
    wrong: list[Any] = []

    def send(number: int) -> None:
        for i in range(12):
            array = pattern(800_000, 100 * number + i)
            try:
                if not (d.remotecall_fetch(echo, workers[i % 2], array) == array).all():
                    wrong.append((number, i))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def read_rest(name: str) -> int:
    import __main__

    return total(__main__.__dict__[name])


@pytest.mark.parametrize("way", ["everywhere", "pmap"])
def test_a_broadcast_array_is_held_once_for_all(workers, way):
    size = 64 * MB
    array = pattern(size, 0)
    expected = total(array)
    nothing_idle(workers)
    anonymous = [d.remotecall_fetch(memory, pid, "Pss_Anon") for pid in workers]

    def use(_: int) -> tuple[int, int]:
        return d.myid(), hold("captured", array)

    if way == "everywhere":
        d.remotecall_eval("kept = broadcast", workers, broadcast=array)
        for pid in workers:
            assert d.remotecall_fetch(read_rest, pid, "kept") == expected
    else:
        seen = d.pmap(use, range(64), batch_size=1)
        assert set(seen) == {(pid, expected) for pid in workers}
    shared = [d.remotecall_fetch(memory, pid, "Pss_Shmem") for pid in workers]
    own = [d.remotecall_fetch(memory, pid, "Pss_Anon") for pid in workers]
    assert sum(shared) < 1.2 * size
    assert min(shared) > 0.3 * size / len(workers)
    assert all(now - before < 0.3 * size for now, before in zip(own, anonymous, strict=True))
    d.remotecall_eval("kept = broadcast = None", workers)


def test_a_value_is_passed_on_without_a_copy(workers):
    channel = d.RemoteChannel(workers[0])
    array = pattern(8 * MB, 0)
    channel.put(array)
    assert d.remotecall_fetch(lambda c: hold("item", c.take()), workers[1], channel) == total(array)
    # Process 1 made the only copy; both workers know of it as long as one of them maps it.
    assert shared_bytes() == array.nbytes
    assert d.remotecall_fetch(shared_bytes, workers[0]) == array.nbytes


def test_the_loss_of_a_receiver_frees_its_memory(workers, fresh_workers):
    """F5: the memory that a process held goes with it."""
    (victim,) = fresh_workers(1)
    d.remotecall_fetch(hold, victim, "lost", pattern(8 * MB, 0))
    assert shared_bytes() == 8 * MB
    os.kill(d.remotecall_fetch(os.getpid, victim), signal.SIGKILL)
    wait_until(lambda: shared_bytes() == 0, 5)
    assert d.remotecall_fetch(total, workers[0], pattern(8 * MB, 1)) == total(pattern(8 * MB, 1))


def test_an_array_outlives_the_process_that_sent_it(workers, fresh_workers):
    (victim,) = fresh_workers(1)
    array = d.remotecall_fetch(pattern, victim, 8 * MB, 4)
    there = d.remotecall_fetch(
        lambda pid: hold("heir", d.remotecall_fetch(pattern, pid, 8 * MB, 5)), workers[0], victim
    )
    os.kill(d.remotecall_fetch(os.getpid, victim), signal.SIGKILL)
    wait_until(lambda: victim not in d.procs(), 5)
    assert (array == pattern(8 * MB, 4)).all()
    array += 1
    assert d.remotecall_fetch(add_to_held, workers[0], "heir", 1) == there + 2 * MB


def fork_and_wait(array: np.ndarray, read: str) -> int:
    """Fork a child that looks at the array only after a word through a pipe of the system."""
    child = os.fork()
    if child == 0:
        with open(read, "rb") as gate:
            gate.read(1)
        os._exit(0 if (array == pattern(array.nbytes, 9)).all() else 1)
    return child


def reap(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_f25_a_forked_child_keeps_its_view(workers, tmp_path):
    """F25: what a forked child sees does not change when its parent lets go and more is sent."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    child = d.remotecall_fetch(fork_and_wait, workers[0], pattern(4 * MB, 9), gate)
    for seed in range(4):
        other = pattern(4 * MB, 100 + seed)
        assert d.remotecall_fetch(total, workers[0], other) == total(other)
    with open(gate, "wb") as word:
        word.write(b".")
    assert d.remotecall_fetch(reap, workers[0], child) == 0


def test_descriptors_do_not_grow_with_what_is_held(workers):
    for i in range(300):
        d.remotecall_fetch(hold, workers[0], i, pattern(600_000, i))
    assert d.remotecall_fetch(memory_files, workers[0]) < 10
    assert memory_files() <= 256 + 16  # in use, and idle
    totals = d.remotecall_fetch(lambda: [held_total(i) for i in range(300)], workers[0])
    assert totals == [total(pattern(600_000, i)) for i in range(300)]
    assert d.stats()["share_fallbacks"] > 0


ROUND_TRIP = """
        import numpy as np
        import pydist as d
        (pid,) = d.addprocs(1)
        array = np.arange(1_000_000)
        for _ in range(3):
            back = d.remotecall_fetch(lambda a: a, pid, array)
            assert (back == array).all() and back.flags.writeable
            back += 1
        print(d.stats()["shared_bytes"], d.stats()["share_fallbacks"])
        """


def test_shared_memory_can_be_switched_off():
    done = run_script(ROUND_TRIP, env={"PYDIST_SHARED_MAX": "0"})
    assert (done.stdout, done.stderr, done.returncode) == ("0 0\n", "", 0)


def test_a_wrong_limit_of_shared_memory_is_named():
    done = run_script(ROUND_TRIP, env={"PYDIST_SHARED_MAX": "-1"})
    assert "PYDIST_SHARED_MAX must be at least 0, not '-1'" in done.stderr


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Open files until no more can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    opened: list[int] = []
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_f33_without_descriptors_buffers_are_streamed(workers):
    """F33: where no memory file can be made, the message is streamed; files are still received."""
    array = pattern(4 * MB, 1)
    assert d.remotecall_fetch(total, workers[0], array) == total(array)
    nothing_idle([1])
    before = d.stats()["share_fallbacks"]
    with no_descriptors_left():
        there = d.remotecall_fetch(total, workers[0], array)
        fallbacks = d.stats()["share_fallbacks"] - before
        back = d.remotecall_fetch(pattern, workers[0], 4 * MB, 2)
    files = memory_files()
    assert (there, fallbacks, files) == (total(array), 1, 0)
    # The descriptor of a received file is lost then, and the file is opened by way of its sender.
    assert (back == pattern(4 * MB, 2)).all()
    assert shared_bytes() == 4 * MB
    del back
    assert d.remotecall_fetch(total, workers[0], array) == total(array)
    assert d.stats()["share_fallbacks"] - before == 1
