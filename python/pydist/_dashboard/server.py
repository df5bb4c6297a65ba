"""The web server of the dashboard: on loopback, behind a token, on a thread and an event loop of its own.

Tornado, as it needs no other package (aiohttp needs seven, starlette with uvicorn six).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from importlib import resources
from typing import Any, Protocol, TypeAlias

from tornado import httpserver, iostream, web

from .. import _log, _session
from . import sampler

ADDRESS = "127.0.0.1"
START_SECONDS = 10.0
STOP_SECONDS = 5.0
PAGES_MAX = 32
"""So many pages may be open at once."""
REST_AFTER = 5.0
"""Seconds after the last request for data until nobody is taken to watch."""
NAMES = ("127.0.0.1", "localhost", "[::1]")
"""What a browser may call this machine: a site that has its own name point here gets nothing."""

FILES = {
    "": ("index.html", "text/html"),
    "app.css": ("app.css", "text/css"),
    "app.js": ("app.js", "text/javascript"),
    "charts.js": ("charts.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "uPlot.js": ("uPlot.iife.min.js", "text/javascript"),
    "uPlot.css": ("uPlot.min.css", "text/css"),
}
HEADERS = {
    "Server": "pydist",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REFUSAL = """\
<!doctype html><html lang="en"><meta charset="utf-8"><title>403: pydist</title>
<h1>403: this is not the address of a dashboard</h1>
<p>The address of a dashboard ends in a token that is different each time. The program that runs the dashboard
prints it, and <code>pydist top --list</code> lists those that run.</p></html>
"""


_Job: TypeAlias = tuple[Callable[[], None], "asyncio.Future[None] | None"]
"""What the thread that takes samples does, and who waits for it."""


class _Watched(Protocol):
    """What a handler needs of the server."""

    token: str
    pages: set[_Events]

    async def fresh(self) -> None:
        """Waits for a sample that is no older than the interval."""

    def watch(self) -> None:
        """Somebody watches."""

    def is_ending(self) -> bool:
        """Whether the server, or the whole program, ends."""

    def state(self, after: int = 0) -> dict[str, Any]:
        """What there is to show."""


class _Handler(web.RequestHandler):
    """Lets nobody in but those who know the token and have come by a name of this machine."""

    server: _Watched

    def initialize(self, server: _Watched) -> None:
        """Takes the server, which tornado passes on."""
        self.server = server

    def set_default_headers(self) -> None:
        """Sets the headers of every answer, errors included."""
        for name, value in HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuses before anything is done."""
        given = self.path_kwargs.get("token") or ""
        known = hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode())
        host = self.request.headers.get("Host", "")
        origin = self.request.headers.get("Origin")
        if not known or not _is_here(host) or (origin is not None and origin != f"http://{host}"):
            raise web.HTTPError(403)

    def log_exception(self, *error: Any) -> None:
        """Logs what is a fault of ours, in the log of pydist; requests that were refused are none."""
        if not isinstance(error[1], web.HTTPError) and not self.server.is_ending():
            _log.logger().warning("the dashboard has failed", exc_info=error[1])

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Says what is wrong without a trace of what is inside."""
        if status_code == 403:
            self.set_header("Content-Type", "text/html; charset=utf-8")
            self.finish(REFUSAL)
        else:
            self.set_header("Content-Type", "text/plain; charset=utf-8")
            self.finish(f"{status_code}: {self._reason}\n")


class _Refused(_Handler):
    """Whatever has no token at all."""


class _File(_Handler):
    """The page and what it is made of."""

    def get(self, token: str, name: str) -> None:
        """Gives a file."""
        if name not in FILES:
            raise web.HTTPError(404)
        file, kind = FILES[name]
        self.set_header("Content-Type", f"{kind}; charset=utf-8")
        self.finish((resources.files(__package__) / "static" / file).read_bytes())


class _State(_Handler):
    """All that there is to show, as JSON: for `pydist top`, and for programs."""

    async def get(self, token: str) -> None:
        """Gives what is shown now."""
        self.server.watch()
        await self.server.fresh()
        self.set_header("Content-Type", "application/json; charset=utf-8")
        await self.finish(json.dumps(self.server.state()))


class _Events(_Handler):
    """What there is to show, again and again, for as long as a page is open."""

    after = 0

    async def get(self, token: str) -> None:
        """Sends states until the page is closed."""
        if len(self.server.pages) >= PAGES_MAX:
            raise web.HTTPError(503, reason="Too many open pages")
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.closed = asyncio.Event()
        self.server.pages.add(self)
        try:
            while not self.closed.is_set():
                self.server.watch()
                began = time.monotonic()
                await self.server.fresh()
                state = self.server.state(self.after)
                self.after = state["number"]
                self.write(f"data: {json.dumps(state)}\n\n")
                await self.flush()
                left = sampler.INTERVAL - (time.monotonic() - began)
                try:
                    await asyncio.wait_for(self.closed.wait(), max(left, 0.05))
                except TimeoutError:
                    continue
        except iostream.StreamClosedError:
            return
        finally:
            self.server.pages.discard(self)

    def on_connection_close(self) -> None:
        """The page has been closed."""
        self.closed.set()


def _is_here(host: str) -> bool:
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name.lower() in NAMES


class Server:
    """Serves one page on loopback, from a thread of its own.

    Parameters:
        port: the port; 0 for any that is free.

    Raises:
        OSError: the port is taken.
    """

    def __init__(self, port: int) -> None:
        self.token = secrets.token_urlsafe(24)
        self.pages: set[_Events] = set()
        self._socket = socket.create_server((ADDRESS, port))
        self._socket.setblocking(False)
        self._sampler = sampler.acquire()
        self.port = int(self._socket.getsockname()[1])
        # A thread of our own: a pool of the standard library ends before this does at the end of the program.
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._loop = asyncio.new_event_loop()
        self._watched = -float("inf")
        self._resting = True
        self._ready = threading.Event()
        self._ends = asyncio.Event()
        self._threads = [
            threading.Thread(target=self._run, name="pydist-dashboard", daemon=True),
            threading.Thread(target=self._take_samples, name="pydist-dashboard-samples", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        if not self._ready.wait(START_SECONDS):
            self.close()
            raise RuntimeError(f"the server of the dashboard has not started within {START_SECONDS:g} s")

    @property
    def url(self) -> str:
        """The address of the page, with its token."""
        return f"http://{ADDRESS}:{self.port}/{self.token}/"

    def watch(self) -> None:
        """Somebody watches."""
        self._watched, self._resting = time.monotonic(), False
        self._sampler.watch(self)

    def is_ending(self) -> bool:
        """Whether the server, or the whole program, ends."""
        return self._ends.is_set() or _session.is_leaving()

    async def fresh(self) -> None:
        """Waits for a sample that is no older than the interval."""
        taken: asyncio.Future[None] = self._loop.create_future()
        self._jobs.put((lambda: self._sampler.sample(sampler.INTERVAL * 0.8), taken))
        await taken

    def state(self, after: int = 0) -> dict[str, Any]:
        """What there is to show."""
        return self._sampler.state(after)

    def close(self) -> None:
        """Ends the server and its threads; returns once they are gone."""
        serving, sampling = self._threads
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._ends.set)
        serving.join(STOP_SECONDS)
        # After the pages, which may wait for a sample.
        self._jobs.put(None)
        sampling.join(STOP_SECONDS)
        self._sampler.unwatch(self)
        sampler.release()

    def _take_samples(self) -> None:
        while (job := self._jobs.get()) is not None:
            do, done = job
            error = None
            try:
                do()
            except Exception as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(_settle, done, error)
            except RuntimeError:
                # The loop has ended.
                return

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        own = {"server": self}
        application = web.Application(
            [
                (r"/(?P<token>[^/]+)/events", _Events, own),
                (r"/(?P<token>[^/]+)/state", _State, own),
                (r"/(?P<token>[^/]+)/(?P<name>[^/]*)", _File, own),
                (r".*", _Refused, own),
            ],
            log_function=lambda handler: None,
        )
        server = httpserver.HTTPServer(application, max_header_size=16384, max_body_size=0)
        server.add_socket(self._socket)
        self._ready.set()
        while not self._ends.is_set():
            try:
                await asyncio.wait_for(self._ends.wait(), 1.0)
            except TimeoutError:
                self._rest_if_unwatched()
        server.stop()
        for page in list(self.pages):
            page.closed.set()
        until = time.monotonic() + STOP_SECONDS / 2
        while self.pages and time.monotonic() < until:
            await asyncio.sleep(0.01)
        await server.close_all_connections()

    def _rest_if_unwatched(self) -> None:
        if not self._resting and time.monotonic() - self._watched > REST_AFTER:
            self._resting = True
            self._jobs.put((lambda: self._sampler.unwatch(self), None))


def _settle(done: asyncio.Future[None] | None, error: Exception | None) -> None:
    """Tells who waits for a job, if anybody still does."""
    if done is None or done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
