"""`doctor`: whether this machine, or others, can run workers, and what to do where they cannot."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from . import _core, _doctor_probe, _folders, _info, _session
from ._doctor_ssh import Login

PARALLEL = 10
"""So many machines are looked at at once."""
FILES_FEW = 1024
PROCESSES_FEW = 1024
FREE_FEW = 100 << 20

Result = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Check:
    """One line of what `doctor` found.

    Parameters:
        machine: which machine it is about.
        name: what was checked.
        result: "ok", "warning" or "failed".
        found: what was found.
        advice: what to do; empty where nothing needs to be done.
    """

    machine: str
    name: str
    result: Result
    found: str
    advice: str = ""


class Report:
    """What `doctor` found; its text is the table.

    Parameters:
        checks: the lines, in order.
    """

    def __init__(self, checks: list[Check]) -> None:
        self.checks = checks

    @property
    def ok(self) -> bool:
        """Whether nothing has failed; there may be warnings."""
        return not self.failed

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.result == "failed"]

    def __repr__(self) -> str:
        return f"<doctor: {len(self.checks)} checks, {len(self.failed)} failed>"

    def __str__(self) -> str:
        head = ("machine", "check", "result", "found")
        rows = [(check.machine, check.name, check.result, check.found) for check in self.checks]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(3)]
        indent = " " * (sum(widths) + 6)

        def line(row: tuple[str, ...]) -> str:
            cells = [cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)]
            return "  ".join([*cells, row[3]]).rstrip()

        lines = [line(head), line(("-" * widths[0], "-" * widths[1], "-" * widths[2], "-" * len(head[3])))]
        for check, row in zip(self.checks, rows, strict=True):
            lines.append(line(row))
            if check.advice:
                lines.append(f"{indent}-> {check.advice}")
        return "\n".join(lines)


def doctor(
    host_or_machines: Any = None,
    *,
    exename: str | os.PathLike[str] | None = None,
    ssh: str = "ssh",
    sshflags: Iterable[str] | str = (),
    timeout: float = 10.0,
) -> Report:
    """Checks whether this machine, or others, can run workers, and prints one table that says what to do.

    Looked at are, of other machines, whether they are reached and let this user log in through ssh without a
    password, and which Python and pydist they have; and of each its addresses, CPUs, settings of threads, and
    limits. A check that fails raises nothing.

    Parameters:
        host_or_machines: a machine as `addprocs` takes it, `"[user@]host[:port] [bind_addr[:port]]"`, or a
            list of such; this machine by default.
        exename: the Python there; by default one at the path of this one, else `python3`.
        ssh: the ssh client.
        sshflags: flags for it, a list or one string.
        timeout: seconds for each of the connections to a machine.

    Returns:
        A report with `.ok`, `.checks` and `.failed`; its `str()` is the table that is printed.

    Raises:
        TypeError: a machine that is neither text nor a pair.

    Distributed.jl: there is none.

    >>> import pydist as d
    >>> report = d.doctor()  # doctest: +ELLIPSIS
    machine ...
    >>> report.ok
    True
    """
    if host_or_machines is None:
        checks = _checks_here()
    else:
        single = isinstance(host_or_machines, str)
        machines = [host_or_machines] if single else list(host_or_machines)
        flags = sshflags.split() if isinstance(sshflags, str) else [str(flag) for flag in sshflags]
        logins = [
            Login(machine, None if exename is None else os.fspath(exename), ssh, flags, timeout)
            for machine in machines
        ]
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="pydist-doctor") as pool:
            checks = [check for found in pool.map(_checks_there, logins) for check in found]
    report = Report(checks)
    print(report)
    return report


def _checks_here() -> list[Check]:
    facts = _doctor_probe.facts()
    name = "this machine"
    checks = [
        Check(name, "host", "ok", facts["host"]),
        _python(name, facts),
        Check(name, "pydist", "ok", facts["pydist"]),
        *_common(name, facts),
        _sockets(name),
    ]
    for setting in _info.settings():
        state = setting.state()
        if setting.name in os.environ:
            bad = state.startswith("not valid")
            checks.append(
                Check(
                    name,
                    setting.name,
                    "failed" if bad else "ok",
                    state,
                    f"unset {setting.name}, or give it a value that is valid" if bad else "",
                )
            )
    return checks


def _sockets(name: str) -> Check:
    try:
        folder, lock = _session._socket_folder()
    except OSError as error:
        return Check(
            name,
            "socket folder",
            "failed",
            str(error),
            "set TMPDIR to a folder that you may write to, and whose path is short",
        )
    os.rmdir(folder)
    _folders.unlock(lock)
    return Check(name, "socket folder", "ok", f"in {os.path.dirname(folder)}")


def _checks_there(login: Login) -> list[Check]:
    """The checks of another machine, up to the first that makes the others pointless."""
    checks = []
    name = login.name
    for step in (login.parse, login.reach, login.log_in):
        outcome = step()
        if outcome is None:
            continue
        checks.append(Check(name, *outcome))
        if outcome[1] == "failed":
            return checks
    facts = login.facts
    checks += [
        Check(name, "host", "ok", facts["host"]),
        _python(name, facts, login.executable, login.asked),
        _package(name, facts),
        *_common(name, facts, login.bind_addr),
    ]
    return checks


def _python(name: str, facts: dict[str, Any], there: str | None = None, asked: bool = False) -> Check:
    """The check of a Python: that of this process, or the one that was found elsewhere, asked for or not."""
    found = f"{facts['implementation']} {facts['python']} at {facts['executable']}"
    version = tuple(map(int, facts["python"].split(".")[:2]))
    here = sys.version_info[:2]
    if facts["implementation"] != "CPython" or version < (3, 11):
        return Check(name, "python", "failed", found, "pydist needs CPython 3.11 or newer: install it there")
    if there is None:
        return Check(name, "python", "ok", found)
    if version != here:
        advice = f"all processes must have that of this one, {here[0]}.{here[1]}: name one there by exename="
        return Check(name, "python", "failed", found, advice)
    if not asked and there != sys.executable:
        advice = f"there is none at {sys.executable}: say exename={there!r} to addprocs"
        return Check(name, "python", "warning", found, advice)
    return Check(name, "python", "ok", found)


def _package(name: str, facts: dict[str, Any]) -> Check:
    install = f"{facts['executable']} -m pip install pydist=={_core.__version__}"
    if facts["pydist"] is None:
        advice = f"install it there ({install}), or give the Python that has it as exename="
        return Check(name, "pydist", "failed", facts["pydist_error"], advice)
    if facts["pydist"] != _core.__version__:
        advice = f"here it is {_core.__version__}, and all processes must have the same: {install}"
        return Check(name, "pydist", "failed", facts["pydist"], advice)
    return Check(name, "pydist", "ok", facts["pydist"])


def _common(name: str, facts: dict[str, Any], bind_addr: str | None = None) -> list[Check]:
    return [
        _addresses(name, facts["addresses"], bind_addr),
        _cpus(name, facts),
        _threads(name, facts),
        _limit(name, "open files", facts["open_files"], FILES_FEW, "ulimit -n 4096"),
        _limit(name, "processes and threads", facts["processes"], PROCESSES_FEW, "ulimit -u 4096"),
        _temporary(name, facts["temporary"]),
    ]


def _addresses(name: str, addresses: list[str], bind_addr: str | None) -> Check:
    found = ", ".join(addresses) or "none"
    beyond = [address for address in addresses if not address.startswith("127.") and address != "::1"]
    if bind_addr is not None and bind_addr not in (*addresses, "127.0.0.1", "::1", "0.0.0.0", "::"):
        advice = f"{bind_addr}, where its workers are to listen, is not among them; check the machine's text"
        return Check(name, "addresses", "warning", found, advice)
    if not beyond:
        advice = "only workers on the machine itself, or through a tunnel, can be reached; check its network"
        return Check(name, "addresses", "warning", found, advice)
    return Check(name, "addresses", "ok", found)


def _cpus(name: str, facts: dict[str, Any]) -> Check:
    usable, quota = facts["usable_cpus"], facts["quota"]
    found = f"{usable} of {facts['cpus']} usable"
    if quota is None or quota >= usable:
        return Check(name, "CPUs", "ok", found)
    advice = f"more than {max(1, int(quota))} workers share that time: give addprocs the number"
    return Check(name, "CPUs", "warning", f"{found}, with the time of {quota:g}", advice)


def _threads(name: str, facts: dict[str, Any]) -> Check:
    threads = facts["threads"]
    found = ", ".join(f"{variable}={value}" for variable, value in sorted(threads.items()))
    many = [variable for variable, value in sorted(threads.items()) if value.strip() != "1"]
    if not many:
        return Check(name, "threads", "ok", found or "one for each worker (no variable is set)")
    advice = (
        f"each worker starts so many threads, on {facts['usable_cpus']} CPUs: unset {', '.join(many)}, "
        f"or say addprocs(..., env={{{many[0]!r}: '1'}})"
    )
    return Check(name, "threads", "warning", found, advice)


def _limit(name: str, what: str, limit: list[int | None], few: int, command: str) -> Check:
    soft, hard = limit
    found = "no limit" if soft is None else f"at most {soft:,}"
    if soft != hard:
        found += " (can be raised)" if hard is None else f" (can be raised to {hard:,})"
    if soft is None or soft >= few:
        return Check(name, what, "ok", found)
    return Check(name, what, "warning", found, f"many workers need more: {command}")


def _temporary(name: str, temporary: dict[str, Any]) -> Check:
    if temporary["folder"] is None:
        advice = "set TMPDIR to a folder that you may write to"
        return Check(name, "temporary files", "failed", temporary["error"], advice)
    found = f"{temporary['free'] / 1e9:.1f} GB free in {temporary['folder']}"
    if temporary["free"] < FREE_FEW:
        return Check(name, "temporary files", "warning", found, "make room there, or set TMPDIR")
    return Check(name, "temporary files", "ok", found)
