"""The first block of the page on ssh, with servers that stand for its machines."""

import pydist as d
from support_documents import ROOT, examples_of

PAGE = ROOT / "docs" / "ssh.md"


def test_the_machines_of_the_page(ssh, tmp_path, monkeypatch):
    (example,) = examples_of(PAGE)
    code = example.block.text
    for there, here in (("node1", "pd1"), ("me@node2:2222", "pd2"), ("[fe80::1]", "pd1")):
        assert f'"{there}"' in code
        code = code.replace(f'"{there}"', f'"{here}"')
    client = tmp_path / "ssh"
    client.write_text(f'#!/bin/sh\nexec /usr/bin/ssh {" ".join(ssh.servers.flags)} "$@"\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    names: dict[str, list[int]] = {}
    exec(code, names)
    pids = names["pids"]
    cpus = d.remotecall_eval("import os; len(os.sched_getaffinity(0))", pids[0])
    assert len(pids) == 1 + 4 + cpus
    assert d.pmap(pow, range(8), [2] * 8) == [x * x for x in range(8)]
