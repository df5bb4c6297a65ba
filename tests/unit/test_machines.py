"""Machines as `addprocs` takes them."""

import pytest

from pydist.managers._machines import Machine, parse, parse_all


@pytest.mark.parametrize(
    ("text", "machine"),
    [
        ("node1", Machine("node1")),
        ("node-1.example.org", Machine("node-1.example.org")),
        ("me@node1", Machine("node1", user="me")),
        ("first.last@node1:2222", Machine("node1", user="first.last", port=2222)),
        ("10.0.0.7:22", Machine("10.0.0.7", port=22)),
        ("node1 10.0.0.7", Machine("node1", bind_addr="10.0.0.7")),
        ("  me@node1:22\t10.0.0.7:9000 ", Machine("node1", "me", 22, "10.0.0.7", 9000)),
        ("[::1]", Machine("::1")),
        ("me@[fe80::1]:2222 [2001:db8::1]:9000", Machine("fe80::1", "me", 2222, "2001:db8::1", 9000)),
        (("node1", 4), Machine("node1", count=4)),
        (("me@[::1]:22", "auto"), Machine("::1", "me", 22, count="auto")),
        (["node1", 1], Machine("node1")),
    ],
)
def test_a_machine_is_read(text, machine):
    assert parse(text) == machine


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "@node1",
        "me@",
        "me@@node1",
        "a b@node1",
        "node1:",
        "node1:0",
        "node1:65536",
        "node1:x",
        "node1:-1",
        "node1:22:23",
        "-oProxyCommand=sh",
        "me@-node1",
        "node..1",
        "node1;reboot",
        "node1 1.2.3.4 5",
        "node1 bind:addr:1",
        "::1",
        "[::1",
        "[::1]22",
        "[::1]:",
        "[node1]",
        "node1:\N{ARABIC-INDIC DIGIT ONE}",
        "a" * 64,
        ("node1", 0),
        ("node1", -2),
        ("node1", "many"),
        ("node1", 1, 2),
        (),
    ],
)
def test_a_malformed_machine_is_a_value_error_that_shows_it(text):
    shown = text if isinstance(text, str) else (text[0] if text else "()")
    with pytest.raises(ValueError, match=r"machine|workers") as caught:
        parse(text)
    assert repr(shown)[1:-1] in str(caught.value)


@pytest.mark.parametrize("machine", [5, None, b"node1", ("node1", 1.5), ("node1", True), (5, 1)])
def test_what_is_no_machine_is_a_type_error(machine):
    with pytest.raises(TypeError, match=r"machine|workers"):
        parse(machine)


def test_a_list_of_none_is_a_value_error():
    with pytest.raises(ValueError, match="empty"):
        parse_all([])
    assert parse_all(["a", ("b", 2)]) == [Machine("a"), Machine("b", count=2)]
