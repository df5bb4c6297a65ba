"""A live page on loopback that shows what the cluster does; `top` shows the same in a terminal."""

from __future__ import annotations

import atexit
import html
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import _session

if TYPE_CHECKING:
    from .server import Server

_lock = threading.Lock()
_running: Dashboard | None = None


class Dashboard:
    """A dashboard that runs; as a context manager, it ends with the block.

    `url` is its address, with the token without which nobody gets in. `close` ends it, as the end of the
    program does.
    """

    def __init__(self, server: Server) -> None:
        from . import discovery

        self._server = server
        self._entry = discovery.announce(server.url)

    @property
    def url(self) -> str:
        """The address of the page, for a browser on this machine."""
        return self._server.url

    @property
    def port(self) -> int:
        """The port on loopback, for `ssh -L`."""
        return self._server.port

    def open(self) -> bool:
        """Shows the page in the browser of this machine; False where there is none."""
        import webbrowser

        return webbrowser.open(self.url)

    def close(self) -> None:
        """Ends the server, and what workers do for it."""
        global _running
        with _lock:
            if _running is not self:
                return
            _running = None
        atexit.unregister(_at_exit)
        self._entry.remove()
        self._server.close()

    def __enter__(self) -> Dashboard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<dashboard at {self.url}>"

    def _repr_html_(self) -> str:
        url = html.escape(self.url, quote=True)
        return f'<a href="{url}" target="_blank" rel="noopener noreferrer">dashboard of pydist</a>'


def dashboard(port: int = 0, open: bool = False) -> Dashboard:
    """Serves a live page on loopback: workers, a timeline of calls, maps, channels, output and errors.

    Workers do something for it only while a page is open, once a second. The address has a token in it, and
    nobody gets in without: pass it on only to those who may see what the program does. From another machine,
    `ssh -L 8000:127.0.0.1:PORT host` brings the port there, and the address works with 8000 in it.

    Parameters:
        port: the port on 127.0.0.1; 0 for one that is free.
        open: show the page in the browser of this machine.

    Returns:
        A `Dashboard`, whose `url` is the address; the one that runs, where there is one. Its `close()`, or
        the end of the program, ends it.

    Raises:
        ImportError: tornado is not installed: `pip install "pydist[dashboard]"`.
        OSError: the port is taken.
        RuntimeError: this is not process 1; or a dashboard runs on another port.

    >>> import pydist as d
    >>> board = d.dashboard()
    >>> board.url.startswith("http://127.0.0.1:")
    True
    >>> board.close()
    """
    global _running
    if not _session.is_head():
        raise RuntimeError("Only process 1 can show a dashboard")
    try:
        from .server import Server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tornado":
            raise
        raise ImportError(
            'the dashboard needs tornado, which is not installed: pip install "pydist[dashboard]"'
        ) from error
    with _lock:
        if _running is None:
            _session.ensure_started()
            _running = Dashboard(Server(port))
            atexit.register(_at_exit)
        elif port not in (0, _running.port):
            raise RuntimeError(f"a dashboard runs already, at {_running.url}")
        board = _running
    if open:
        board.open()
    return board


def announced(port: int) -> None:
    """Starts the dashboard of a program that was told from outside to have one, and tells its address."""
    sys.stderr.write(f"pydist: dashboard at {dashboard(port).url}\n")
    sys.stderr.flush()


def _at_exit() -> None:
    board = _running
    if board is not None and not _session.is_forked():
        board.close()


def top(where: Any = None, *, interval: float = 1.0) -> None:
    """Shows in the terminal what the cluster does, until `q` or Ctrl-C; once, where that is no terminal.

    `pydist top` does so from another terminal, for a program that runs a dashboard.

    Parameters:
        where: the address of a dashboard of another program; by default the cluster of this one.
        interval: seconds between two looks.

    Raises:
        ImportError: rich is not installed: `pip install "pydist[top]"`.
        RuntimeError: this is not process 1, and no address is given.
        OSError: there is no dashboard at the address.

    >>> import pydist as d
    >>> d.top()  # doctest: +ELLIPSIS
    pydist...
    """
    from . import terminal

    terminal.top(where, interval)
