"""Write the corpus of bad bytes: `python scripts/write_bad_bytes.py`.

`tests/faults/bad_bytes/before` has what is sent in place of a handshake, `after` what is sent by a peer that
has proved itself. Files that others have added, such as what fuzzing found, stay.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "tests/faults/bad_bytes"
MAGIC = b"\x89PYDIST"
BOMB = b"cos\nmkdir\n(S'pydist-unpickled'\ntR."
"""A pickle that makes a folder where it is loaded."""


def openers() -> dict[str, bytes]:
    """Give what other programs say first."""
    http = b"Host: localhost\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n"
    mysql = b"\x20\x00\x00\x01\x85\xa6\xff\x01\x00\x00\x00\x01\x21" + bytes(23)
    return {
        "http-get": b"GET / HTTP/1.1\r\n" + http,
        "http-post": b"POST /login HTTP/1.1\r\nContent-Length: 11\r\n" + http + b"user=a&pw=b",
        "http-head": b"HEAD / HTTP/1.0\r\n\r\n",
        "http-options": b"OPTIONS * HTTP/1.1\r\n" + http,
        "http-connect": b"CONNECT example.org:443 HTTP/1.1\r\n" + http,
        "http-answer": b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        "http-long-path": b"GET /" + b"A" * 3000 + b" HTTP/1.1\r\n" + http,
        "http-websocket": b"GET /ws HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + http,
        "http-proxy-2": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\1\x7f\0\0\1\x1f\x90\0\x50",
        "http-proxy-1": b"PROXY TCP4 127.0.0.1 127.0.0.1 56324 443\r\n",
        "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
        "http-2-settings": b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x64\0\4\0\xa0\0\0\0\2\0\0\0\0",
        "grpc": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\4\0\0\0\0\0\0\5\0\0\x40\0",
        "rtsp": b"OPTIONS rtsp://localhost RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        "sip": b"OPTIONS sip:nm SIP/2.0\r\nVia: SIP/2.0/TCP nm;branch=foo\r\nCSeq: 42 OPTIONS\r\n\r\n",
        "ssh": b"SSH-2.0-OpenSSH_9.6p1 Debian-3\r\n",
        "ssh-1": b"SSH-1.5-1.2.27\n",
        "tls-1-0": b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x01"
        + bytes(range(32))
        + b"\0\0\4\0\x2f\0\x35\1\0",
        "tls-1-3": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
        "tls-alert": b"\x15\x03\x03\x00\x02\x02\x28",
        "tls-data": b"\x17\x03\x03\x00\x10" + bytes(16),
        "tls-heartbleed": b"\x18\x03\x02\x00\x03\x01\x40\x00",
        "ssl-2": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(35),
        "smb-1": b"\0\0\0\x2f\xffSMB\x72\0\0\0\0\x18\x01\x28" + bytes(16) + b"\0\x0c\0\x02NT LM 0.12\0",
        "smb-2": b"\0\0\0\x66\xfeSMB\x40\0\0\0\0\0\0\0\0\0\1\0" + bytes(44) + b"\x24\0\2\0\1\0\0\0",
        "rdp": b"\x03\0\0\x2b\x26\xe0\0\0\0\0\0Cookie: mstshash=nmap\r\n\1\0\x08\0\3\0\0\0",
        "x224": b"\x03\0\0\x0b\x06\xe0\0\0\0\0\0",
        "redis": b"*1\r\n$4\r\nPING\r\n",
        "redis-inline": b"CONFIG GET dir\r\n",
        "postgres": b"\0\0\0\x54\0\3\0\0user\0postgres\0database\0postgres\0application_name\0psql\0\0",
        "postgres-ssl": b"\0\0\0\x08\x04\xd2\x16\x2f",
        "postgres-cancel": b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\1\0\0\0\2",
        "mysql": mysql + b"root\0\0",
        "mongodb": b"\x3a\0\0\0\1\0\0\0\0\0\0\0\xd4\7\0\0\0\0\0\0admin.$cmd\0\0\0\0\0\xff\xff\xff\xff"
        b"\x13\0\0\0\x10isMaster\0\1\0\0\0\0",
        "memcached": b"stats\r\n",
        "memcached-binary": b"\x80\x0b" + bytes(22),
        "cassandra": b"\x04\0\0\0\5\0\0\0\0",
        "kafka": b"\0\0\0\x12\0\x12\0\0\0\0\0\1\0\x08consumer",
        "amqp": b"AMQP\0\0\x09\1",
        "mqtt": b"\x10\x10\0\4MQTT\4\2\0\x3c\0\4test",
        "nats": b'CONNECT {"verbose":false}\r\nPING\r\n',
        "stomp": b"CONNECT\naccept-version:1.2\n\n\0",
        "zookeeper": b"ruok",
        "zeromq": b"\xff\0\0\0\0\0\0\0\1\x7f\3\0NULL" + bytes(48),
        "etcd": b'{"jsonrpc":"2.0","method":"status","id":1}\n',
        "xmpp": b"<?xml version='1.0'?><stream:stream to='localhost' version='1.0'>",
        "ldap": b"\x30\x0c\x02\1\1\x60\7\2\1\3\4\0\x80\0",
        "ldap-search": b"\x30\x25\2\1\1\x63\x20\4\0\x0a\1\0\x0a\1\0\2\1\0\2\1\0\1\1\0\x87\x0bobjectclass0\0",
        "dns": b"\0\x1e\0\6\1\0\0\1\0\0\0\0\0\0\7version\4bind\0\0\x10\0\3",
        "dns-status": b"\0\x0c\0\0\x10\0\0\0\0\0\0\0\0\0",
        "kerberos": b"\0\0\0\x71\x6a\x81\x6e\x30\x81\x6b\xa1\3\2\1\5\xa2\3\2\1\x0a" + bytes(95),
        "smtp": b"EHLO localhost\r\n",
        "smtp-220": b"220 localhost ESMTP\r\n",
        "pop3": b"USER root\r\nPASS root\r\n",
        "imap": b"a1 CAPABILITY\r\n",
        "ftp": b"USER anonymous\r\n",
        "telnet": b"\xff\xfb\x1f\xff\xfb\x20\xff\xfb\x18\xff\xfb\x27\xff\xfd\x01",
        "irc": b"NICK scan\r\nUSER scan 0 * :scan\r\n",
        "finger": b"root\r\n",
        "rsync": b"@RSYNCD: 31.0\n",
        "git": b"0032git-upload-pack /project.git\0host=localhost\0",
        "svn": b"( 2 ( edit-pipeline ) 23:svn://localhost/project ) ",
        "cvs": b"BEGIN AUTH REQUEST\n/cvs\nroot\n\nEND AUTH REQUEST\n",
        "x11": b"l\0\x0b\0\0\0\0\0\0\0\0\0",
        "vnc": b"RFB 003.008\n",
        "nfs": b"\x80\0\0\x28\x72\xfe\x1d\x13\0\0\0\0\0\0\0\2\0\1\x86\xa0\0\1\x97\x7c" + bytes(20),
        "ajp": b"\x12\x34\0\1\x0a",
        "java-rmi": b"JRMI\0\2\x4b",
        "java-serialized": b"\xac\xed\0\5sr\0\x11java.util.HashMap\5\7\xda\xc1\xc3\x16\x60\xd1",
        "jdwp": b"JDWP-Handshake",
        "t3": b"t3 12.1.2\nAS:2048\nHL:19\n\n",
        "oracle-tns": b"\0\x5a\0\0\1\0\0\0\1\x36\1\x2c\0\0\x08\0\x7f\xff\x7f\x08\0\0\0\1" + bytes(66),
        "mssql": b"\x12\1\0\x34\0\0\0\0\0\0\x15\0\6\1\0\x1b\0\1\2\0\x1c\0\x0c\3\0\x28\0\4\xff\x08\0\1\x55"
        + bytes(19),
        "modbus": b"\0\1\0\0\0\6\1\3\0\0\0\1",
        "s7": b"\3\0\0\x16\x11\xe0\0\0\0\1\0\xc0\1\x0a\xc1\2\1\0\xc2\2\1\2",
        "bitcoin": b"\xf9\xbe\xb4\xd9version\0\0\0\0\0\x66\0\0\0" + bytes(106),
        "bittorrent": b"\x13BitTorrent protocol" + bytes(48),
        "socks-4": b"\4\1\0\x50\x7f\0\0\1root\0",
        "socks-5": b"\5\2\0\2",
        "docker": b"GET /v1.24/containers/json HTTP/1.1\r\nHost: docker\r\n\r\n",
        "dask": b"\1\0\0\0\0\0\0\0\x2c\0\0\0\0\0\0\0\x81\xa2op\xa8identity",
        "julia": b"JULIA_CLUSTER_COOKIE_16" + bytes(16),
        "multiprocessing": b"#CHALLENGE#" + bytes(20),
        "rpyc": b"\0\0\0\x10\0" + bytes(16),
        "lines": b"\n" * 64,
        "shell": b"() { :; }; echo pwned\n",
        "log4j": b"${jndi:ldap://localhost/a}\r\n",
        "nop-sled": b"\x90" * 200 + b"\xcc",
    }


def noise() -> dict[str, bytes]:
    """Give bytes without a meaning, and those that mean something to pickle."""
    made = random.Random(1)
    found = {
        "empty": b"",
        "zero": b"\0",
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
        "newline": b"\r\n",
        "utf-8": "π ≈ 3,14 ✓".encode(),
        "utf-16": "GET /".encode("utf-16"),
        "length-2-63": struct.pack("<Q", 2**63) * 8,
        "length-big-endian": struct.pack(">Q", 2**63) * 8,
        "format": b"%s%n%x" * 20,
        "pickle-0": BOMB,
        "pickle-4": b"\x80\4\x95" + struct.pack("<Q", len(BOMB)) + BOMB,
        "pickle-5": b"\x80\5" + BOMB,
        "marshal": b"\xe3" + bytes(60),
        "zlib-bomb": b"\x78\x9c\xed\xc1\x01\x0d\0\0\0\xc2\xa0\xf7Om\x0e7\xa0\0\0\0",
        "json": b'{"id": 1, "f": "os.system"}',
    }
    for length in (1, 2, 7, 8, 67, 68, 69, 100, 512, 513, 2000):
        found[f"random-{length:04}"] = made.randbytes(length)
    return found


def openings() -> dict[str, bytes]:
    """Give handshakes that are wrong, and those that are right as far as one gets without the cookie."""

    def hello(
        low: int = 1, high: int = 1, flags: int = 0, role: int = 1, cluster: bytes = bytes(16), pid: int = 0
    ) -> bytes:
        fixed = struct.pack("<4H", low, high, flags, role)
        return MAGIC + b"\1" + fixed + cluster + struct.pack("<I", pid) + bytes(range(32))

    challenge = MAGIC + b"\2" + struct.pack("<2HI", 1, 0, 1) + bytes(range(32))
    mismatch = MAGIC + b"\3" + struct.pack("<2H", 2, 3)
    info = b"\x0c\0\1\3\3\x0c\4\2\x050.1.0" + bytes(32)
    found = {
        "magic": MAGIC,
        "magic-twice": MAGIC * 2,
        "magic-pickle": MAGIC + BOMB,
        "kind-0": MAGIC + b"\0" + bytes(60),
        "kind-4": MAGIC + b"\4" + bytes(60),
        "kind-255": MAGIC + b"\xff" * 61,
        "hello": hello(),
        "hello-twice": hello() * 2,
        "hello-thrice": hello() * 3,
        "hello-worker": hello(pid=2),
        "hello-head": hello(pid=1),
        "hello-last": hello(pid=2**32 - 1),
        "hello-cluster": hello(cluster=b"\7" * 16),
        "hello-cluster-worker": hello(cluster=b"\7" * 16, pid=2),
        "hello-version-0": hello(low=0, high=0),
        "hello-version-2": hello(low=2, high=3),
        "hello-version-65535": hello(low=65535, high=65535),
        "hello-version-backward": hello(low=2, high=1),
        "hello-versions-all": hello(low=1, high=65535),
        "hello-flags": hello(flags=1),
        "hello-flags-high": hello(flags=0x8000),
        "hello-role-0": hello(role=0),
        "hello-role-2": hello(role=2),
        "hello-pickle": hello() + BOMB,
        "hello-pickles": hello() + BOMB * 20,
        "hello-proof-zeros": hello() + bytes(32),
        "hello-proof-ones": hello() + b"\xff" * 32,
        "hello-proof-info": hello() + bytes(32) + info,
        "hello-proof-info-frames": hello() + bytes(32) + info + bytes(400),
        "hello-frame": hello() + struct.pack("<IBBH", 32, 7, 0, 0) + bytes(32),
        "challenge": challenge,
        "challenge-proof": challenge + bytes(32),
        "challenge-hello": challenge + hello(),
        "hello-challenge": hello() + challenge,
        "mismatch": mismatch,
        "mismatch-hello": mismatch + hello(),
        "proof": bytes(range(32)),
        "info": info,
        "info-hello": info + hello(),
        "frame-exit": struct.pack("<IBBH", 32, 8, 0, 0) + bytes(32),
        "frame-call": struct.pack("<IBBH", 40 + len(BOMB), 1, 0, 0)
        + bytes(24)
        + struct.pack("<IIQ", 1, 0, len(BOMB))
        + BOMB,
    }
    good = hello()
    for at in range(7):
        found[f"magic-bit-{at}"] = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    return found


def head(
    kind: int,
    *,
    flags: int = 0,
    stream: int = 0,
    ident: int = 0,
    a: int = 0,
    b: int = 0,
    c: int = 0,
    lengths: tuple[int, ...] = (),
    refs: int = 0,
    data: bytes = b"",
    tables: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """Make a head frame (docs/wire.md), right but for what the caller makes wrong."""
    fields = struct.pack("<QQIIII", ident, a, b, c, len(lengths), refs)
    if tables is None:
        tables = b"".join(struct.pack("<Q", n) for n in lengths) + bytes(16 * refs)
    rest = fields + tables + data
    return struct.pack("<IBBH", len(rest) if length is None else length, kind, flags, stream) + rest


def chunk(stream: int, data: bytes = b"", *, flags: int = 0, length: int | None = None) -> bytes:
    """Make a chunk frame."""
    return struct.pack("<IBBH", len(data) if length is None else length, 15, flags, stream) + data


def frames() -> dict[str, bytes]:
    """Give frames that break the protocol; calls among them have a pickle that must not be loaded."""
    bomb = {"lengths": (len(BOMB),), "data": BOMB}
    table = {"lengths": (), "tables": b""}
    found = {f"kind-{kind:03}": head(kind, **bomb) for kind in (0, 19, 20, 31, 64, 127, 128, 200, 254, 255)}
    found |= {f"flags-{flags:03}": head(1, flags=flags, **bomb) for flags in (2, 3, 5, 6, 7, 8, 16, 128, 255)}
    found |= {f"call-mode-{b}": head(1, ident=1, b=b, **bomb) for b in (3, 4, 255, 2**31, 2**32 - 1)}
    found |= {f"result-status-{b}": head(2, ident=1, b=b, **bomb) for b in (10, 11, 255, 2**32 - 1)}
    found |= {f"operation-{c}": head(4, ident=1, c=c, **bomb) for c in (16, 17, 255, 2**32 - 1)}
    found |= {f"withdrawal-{c}": head(5, ident=1, c=c) for c in (2, 3, 2**32 - 1)}
    found |= {f"length-{n}": head(1, length=n, **bomb) for n in (2**24 + 1, 2**31, 2**32 - 1, 0, 1, 31)}
    found |= {
        "http-get": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "pickle": BOMB,
        "pickles": BOMB * 20,
        "zeros": bytes(100),
        "ones": b"\xff" * 100,
        "magic": MAGIC + b"\1" + bytes(60),
        "length-short": head(1, length=32 + 8 + len(BOMB) - 1, **bomb),
        "length-long": head(1, length=32 + 8 + len(BOMB) + 1, **bomb) + b"\0",
        "header-short": struct.pack("<IBBH", 31, 7, 0, 0) + bytes(31),
        "segments-missing": head(1, ident=1, lengths=(4, 4), data=b"abcd"),
        "segments-more": head(1, ident=1, lengths=(4,), data=b"abcdefgh"),
        "segments-2-32": struct.pack("<IBBH", 32, 1, 0, 0) + struct.pack("<QQIIII", 1, 0, 0, 0, 2**32 - 1, 0),
        "references-2-32": struct.pack("<IBBH", 32, 1, 0, 0)
        + struct.pack("<QQIIII", 1, 0, 0, 0, 0, 2**32 - 1),
        "tables-2-32": struct.pack("<IBBH", 32, 1, 0, 0)
        + struct.pack("<QQIIII", 1, 0, 0, 0, 2**32 - 1, 2**32 - 1),
        "segment-2-63": head(1, ident=1, lengths=(2**63,)),
        "segment-2-64": head(1, ident=1, lengths=(2**64 - 1,)),
        "segments-overflow": head(1, ident=1, lengths=(2**64 - 1, 2**64 - 1, 2)),
        "stream-2-63": head(1, ident=1, flags=1, stream=1, lengths=(2**63,)),
        "stream-2-64": head(1, ident=1, flags=1, stream=1, lengths=(2**64 - 1, 1)),
        "stream-empty": head(1, ident=1, flags=1, stream=1),
        "stream-with-data": head(1, ident=1, flags=1, stream=1, **bomb),
        "stream-reused": head(1, ident=1, flags=1, stream=1, lengths=(9,)) * 2,
        "streams-17": b"".join(head(1, ident=n, flags=1, stream=n, lengths=(9,)) for n in range(17)),
        "chunk-unknown": chunk(5, b"hello"),
        "chunk-empty": head(1, ident=1, flags=1, stream=1, lengths=(9,)) + chunk(1),
        "chunk-over": head(1, ident=1, flags=1, stream=1, lengths=(4,)) + chunk(1, b"hello"),
        "chunk-after-last": head(2, ident=1, flags=1, stream=1, lengths=(5,)) + chunk(1, b"hello") * 2,
        "chunk-1-mib": head(1, ident=1, flags=1, stream=1, lengths=(2**22,)) + chunk(1, length=2**20 + 1),
        "chunk-4-gib": head(1, ident=1, flags=1, stream=1, lengths=(2**22,)) + chunk(1, length=2**32 - 1),
        "chunk-flags": head(1, ident=1, flags=1, stream=1, lengths=(9,)) + chunk(1, b"hello", flags=1),
        "abort-unknown": chunk(1, flags=2),
        "abort-with-data": head(1, ident=1, flags=1, stream=1, lengths=(9,)) + chunk(1, b"hello", flags=2),
        "abort-twice": head(1, ident=1, flags=1, stream=1, lengths=(9,)) + chunk(1, flags=2) * 2,
        "shared-without-file": head(1, ident=1, flags=4, lengths=(4, 70_000), data=bytes(20) + b"abcd"),
        "shared-streamed": head(1, ident=1, flags=5, stream=1, lengths=(4, 70_000)),
        "refs-cut": head(6, ident=1, lengths=(23,), data=bytes(23)),
        "confirm-cut": head(14, ident=1, lengths=(19,), data=bytes(19)),
        "unmapped-cut": head(16, ident=1, lengths=(11,), data=bytes(11)),
        "unmapped-state": head(16, ident=1, lengths=(12,), data=struct.pack("<QI", 1, 2)),
        "ready-empty": head(11),
        "ready-four": head(11, lengths=(0, 16, 0, 0), data=bytes(16)),
        "ready-tag": head(11, lengths=(0, 15, 0, 0, 0), data=bytes(15)),
        "ready-utf-8": head(11, lengths=(2, 16, 0, 0, 0), data=b"\xff\xfe" + bytes(16)),
        "ready-host": head(11, lengths=(0, 16, 1, 0, 0), data=bytes(16) + b"\xc3"),
        "ready-connected": head(11, lengths=(0, 16, 0, 3, 0), data=bytes(19)),
        "ready-process": head(11, ident=2**32, lengths=(0, 16, 0, 0, 0), data=bytes(16)),
        "join-process": head(9, ident=2**64 - 1, lengths=(0, 16, 0, 0, 0), data=bytes(16)),
        "leave-process": head(10, ident=2**32, lengths=(1,), data=b"x"),
    }
    return found | unasked() | {f"table-{n}": head(1, ident=1, **table, refs=n) for n in (1, 2, 1000)}


def unasked() -> dict[str, bytes]:
    """Give messages of the right form that nobody asked for, or that the sender may not send."""
    member = {"lengths": (0, 16, 0, 0, 0), "data": bytes(16)}
    refs = struct.pack("<IQIIi", 1, 10**9, 77, 78, -(2**31))
    entries = {"lengths": (24 * 40,), "data": refs * 40}
    found = {
        "exit": head(8),
        "join": head(9, ident=500, **member),
        "leave-head": head(10, ident=1, lengths=(4,), data=b"gone"),
        "leave-worker": head(10, ident=2, lengths=(4,), data=b"gone"),
        "pong": head(13, ident=7),
        "done": head(3, ident=1),
        "done-first": b"".join(head(3, ident=n) for n in range(1, 60)),
        "results": b"".join(head(2, ident=n, lengths=(1,), data=b".") for n in range(1, 60)),
        "results-exited": b"".join(head(2, ident=n, b=7, lengths=(1,), data=b"x") for n in range(1, 60)),
        "withdraws": b"".join(head(5, ident=n, a=n, b=1, c=n % 2) for n in range(1, 60)),
        "confirm": head(14, ident=1, lengths=(20,), data=struct.pack("<IQQ", 1, 1, 1)),
        "unmapped": head(16, ident=1, lengths=(12,), data=struct.pack("<QI", 99, 1)),
        "refs": head(6, ident=40, **entries),
        "heartbeats": head(17, a=1, b=1, c=3) * 20,
        "heartbeat-zero": head(17, c=3),
        "heartbeat-last": head(17, a=2**64 - 1, b=2**32 - 1, c=2**32 - 1),
        "pings": head(12, ident=9) * 50,
        "recount": head(4, ident=2**40, a=1, b=1, c=6),
        "create-theirs": head(4, a=1, b=1, c=5),
        "recalls": b"".join(head(4, a=n, b=1, c=15) for n in range(1, 60)),
        "cancels": b"".join(head(4, ident=n, a=n, b=1, c=4) for n in range(1, 60)),
        "channels-of-others": b"".join(
            head(4, ident=n, a=n, b=1, c=7, lengths=(8,), data=bytes(8)) for n in range(1, 60)
        ),
    }
    return found


def main() -> None:
    """Write all files."""
    before = openers() | noise() | openings()
    for folder, inputs in (("before", before), ("after", frames())):
        (FOLDER / folder).mkdir(parents=True, exist_ok=True)
        for name, data in inputs.items():
            (FOLDER / folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
