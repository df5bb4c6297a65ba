"""Who the dashboard's server lets in, what it tells, and what is left of it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import support
from pydist import _recording
from pydist._dashboard import Dashboard, discovery, sampler
from pydist._dashboard import server as server_module


@pytest.fixture
def board(d: ModuleType) -> Iterator[Dashboard]:
    """Give a dashboard that ends with the test."""
    with d.dashboard() as board:
        yield board


def get(
    board: Dashboard, path: str, method: str = "GET", **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    """Ask for a path, which may begin with the token."""
    token = board.url.rstrip("/").rpartition("/")[2]
    connection = http.client.HTTPConnection("127.0.0.1", board.port, timeout=20)
    try:
        connection.putrequest(method, path.replace("TOKEN", token), skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def state_of(board: Dashboard) -> dict[str, Any]:
    answer, body = get(board, "/TOKEN/state")
    assert answer.status == 200
    told: dict[str, Any] = json.loads(body)
    return told


def records(pid: int, d: ModuleType) -> bool:
    return bool(d.remotecall_eval("__import__('pydist._recording', fromlist=['on']).on", pid))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/index.html",
        "/state",
        "/events",
        "//",
        "/TOKENx/",
        "/x/state",
        "/x/events",
        "/x/app.js",
        "/%ff%fe/",
        "/%F0%9F%98%80/",
        "/TOKEN",
    ],
)
def test_nothing_is_told_without_the_token(board: Dashboard, path: str) -> None:
    answer, body = get(board, path)
    assert answer.status in (403, 400)
    token = board.url.rstrip("/").rpartition("/")[2]
    assert token.encode() not in body
    assert b"processes" not in body


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "10.0.0.1"]
)
def test_a_name_that_is_not_of_this_machine_is_refused(board: Dashboard, host: str) -> None:
    """A page of another site, whose name was made to point here, gets nothing even with the token."""
    for path in ("/TOKEN/", "/TOKEN/state", "/TOKEN/events"):
        answer, _ = get(board, path, Host=host)
        assert answer.status in (403, 400)


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "127.0.0.1", "[::1]:8000"])
def test_another_port_of_this_machine_is_let_in(board: Dashboard, host: str) -> None:
    """`ssh -L 8000:127.0.0.1:PORT` shows the page by another port."""
    assert get(board, "/TOKEN/", Host=host)[0].status == 200


def test_requests_of_other_origins_are_refused(board: Dashboard) -> None:
    assert get(board, "/TOKEN/state", Origin="http://evil.example")[0].status == 403
    own = f"http://127.0.0.1:{board.port}"
    assert get(board, "/TOKEN/state", Origin=own)[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_there_is_nothing_to_change(board: Dashboard, method: str) -> None:
    answer, body = get(board, "/TOKEN/state", method)
    assert answer.status == 405
    assert b"processes" not in body


@pytest.mark.parametrize("path", ["/TOKEN/", "/TOKEN/app.js", "/TOKEN/state", "/x/", "/TOKEN/nothing"])
def test_every_answer_has_the_headers_that_keep_the_page_to_itself(board: Dashboard, path: str) -> None:
    answer, _ = get(board, path)
    policy = answer.getheader("Content-Security-Policy") or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.getheader("Referrer-Policy") == "no-referrer"
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("X-Frame-Options") == "DENY"
    assert answer.getheader("Cache-Control") == "no-store"
    assert answer.getheader("Access-Control-Allow-Origin") is None
    assert "tornado" not in (answer.getheader("Server") or "").lower()


def test_files_outside_of_the_page_are_not_given(board: Dashboard) -> None:
    for name in (
        "server.py",
        "..%2fserver.py",
        "%2e%2e%2f__init__.py",
        "uPlot.LICENSE",
        "../../../etc/passwd",
    ):
        assert get(board, f"/TOKEN/{name}")[0].status in (403, 404)


def test_it_listens_on_loopback_alone(board: Dashboard) -> None:
    listeners = [address for address in support.tcp_listeners(os.getpid()) if address[1] == board.port]
    assert listeners == [("127.0.0.1", board.port)]


def test_each_dashboard_has_a_token_of_its_own(d: ModuleType) -> None:
    urls = set()
    for _ in range(3):
        with d.dashboard() as board:
            urls.add(board.url.rstrip("/").rpartition("/")[2])
    assert len(urls) == 3
    assert all(len(token) >= 32 for token in urls)


def test_there_is_one_dashboard(d: ModuleType, board: Dashboard) -> None:
    assert d.dashboard() is board
    assert d.dashboard(board.port) is board
    with pytest.raises(RuntimeError, match="runs already, at http"):
        d.dashboard(board.port + 1)


def test_a_port_that_is_taken_is_named(d: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        d.dashboard(taken.getsockname()[1])
    with d.dashboard() as board:
        assert state_of(board)["processes"][0]["id"] == 1


def test_its_end_closes_the_port_and_the_pages(d: ModuleType) -> None:
    board = d.dashboard()
    port = board.port
    token = board.url.rstrip("/").rpartition("/")[2]
    page = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    page.request("GET", f"/{token}/events")
    answer = page.getresponse()
    assert answer.readline().startswith(b"data: {")
    board.close()
    answer.read()
    page.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("pydist-dashboard")]
    board.close()


def test_a_program_with_an_open_page_ends_as_others_do() -> None:
    """Nothing is printed, nothing is waited for, and the page is closed."""
    done = support.run_script(
        """
        import http.client, urllib.parse
        import pydist as d

        board = d.dashboard()
        d.addprocs(1)
        parts = urllib.parse.urlsplit(board.url)
        page = http.client.HTTPConnection(parts.netloc, timeout=20)
        page.request("GET", parts.path + "events")
        answer = page.getresponse()
        assert answer.readline().startswith(b"data: {")
        print("done")
        """,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_only_process_1_has_one(d: ModuleType, workers: list[int]) -> None:
    with pytest.raises(d.RemoteException, match="Only process 1 can show a dashboard"):
        d.remotecall_fetch(d.dashboard, workers[0])
    with pytest.raises(d.RemoteException, match="Only process 1"):
        d.remotecall_fetch(d.top, workers[0])


def test_workers_record_only_while_somebody_watches(
    d: ModuleType, workers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REST_AFTER", 0.2)
    with d.dashboard() as board:
        assert not records(workers[0], d)
        state_of(board)
        assert records(workers[0], d)
        assert _recording.on
        support.wait_until(lambda: not records(workers[0], d), what="the end of recording")
        support.wait_until(lambda: not _recording.on)
        # At rest nothing is asked: but for what this test sends itself, no message goes out.
        before = d.stats()["messages_sent"]
        time.sleep(1.5)
        assert d.stats()["messages_sent"] - before <= 1


def test_states_are_told_in_full_and_then_what_is_new(
    d: ModuleType, workers: list[int], board: Dashboard
) -> None:
    state_of(board)
    d.remotecall_fetch(print, workers[0], "first line")
    token = board.url.rstrip("/").rpartition("/")[2]
    page = http.client.HTTPConnection("127.0.0.1", board.port, timeout=20)
    page.request("GET", f"/{token}/events")
    answer = page.getresponse()
    assert answer.getheader("Content-Type") == "text/event-stream; charset=utf-8"

    def event() -> dict[str, Any]:
        told: dict[str, Any] = json.loads(answer.readline().removeprefix(b"data: "))
        assert answer.readline() == b"\n"
        return told

    first = event()
    assert "first line" in [line["text"] for line in first["lines"]]
    d.remotecall_fetch(print, workers[0], "second line")
    told: list[str] = []
    while "second line" not in told:
        told += [line["text"] for line in event()["lines"]]
    assert "first line" not in told
    answer.close()
    page.close()


def test_the_number_of_pages_is_bounded(board: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "PAGES_MAX", 0)
    assert get(board, "/TOKEN/events")[0].status == 503


def test_its_file_is_there_while_it_runs_and_for_its_user_alone(d: ModuleType, board: Dashboard) -> None:
    (told,) = [told for told in discovery.running() if told["ospid"] == os.getpid()]
    assert told["url"] == board.url
    folder = discovery.folder()
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert os.stat(os.path.join(folder, f"{os.getpid()}.json")).st_mode & 0o777 == 0o600
    board.close()
    assert os.getpid() not in [told["ospid"] for told in discovery.running()]


def test_a_folder_that_others_may_enter_is_not_used(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, d: ModuleType
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "pydist-dashboards").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="no folder of this user alone"):
        discovery.folder()
    # It is still served: by its address alone.
    with d.dashboard() as board:
        assert state_of(board)["cluster"]["ospid"] == os.getpid()


def test_files_that_killed_processes_left_are_removed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    folder = discovery.folder()
    (stale, broken) = (os.path.join(folder, name) for name in ("999999999.json", "7.json"))
    for path, text in ((stale, {"ospid": 999999999, "url": "http://x", "since": 0}), (broken, [])):
        with open(path, "w") as file:
            json.dump(text, file)
    assert discovery.running() == []
    assert not os.path.exists(stale)


def test_the_sampler_ends_with_the_last_who_uses_it(d: ModuleType) -> None:
    from pydist import _output

    with d.dashboard():
        assert _output.tap is not None
    assert _output.tap is None
    assert sampler._sampler is None
