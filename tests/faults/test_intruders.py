"""Rows F56, S3, S4 and S5 of the fault table under load: strangers at the listeners of a working cluster.

Whatever they do, calls are answered, memory stays, nothing is unpickled, each refusal is in the log with the
address that it came from, and a genuine process joins.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import random
import re
import resource
import select
import selectors
import shlex
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import pytest
from test_security import Bomb, listeners

import pydist as d
import tally
from pydist import _cookies, _network
from support import rss, wait_until
from support_handshake import CHALLENGE_LEN, PROOF_LEN, Peer, hello

Address = tuple[int, object]
GROWTH_MAX = 50 * 2**20
DEADLINE = 5
"""Seconds that a handshake may take."""

PROBES = [
    b"\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"OPTIONS * RTSP/1.0\r\n\r\n",
    b"HELP\r\n",
    b"\x80\x00\x00\x28\x72\xfe\x1d\x13" + bytes(32),  # RPC
    b"\x00\x1e\x00\x06\x01\x00\x00\x01" + bytes(24),  # DNS over TCP
    b"\x16\x03\x00\x00\x53\x01\x00\x00\x4f\x03\x00" + bytes(77),  # SSL
    b"\x00\x00\x00\xa4\xff\x53\x4d\x42\x72" + bytes(160),  # SMB
    b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x02\x04\x00\x80\x00",  # LDAP
    b"SSH-2.0-probe\r\n",
    b"\x03\x00\x00\x0b\x06\xe0\x00\x00\x00\x00\x00",  # RDP
    b"*1\r\n$4\r\nPING\r\n",  # Redis
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]
"""What a scanner sends to find out what listens."""


class Traffic:
    """Calls that go on meanwhile: none is lost, and none takes long."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self.calls = 0

    def _run(self) -> None:
        try:
            while not self._over.is_set() or self.calls < 100:
                assert d.remotecall(abs, self._pids[self.calls % 2], -self.calls).fetch(10) == self.calls
                self.calls += 1
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        if self._error is not None:
            raise self._error
        assert self.calls >= 100


class Siege:
    """A cluster under attack, and how it was before."""

    def __init__(self, workers: list[int], manager: d.ElasticManager, caplog, bomb: Path) -> None:
        self.workers, self.manager, self.caplog = workers, manager, caplog
        self.tcp: Address = (socket.AF_INET, _network.split(manager.address))
        self.addresses = [*listeners(workers), self.tcp]
        self.bomb = bomb
        self.pickle = pickle.dumps(Bomb(bomb))
        self.refused = d.stats()["connections_refused"]
        self.memory = rss()
        self.started: list[subprocess.Popen[bytes]] = []

    def refusals(self) -> int:
        """Count the connections that process 1 has refused so far."""
        return d.stats()["connections_refused"] - self.refused

    def logged(self) -> list[tuple[int, str]]:
        """Give how many refusals each line of the log tells, and of whom the last was."""
        found = []
        for record in self.caplog.records:
            said = re.match(
                r"refused (?:a connection|(\d+) more connections, the last) from (.+?): ", record.message
            )
            if said:
                assert record.name == "pydist.core.handshake"
                found.append((int(said[1] or 1), said[2]))
        return found

    def settle(self) -> None:
        """Wait until all earlier refusals have been told, and count from here."""
        with Peer(self.tcp, os.urandom(32)) as peer:
            own = "{}:{}".format(*peer.socket.getsockname())
        wait_until(lambda: self.logged() and self.logged()[-1][1] == own)
        self.caplog.clear()
        self.refused = d.stats()["connections_refused"]

    def join(self) -> None:
        """See that a genuine process joins within 10 s."""
        begin = time.monotonic()
        known = d.procs()
        self.started.append(subprocess.Popen(shlex.split(self.manager.command())))
        (pid,) = wait_until(lambda: [pid for pid in d.procs() if pid not in known], 10)
        assert d.remotecall_fetch(d.remotecall_fetch, pid, d.myid, self.workers[0]) == self.workers[0]
        tally.recovery(time.monotonic() - begin)
        d.rmprocs(pid)

    def check(self) -> None:
        """See that the attack has done nothing."""
        assert not self.bomb.exists()
        assert d.workers() == self.workers
        assert rss() - self.memory < GROWTH_MAX
        for pid in self.workers:
            assert d.remotecall_fetch(abs, pid, -7) == 7


