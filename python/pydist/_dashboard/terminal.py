"""The dashboard in a terminal: `pydist top`, and `top()` of a program about its own cluster."""

from __future__ import annotations

import json
import os
import select
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from .. import _session
from . import discovery, sampler

State: TypeAlias = dict[str, Any]

REQUEST_SECONDS = 10.0
LINES_SHOWN, CHANNELS_SHOWN, MAPS_SHOWN = 8, 6, 5
STATES = {"busy": "bold cyan", "idle": "dim", "silent": "bold yellow", "gone": "bold red"}
KINDS = {"stdout": "", "stderr": "yellow", "error": "bold red", "gone": "bold red", "joined": "dim"}


def top(where: str | None, interval: float) -> None:
    """Shows a dashboard of another program, or the cluster of this one, until `q` or Ctrl-C."""
    _check_rich()
    if where is not None:
        show(lambda: ask(where), interval)
        return
    if not _session.is_head():
        raise RuntimeError("Only process 1 can show what the cluster does")
    own, watcher = sampler.acquire(), object()

    def look() -> State:
        own.watch(watcher)
        own.sample()
        return own.state()

    try:
        show(look, interval)
    finally:
        own.unwatch(watcher)
        sampler.release()


def _check_rich() -> None:
    try:
        import rich.console  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            'pydist top needs rich, which is not installed: pip install "pydist[top]"'
        ) from error


