"""Bad bytes at live listeners, before and after a peer has proved itself; security test S3.

The inputs are the files in `bad_bytes` (`scripts/write_bad_bytes.py`) and a good session cut at every byte.
Each is sent whole and byte by byte. After those of each listener a genuine worker joins, and all goes on.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import pydist as d
import tally
from pydist import _session
from pydist.managers import _address_lines, local
from support import rss, unix_listeners, wait_until
from support_network import DialIn
from support_wire import PROOF, Address, Peer, hello_bytes, of_head

FOLDER = Path(__file__).parent / "bad_bytes"
BOMB = b"cos\nmkdir\n(S'pydist-unpickled'\ntR."
STATES = ["HELLO", "PROOF", "INFO"]


def corpus(name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((FOLDER / name).iterdir())}


def places(pids: list[int]) -> list[Path]:
    """Give the folders in which the processes would make what a loaded pickle makes."""
    return [Path(d.remotecall_fetch(os.getcwd, pid)) / "pydist-unpickled" for pid in [1, *pids]]


@contextmanager
def unharmed(pids: list[int]) -> Iterator[None]:
    """Check that nothing of what happens in a block is loaded, kept in memory, or ends a worker."""
    processes = [d.remotecall_fetch(os.getpid, pid) for pid in [1, *pids]]
    markers = places(pids)
    before = [rss(ospid) for ospid in processes]
    members = d.procs()
    yield
    assert d.procs() == members
    for pid in [1, *pids]:
        assert d.remotecall_fetch(abs, pid, -5) == 5
    assert not [marker for marker in markers if marker.exists()]
    growth = [rss(ospid) - old for ospid, old in zip(processes, before, strict=True)]
    assert max(growth) < 50 * 2**20, growth
    fds = psutil.Process().num_fds
    wait_until(lambda: d.stats()["connections"] <= len(members) - 1, what=f"{fds()} descriptors")


def unix_socket(pid: int) -> str:
    return unix_listeners(d.remotecall_fetch(os.getpid, pid))[0]


def elastic_address(manager: d.ElasticManager) -> Address:
    host, _, port = manager.address.rpartition(":")
    return host, int(port)


@pytest.fixture
def known_worker(fresh_workers, monkeypatch) -> tuple[int, dict[str, bytes]]:
    """Give a local worker, and what a peer must know to get an answer of it."""
    told = []
    first_lines = local.LocalManager._first_lines

    def noted(manager: local.LocalManager, pid: int) -> bytes:
        lines = first_lines(manager, pid)
        told.append(json.loads(lines.split(b"\n")[1]))
        return lines

    monkeypatch.setattr(local.LocalManager, "_first_lines", noted)
    (pid,) = fresh_workers(1)
    return pid, {name: bytes.fromhex(told[0][name]) for name in ("inst", "cluster")}


@pytest.fixture
def elastic() -> Iterator[DialIn]:
    with d.ElasticManager() as manager:
        d.addprocs(manager)
        dial_in = DialIn(manager)
        try:
            yield dial_in
        finally:
            dial_in.end()


def send_all(inputs: dict[str, bytes], connect: Callable[[], Peer]) -> None:
    """Send each input on a connection of its own, whole and byte by byte; each connection ends."""
    for name, data in inputs.items():
        for bytewise in (False, True):
            try:
                with connect() as peer:
                    peer.send(data, bytewise=bytewise)
                    peer.end()
            except Exception as error:
                error.add_note(f"{name}, {'byte by byte' if bytewise else 'whole'}")
                raise
            tally.bad_input()


def test_the_corpus_has_what_it_should():
    """Section 4: at least 200 files, none of which is large."""
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert len(files) >= 200
    assert max(path.stat().st_size for path in files) < 10_000
    assert sum(BOMB in path.read_bytes() for path in files) >= 40


def test_bad_bytes_before_authentication_at_a_port(workers, elastic):
    """Section 4: to a live listener, whole and one byte at a time, before authentication."""
    address = elastic_address(elastic.manager)
    with unharmed(workers):
        send_all(corpus("before"), lambda: Peer(address, bytes(16)))
    joined = elastic.start()
    assert d.remotecall_fetch(d.remotecall_fetch, joined, d.myid, workers[0]) == workers[0]


def test_bad_bytes_before_authentication_at_unix_sockets(workers, fresh_workers):
    """Section 4: the same at the sockets of process 1 and of a local worker."""
    for address in (unix_socket(1), unix_socket(workers[0])):
        with unharmed(workers):
            send_all(corpus("before"), lambda: Peer(address, bytes(16)))  # noqa: B023
    (joined,) = fresh_workers(1)
    assert d.remotecall_fetch(d.remotecall_fetch, joined, d.myid, workers[0]) == workers[0]


def test_bad_bytes_after_authentication_at_a_port(workers, elastic):
    """Section 4: the same of a peer that knows the cookie, and gets an id each time."""
    address = elastic_address(elastic.manager)
    tag = _session.session.join_tag()
    with unharmed(workers):
        send_all(corpus("after"), lambda: Peer(address, tag).authenticate())
    joined = elastic.start()
    assert d.remotecall_fetch(d.remotecall_fetch, joined, d.myid, workers[0]) == workers[0]


def test_bad_bytes_after_authentication_at_the_socket_of_a_worker(workers, known_worker, fresh_workers):
    """Section 4: the same of a peer that a worker takes for another one, of which it is still to hear."""
    worker, known = known_worker
    address = unix_socket(worker)
    ids = iter(range(10**6, 10**7))
    with unharmed([*workers, worker]):
        send_all(corpus("after"), lambda: Peer(address, **known, pid=next(ids)).authenticate())
    (joined,) = fresh_workers(1)
    assert d.remotecall_fetch(d.remotecall_fetch, joined, d.myid, worker) == worker


def test_a_session_cut_at_every_byte(workers, elastic):
    """Section 4: truncations of a good session at every byte; what has come stays without effect."""
    address, tag = elastic_address(elastic.manager), _session.session.join_tag()

    def session(peer: Peer) -> Iterator[bytes]:
        yield peer.hello()
        peer.read_challenge()
        yield peer.proof()
        peer.read_proof()
        yield peer.info()

    def cut_after(n: int) -> bool:
        """Send at most `n` bytes; say whether there were more."""
        with Peer(address, tag) as peer:
            left = n
            for part in session(peer):
                peer.send(part[:left])
                left -= len(part)
                if left < 0:
                    break
            answer = peer.end()
            tally.bad_input()
            # Who has not proved itself is told nothing but a nonce.
            assert n >= 100 or len(answer) <= 48
            return left < 0

    with unharmed(workers):
        n = 0
        while cut_after(n):
            n += 1
        assert n > 68 + PROOF + 34
    assert elastic.start() in d.workers()


@pytest.mark.parametrize("state", STATES)
def test_s3_a_pickle_in_each_state(known_worker, elastic, state):
    """S3: a pickle that would touch a file is sent in each state, and never loaded."""
    worker, known_there = known_worker
    listeners: list[tuple[Address, dict[str, object]]] = [
        (elastic_address(elastic.manager), {"inst": _session.session.join_tag()}),
        (unix_socket(1), {**of_head(), "pid": 2}),
        (unix_socket(worker), {**known_there, "pid": 77}),
    ]
    with unharmed([worker]):
        for address, known in listeners:
            for data in (BOMB, BOMB * 20, b"\x80\5" + BOMB, BOMB[:31] + b"."):
                with Peer(address, **known) as peer:  # type: ignore[arg-type]
                    if state != "HELLO":
                        peer.send(peer.hello())
                        peer.read_challenge()
                    if state == "INFO":
                        peer.send(peer.proof())
                        peer.read_proof()
                    peer.send(data)
                    assert len(peer.end()) == 0, "an answer to a pickle"
                    tally.bad_input()


def test_random_hellos(workers):
    """S3: of well-formed openings with random fields none gets further than a challenge."""
    made = random.Random(3)
    address = unix_socket(1)
    with unharmed(workers):
        for _ in range(100):
            data = bytearray(hello_bytes(made.randrange(4), made.choice([bytes(16), made.randbytes(16)])))
            data[made.randrange(8, 36)] ^= 1 << made.randrange(8)
            with Peer(address, bytes(16)) as peer:
                peer.send(bytes(data) + made.randbytes(made.randrange(100)))
                assert len(peer.end()) <= 48
            tally.bad_input()


def test_random_address_lines():
    """F4: whatever a worker prints, its address line is found or not; nothing else happens."""
    made = random.Random(4)
    good = _address_lines.format_line(5000, "127.0.0.1", bytes(range(16)), tls=True).encode()
    expected = _address_lines.parse_line(good)
    assert expected is not None
    for _ in range(20_000):
        line = bytearray(good)
        for _ in range(made.randrange(1, 4)):
            at = made.randrange(len(line) + 1)
            line[at : at + made.randrange(2)] = made.randbytes(made.randrange(3))
        address = _address_lines.parse_line(bytes(line))
        if address is not None:
            assert 0 < address.port < 2**16
            assert len(address.inst) == 16
            assert not set(address.host) & set("# \n")
            again = _address_lines.format_line(*address).encode()
            assert not address.host.isascii() or _address_lines.parse_line(again) == address
    assert _address_lines.parse_line(b"motd: " + good) == expected
    tally.bad_input(20_000)