@pytest.fixture
def siege(workers, caplog, tmp_path) -> Iterator[Siege]:
    caplog.set_level("INFO", "pydist")
    with d.ElasticManager() as manager:
        d.addprocs(manager)
        made = Siege(workers, manager, caplog, tmp_path / "unpickled")
        yield made
        for process in made.started:
            process.kill()
            process.communicate(timeout=10)


def quietly(attack: Callable[[Peer], object], address: Address, cookie: bytes) -> None:
    """Attack over one connection, which may be closed at any time."""

    def dial() -> Peer | None:
        try:
            return Peer(address, cookie)
        except BlockingIOError:  # too many wait at a Unix socket already
            return None

    with wait_until(dial) as peer, contextlib.suppress(OSError):
        attack(peer)


def reset(peer: Peer) -> None:
    """Close with a reset, as a scan with half-open connections ends."""
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def random_bytes(peer: Peer) -> None:
    peer.socket.sendall(random.randbytes(random.randrange(1, 4000)))


def probe(peer: Peer) -> None:
    peer.socket.sendall(random.choice(PROBES))
    peer.socket.settimeout(0.01)
    peer.socket.recv(100)


def half(peer: Peer) -> None:
    """Stop somewhere in the opening, or before the proof, or within it."""
    stop = random.randrange(100)
    peer.socket.sendall(hello()[:stop])
    if stop >= 68:
        peer.receive(CHALLENGE_LEN)
        peer.socket.sendall(bytes(stop - 68))


def wrong_cookie(peer: Peer) -> None:
    """Prove another cookie; the other end is not to prove anything."""
    assert peer.join() == b""


def reflected(peer: Peer) -> None:
    """Send the challenge of the other end back as a proof, and as an opening."""
    challenge = peer.challenge()
    peer.socket.sendall(challenge * 3)
    assert peer.receive(PROOF_LEN) == b""


def bomb(data: bytes) -> Callable[[Peer], None]:
    """Send a pickle where each of the messages would be."""

    def attack(peer: Peer) -> None:
        if random.random() < 0.5:
            peer.challenge()
        peer.socket.sendall(data * 5)
        peer.receive(1)

    return attack


ATTACKS = [lambda peer: None, reset, probe, random_bytes, half, wrong_cookie, reflected]
COUNT = {False: 40, True: 2000}


@pytest.mark.timeout(300)
def test_f56_strangers_of_all_kinds_at_all_listeners(siege, milestone):
    """F56, S3: scans, random bytes, half, wrong and reflected handshakes, pickles: the cluster works on."""
    attacks = [*ATTACKS, bomb(siege.pickle)]

    def pester(attack: Callable[[Peer], object]) -> None:
        for _ in range(COUNT[milestone]):
            quietly(attack, random.choice(siege.addresses), os.urandom(32))
            tally.bad_input()

    with Traffic(siege.workers) as traffic:
        with ThreadPoolExecutor(len(attacks)) as pool:
            under_way = [pool.submit(pester, attack) for attack in attacks]
            siege.join()
        for attack in under_way:
            attack.result()
    assert traffic.calls
    # The others were sent to the workers.
    assert siege.refusals() >= len(attacks) * COUNT[milestone] // len(siege.addresses) // 2
    siege.check()


def test_f56_each_refusal_is_in_the_log_once(siege):
    """Section 3: each refusal is told once, at most one line a second, with the peer's address."""
    siege.settle()
    for _ in range(50):
        quietly(probe, siege.tcp, os.urandom(32))
        tally.bad_input()
    wait_until(lambda: siege.refusals() == 50)
    wait_until(lambda: sum(count for count, _ in siege.logged()) == 50)
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+", peer) for _, peer in siege.logged())
    at = [record.created for record in siege.caplog.records if record.message.startswith("refused")]
    assert all(later - earlier > 0.9 for earlier, later in itertools.pairwise(at))

    wait_until(lambda: time.time() - at[-1] > 1)
    (unix,) = [address for address in listeners([]) if address[0] == socket.AF_UNIX]
    before = len(siege.logged())
    quietly(probe, unix, os.urandom(32))
    wait_until(lambda: len(siege.logged()) > before)
    assert siege.logged()[-1] == (1, f"process {os.getpid()} of user {os.getuid()} at a Unix socket")