def ask(url: str) -> State:
    """What a dashboard shows now.

    Parameters:
        url: its address.

    Raises:
        ValueError: it is no address of a dashboard.
        OSError: nothing answers there, or it knows no such token.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or len(parts.path.strip("/")) < 16:
        raise ValueError(f"the address of a dashboard is http://127.0.0.1:PORT/TOKEN/, not {url!r}")
    address = f"http://{parts.netloc}/{parts.path.strip('/')}/state"
    # A proxy of the environment has nothing to do with what is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=REQUEST_SECONDS) as answer:
            state: State = json.load(answer)
            return state
    except urllib.error.HTTPError as error:
        with error:
            reason = "its token is another one" if error.code == 403 else f"it says {error.code}"
        raise ConnectionError(f"no dashboard answers at {parts.netloc}: {reason}") from None
    except (urllib.error.URLError, ValueError) as error:
        raise ConnectionError(
            f"no dashboard answers at {parts.netloc}: {getattr(error, 'reason', error)}"
        ) from None


def show(look: Callable[[], State], interval: float) -> None:
    """Shows states in the terminal until `q` or Ctrl-C; one of them, where the output is no terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    state = look()
    if not console.is_terminal:
        # What a process uses is known from two looks.
        time.sleep(min(interval, 1.0))
        console.print(render(look(), console.width))
        return
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(render(state, console.width, console.height), refresh=True)
                if "q" in pressed(interval):
                    return
                state = look()
        except KeyboardInterrupt:
            return


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Gives what waits some seconds for keys, and returns those that were pressed."""
    if sys.stdin is None or not sys.stdin.isatty():

        def wait(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield wait
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)

    def read(seconds: float) -> str:
        ready, _, _ = select.select([fd], [], [], seconds)
        return os.read(fd, 64).decode("ascii", "replace") if ready else ""

    try:
        yield read
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


# --- what is shown


def render(state: State, width: int = 100, height: int = 0) -> Any:
    """A state as something that rich prints.

    Parameters:
        state: as `Sampler.state` gives it.
        width: of the terminal, in characters.
        height: of the terminal, in lines; 0 where all is to be shown.
    """
    from rich.console import Group

    parts = [_header(state), _processes(state, width)]
    if state["maps"]:
        parts.append(_maps(state))
    if state["channels"]:
        parts.append(_channels(state))
    shown = LINES_SHOWN
    if height:
        # A heading takes three lines, and so does the table's.
        used = 5 + len(state["processes"])
        used += (2 + min(len(state["maps"]), MAPS_SHOWN)) if state["maps"] else 0
        used += (3 + min(len(state["channels"]), CHANNELS_SHOWN)) if state["channels"] else 0
        shown = max(0, min(height - used - 3, 40))
    if state["lines"] and shown:
        parts.append(_lines(state, shown))
    return Group(*parts)


def _header(state: State) -> Any:
    from rich.text import Text

    cluster, last = state["cluster"], state["history"][-1] if state["history"] else {}
    alive = [p for p in state["processes"] if p["state"] != "gone"]
    workers = sum(p["id"] != 1 for p in alive)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("pydist ", "bold")
    text.append(f"{cluster['program']} on {cluster['host']}, pid {cluster['ospid']}\n", "dim")
    text.append(f"{workers} {'worker' if workers == 1 else 'workers'}", "bold")
    figures = [
        f"{last.get('calls', 0):,.0f} calls/s",
        f"{sum(p['running'] for p in alive)} running",
        f"{sum(p['queued'] for p in alive)} waiting",
        f"CPU {last.get('cpu', 0):.0f} %",
        f"memory {size(last.get('memory', 0))}",
        f"traffic {size(last.get('traffic', 0))}/s",
    ]
    text.append("   " + "   ".join(figures))
    return text


def _table(*columns: tuple[str, Literal["left", "right"]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False, padding=(0, 1), header_style="dim")
    for name, justify in columns:
        wide = name in ("Runs", "Host")
        table.add_column(
            name, justify=justify, no_wrap=True, ratio=(4 if name == "Runs" else 1) if wide else None
        )
    return table


def _processes(state: State, width: int) -> Any:
    from rich.text import Text

    wide = width >= 90
    columns: list[tuple[str, Literal["left", "right"]]] = [("Id", "right"), ("State", "left")]
    columns += [("Host", "left"), ("PID", "right")] if wide else []
    columns += [("CPU", "right"), ("Memory", "right"), ("Calls", "right")]
    columns += [("In", "right"), ("Out", "right")] if wide else []
    table = _table(*columns, ("Runs", "left"))
    for process in state["processes"]:
        gone = process["state"] == "gone"
        queued = f" + {process['queued']}" if process["queued"] else ""
        row: list[Any] = [str(process["id"]), Text(process["state"], STATES[process["state"]])]
        row += [Text(process["host"]), str(process["ospid"] or "-")] if wide else []
        row += (
            ["-", "-", "-"]
            if gone
            else [
                f"{process['cpu']:.0f} %",
                size(process["memory"]),
                f"{process['running']}{queued}",
            ]
        )
        row += [size(process["received"]), size(process["sent"])] if wide else []
        table.add_row(*row, _runs(process))
    if all(process["id"] == 1 for process in state["processes"]):
        table.caption = "No workers yet: addprocs(4)"
        table.caption_justify = "left"
    return table


def _runs(process: dict[str, Any]) -> Any:
    from rich.text import Text

    if process["state"] == "gone":
        return Text(str(process["reason"]), "red")
    if process["state"] == "silent":
        return Text(f"no answer for {duration(process['silent_for'])}", "yellow")
    if not process["calls"]:
        return Text("")
    first = process["calls"][0]
    more = f", {process['running'] - 1} more" if process["running"] > 1 else ""
    return Text.assemble(first["name"], (f" for {duration(first['seconds'])}{more}", "dim"))


def _maps(state: State) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1), expand=True)
    for justify, ratio in (("left", 2), ("left", 3), ("right", None), ("right", None)):
        grid.add_column(justify=justify, ratio=ratio, no_wrap=True)  # type: ignore[arg-type]
    grid.add_row(Text("Maps", "bold"))
    maps = sorted(state["maps"], key=lambda each: (each["state"] != "running", -each["began"]))
    for each in maps[:MAPS_SHOWN]:
        total, done = each["total"], each["done"]
        bar = ProgressBar(total=total or max(done, 1), completed=done, pulse=False)
        left = {
            "running": f"{duration(each['elapsed'])}"
            if each["eta"] is None
            else f"{duration(each['eta'])} left",
            "done": f"done in {duration(each['elapsed'])}",
            "stopped": f"stopped after {duration(each['elapsed'])}",
        }[each["state"]]
        of = f"{done}" if total is None else f"{done} of {total}"
        style = "red" if each["state"] == "stopped" else ""
        grid.add_row(Text(each["name"]), bar if total is not None else "", of, Text(left, style))
    grid.add_row("")
    return grid


def _channels(state: State) -> Any:
    from rich.text import Text

    table = _table(
        ("Channel", "left"), ("Owner", "right"), ("Depth", "right"), ("Putters", "right"), ("Takers", "right")
    )
    channels = sorted(state["channels"], key=lambda c: -(c["depth"] + c["putters"] + c["takers"]))
    for channel in channels[:CHANNELS_SHOWN]:
        depth, capacity = channel["depth"], channel["capacity"]
        full = capacity is not None and 0 < capacity <= depth
        of = "unbounded" if capacity is None else f"of {capacity}"
        waiting = [Text(str(n), "bold yellow" if n else "") for n in (channel["putters"], channel["takers"])]
        name = channel["id"] if channel["open"] else f"{channel['id']} (closed)"
        table.add_row(name, str(channel["owner"]), Text(f"{depth} {of}", "yellow" if full else ""), *waiting)
    table.expand = False
    return table


def _lines(state: State, shown: int) -> Any:
    from rich.text import Text

    text = Text("Output and errors", "bold", no_wrap=True, overflow="ellipsis")
    for line in state["lines"][-shown:]:
        at = time.strftime("%H:%M:%S", time.localtime(line["time"]))
        text.append(f"\n{at} {line['worker']:>4}  ", "dim not bold")
        # What workers print must not steer this terminal.
        printed = "".join(c if c.isprintable() or c == "\t" else "�" for c in line["text"])
        text.append(printed.expandtabs(), KINDS.get(line["kind"]) or "not bold")
    return text


def size(n: float) -> str:
    """A number of bytes in few characters.

    >>> size(1234), size(98_765_432)
    ('1.2 kB', '99 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.1f} {unit}" if n < 9.95 and unit != "B" else f"{n:.0f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def duration(seconds: float) -> str:
    """A time in few characters.

    >>> duration(0.0042), duration(75), duration(7500)
    ('4.2 ms', '1 min 15 s', '2 h 05 min')
    """
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.1f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


# --- the command line

HELP = """\
usage: pydist top [URL | PID] [--list] [--interval SECONDS]

Shows in the terminal what a cluster does, whose program runs a dashboard: `pydist.dashboard()` in it,
`pydist --dashboard script.py`, or the environment variable PYDIST_DASHBOARD=1. `q` or Ctrl-C ends it.
Where the output is no terminal, it is shown once.

  URL                   the address of the dashboard, with its token
  PID                   the process that runs it, where several of this user run on this machine
  --list                only list those that run
  --interval SECONDS    between two looks, 1 by default
  -h, --help            print this
"""


def main(argv: list[str]) -> int:
    """The subcommand `pydist top`; returns the exit status."""
    rest, where, lists, interval = list(argv), None, False, 1.0
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if word in ("-h", "--help"):
            print(HELP, end="")
            return 0
        if word == "--list":
            lists = True
        elif name == "--interval":
            text = value or (rest.pop(0) if rest else "")
            try:
                interval = float(text)
            except ValueError:
                interval = 0.0
            if not 0.1 <= interval < 1e6:
                return _fail(f"--interval takes seconds, 0.1 or more, not {text!r}", 2)
        elif word.startswith("-") or where is not None:
            return _fail(f"pydist top does not know {word!r}\nTry 'pydist top --help'.", 2)
        else:
            where = word
    if lists:
        return _list(discovery.running())
    return _follow(where, interval)


def _follow(where: str | None, interval: float) -> int:
    url = where
    if where is None or where.isdecimal():
        found = [told for told in discovery.running() if where in (None, str(told["ospid"]))]
        if len(found) != 1:
            return _list(found, where)
        url = str(found[0]["url"])
    try:
        top(url, interval)
    except (OSError, ValueError, ImportError) as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return 130
    return 0


def _list(found: list[dict[str, Any]], where: str | None = None) -> int:
    if not found:
        which = f"Process {where} runs no dashboard" if where else "No dashboard runs"
        return _fail(
            f"{which} for this user on this machine: call pydist.dashboard() in the program, start it with "
            "`pydist --dashboard script.py`, or with PYDIST_DASHBOARD=1",
            1,
        )
    for told in found:
        age = duration(max(time.time() - float(told["since"]), 0))
        print(f"{told['ospid']:>8}  {told['program']}  ({age})\n          {told['url']}")
    if where is None and len(found) > 1:
        print("\nTry 'pydist top PID'.")
    return 0


def _fail(message: str, status: int) -> int:
    sys.stderr.write(f"pydist: error: {message}\n")
    return status
