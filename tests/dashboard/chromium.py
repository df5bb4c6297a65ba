"""A headless Chromium, driven over its DevTools protocol through the websocket client of tornado."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tornado.websocket import WebSocketClientConnection, websocket_connect

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]
START_SECONDS = 60
STEP_SECONDS = 30


def path() -> str | None:
    """Return the path of a Chromium, where one is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = (shutil.which(name) for name in names)
    return next((each for each in found if each is not None), None)


class Chromium:
    """One browser with one page; what the page asks for and complains of is kept."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="pydist-chromium-", ignore_cleanup_errors=True)
        executable = path()
        assert executable is not None
        self._loop = asyncio.new_event_loop()
        self._numbers = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        with open(Path(self._folder.name, "stderr"), "wb") as stderr:
            self._process = subprocess.Popen(
                [executable, *FLAGS, f"--user-data-dir={self._folder.name}/profile", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                env={**os.environ, "HOME": self._folder.name},
            )
        try:
            self._socket = self._loop.run_until_complete(self._connect())
            targets = self.call("Target.getTargets")["targetInfos"]
            page = next(target["targetId"] for target in targets if target["type"] == "page")
            attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser with all of its processes."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(10)
        if hasattr(self, "_socket"):
            self._loop.run_until_complete(self._hang_up())
        self._loop.close()
        self._folder.cleanup()

    async def _hang_up(self) -> None:
        self._socket.close()
        while await self._socket.read_message() is not None:
            pass

    async def _connect(self) -> WebSocketClientConnection:
        stderr = Path(self._folder.name, "stderr")
        until = time.monotonic() + START_SECONDS
        while not (
            found := re.search(r"DevTools listening on (ws://\S+)", stderr.read_text("utf-8", "replace"))
        ):
            assert self._process.poll() is None, f"Chromium has ended: {stderr.read_text()}"
            assert time.monotonic() < until, f"Chromium does not start: {stderr.read_text()}"
            await asyncio.sleep(0.02)
        return await websocket_connect(found[1], max_message_size=1 << 26)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Carry out a method of the protocol, and return its result."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, params), STEP_SECONDS))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._numbers += 1
        number = self._numbers
        message = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._socket.write_message(json.dumps(message))
        while True:
            text = await self._socket.read_message()
            assert text is not None, "Chromium has hung up"
            answer = json.loads(text)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        kind = event.get("method")
        if kind == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(params["entry"]))
        elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(params["args"]))

    # --- what tests do with it

    def show(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{expression}: {found['exceptionDetails']}"
        return found["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 20, what: str = "") -> Any:
        """Wait until an expression of JavaScript is true, and return its value."""
        return self.wait_until(lambda: self.evaluate(expression), timeout, what or expression)

    def wait_until(self, condition: Callable[[], Any], timeout: float, what: str) -> Any:
        """Wait until a condition is true; what the browser says meanwhile is heard."""
        until = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < until, f"not within {timeout} s: {what}\n{self.evaluate(TEXT)}"
            time.sleep(0.05)
        return value

    def emulate(self, *, width: int, height: int, scheme: str, scale: float = 1) -> None:
        """Make the page so large, and light or dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str) -> None:
        """Press a key, such as `Tab`."""
        codes = {"Tab": 9, "Enter": 13}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                **(text if kind == "keyDown" else {}),
            )

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Keep a picture of the page, the whole of it or what fits the window."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


TEXT = "document.body ? document.body.innerText : ''"