def test_s4_a_session_that_was_recorded_is_of_no_use(siege):
    """S4: what a genuine process said is refused when it is said again, whole or in part."""
    cookie = _cookies.secret(d.cluster_cookie())
    tag = _cookies.join_tag(cookie)
    with Peer(siege.tcp, cookie, tag) as genuine:
        assert len(genuine.join()) == PROOF_LEN  # so the attacks fail for what is wrong with them alone
        said = [genuine.hello, genuine.proof(), genuine.info()]
    wait_until(lambda: d.stats()["connections"] == 2)
    refused = siege.refusals()
    with Peer(siege.tcp, cookie, tag) as again:
        challenge = again.challenge(said[0])
        assert len(challenge) == CHALLENGE_LEN
        again.socket.sendall(said[1] + said[2])
        assert again.receive(1) == b""
    with Peer(siege.tcp, cookie, tag) as at_once:
        at_once.socket.sendall(b"".join(said))
        assert len(at_once.receive(1000)) in (0, CHALLENGE_LEN)
    with Peer(siege.tcp, os.urandom(32), tag) as wrong:
        assert wrong.join() == b""
    tally.bad_input(3)
    wait_until(lambda: siege.refusals() == refused + 3)
    wait_until(lambda: "authentication failed" in siege.caplog.text)
    siege.check()


def test_s4_who_dials_is_not_let_in_by_its_own_words(siege):
    """S4: a listener that sends back what it gets does not pass for process 1."""
    with socket.create_server(("127.0.0.1", 0)) as mirror:
        host, port = mirror.getsockname()
        env = {**os.environ, "PYDIST_COOKIE": d.cluster_cookie().hex()}
        command = [sys.executable, "-m", "pydist", "worker", "--connect", f"{host}:{port}", "--timeout", "20"]
        worker = subprocess.Popen(command, env=env, stderr=subprocess.PIPE)
        siege.started.append(worker)
        mirror.settimeout(30)
        near, _ = mirror.accept()
        with near:
            seen = b""
            with contextlib.suppress(OSError):
                while data := near.recv(1000):
                    seen += data
                    near.sendall(data)
    assert len(seen) == 68  # its opening, and no proof
    error = worker.communicate(timeout=30)[1]
    assert worker.returncode == 1
    assert b"malformed handshake" in error
    tally.bad_input()


@pytest.mark.timeout(120)
def test_s5_slow_loris(siege, milestone):
    """S5: connections that send a byte a second end at one absolute deadline, and keep nobody out."""
    opening = hello()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(1000 if milestone else 100):
            s = stack.enter_context(socket.socket(siege.tcp[0]))
            s.connect(siege.tcp[1])
            s.setblocking(False)
            selector.register(s, selectors.EVENT_READ)
            tally.bad_input()
        stack.enter_context(Traffic(siege.workers))
        joining = threading.Thread(target=siege.join)
        joining.start()
        begin = time.monotonic()
        for sent in range(60):
            while time.monotonic() < begin + sent and selector.get_map():
                for key, _ in selector.select(max(0, begin + sent - time.monotonic())):
                    with contextlib.suppress(ConnectionError):
                        assert key.fileobj.recv(100) == b""
                    selector.unregister(key.fileobj)
            if not selector.get_map():
                break
            for key in selector.get_map().values():
                with contextlib.suppress(ConnectionError):
                    key.fileobj.send(opening[sent : sent + 1])
        assert time.monotonic() - begin < DEADLINE + 5
        joining.join(30)
    siege.check()


PESTER = """
import contextlib, os, random, socket, sys, time
sys.path.insert(0, sys.argv[3])
from support_handshake import Peer, hello

address = (socket.AF_INET, (sys.argv[1], int(sys.argv[2])))

def pester(i, slow):
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        peer = (slow if i % 3 == 0 else stack).enter_context(Peer(address, os.urandom(32)))
        if i % 3 == 0:
            peer.socket.send(hello()[: i % 68])
        elif i % 3 == 1:
            peer.socket.sendall(random.randbytes(1000))
        else:
            peer.join()

for line in sys.stdin:
    times, pesters = map(int, line.split())
    with contextlib.ExitStack() as slow:
        for i in range(times):
            if pesters:
                pester(i, slow)
            time.sleep(0.02)
    print("done", flush=True)
"""


@pytest.mark.timeout(300)
def test_f56_calls_take_no_longer_beside_strangers(siege, milestone):
    """F56: beside 1,000 garbage, slow and wrong-cookie connections, fifty a second, p99 is +20 % at most.

    (Here 200.) Rounds with strangers and without take turns; where others disturb them, more of them tell.
    """
    host, port = _network.split(siege.manager.address)
    # The strangers have the processor where nobody else wants it: that they take is not what is measured.
    command = [
        "nice",
        "-n",
        "19",
        sys.executable,
        "-c",
        PESTER,
        host,
        str(port),
        str(Path(__file__).parents[1]),
    ]
    pester = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    siege.started.append(pester)

    def p99(strangers: bool) -> float:
        pester.stdin.write(b"%d %d\n" % (each, strangers))
        pester.stdin.flush()
        taken: list[float] = []
        while len(taken) < 200 or not select.select([pester.stdout], [], [], 0)[0]:
            for pid in siege.workers * 50:
                begin = time.perf_counter()
                assert d.remotecall_fetch(abs, pid, -7) == 7
                taken.append(time.perf_counter() - begin)
        assert pester.stdout.readline() == b"done\n"
        tally.bad_input(each * strangers)
        return statistics.quantiles(taken, n=100)[98]

    def ratio(number: int) -> float:
        """Measure in either order: what else the machine does may grow or cease."""
        found = {strangers: p99(strangers) for strangers in (number % 2 == 0, number % 2 == 1)}
        return found[True] / found[False]

    rounds, each = 10, 100 if milestone else 20
    ratios: list[float] = []
    while not ratios or (statistics.median(ratios) > 1.2 and len(ratios) < 4 * rounds):
        ratios += [ratio(number) for number in range(rounds)]
    print(f"p99 beside strangers: {statistics.median(ratios):.2f} times that without, {len(ratios)} rounds")
    assert statistics.median(ratios) <= 1.2, sorted(ratios)
    siege.check()


FLOOD = """
import errno, resource, select, socket, sys
count, host, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 100), hard))
sockets, poll = {}, select.poll()
for _ in range(count):
    s = socket.socket()
    s.setblocking(False)
    s.connect_ex((host, port))
    sockets[s.fileno()] = s
    poll.register(s, select.POLLOUT)
waiting = set(sockets)
while waiting:
    for fd, event in poll.poll():
        poll.unregister(fd)
        waiting.discard(fd)
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.mark.timeout(300)
def test_f56_very_many_connections_at_once(siege, milestone):
    """F56: 10,000 connections at once (1,000 with every change): few stay, and a genuine process joins."""
    helpers, each = (10, 1000) if milestone else (2, 500)
    host, port = _network.split(siege.manager.address)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard == resource.RLIM_INFINITY or hard > each + 100, (
        "the test needs a higher hard limit of descriptors"
    )
    siege.settle()
    fds = len(os.listdir("/proc/self/fd"))
    command = [sys.executable, "-S", "-c", FLOOD, str(each), host, str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with Traffic(siege.workers):
        flood = [subprocess.Popen(command, **pipes) for _ in range(helpers)]
        siege.started += flood
        siege.join()
        for process in flood:
            assert process.stdout.readline() == b"connected\n"
        wait_until(lambda: siege.refusals() >= helpers * each - 64, 60)
        tally.bad_input(helpers * each)
    assert len(os.listdir("/proc/self/fd")) < fds + 64 + 50
    siege.check()
    for process in flood:
        process.communicate(timeout=30)
    wait_until(lambda: siege.refusals() >= helpers * each, 20)
    wait_until(lambda: sum(count for count, _ in siege.logged()) == siege.refusals(), 10)
