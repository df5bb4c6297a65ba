"""Numbers of all processes, for Prometheus and for programs."""

import re
import sys
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

import pydist as d
from pydist import _core, _metrics
from support import hold_gil, wait_until

prometheus = pytest.importorskip("prometheus_client.parser")


def samples(server: _metrics.MetricsServer) -> dict[tuple[str, str], float]:
    """Read the page: a number for each name and process."""
    with urlopen(server.address, timeout=20) as page:
        text = page.read().decode()
    families = prometheus.text_string_to_metric_families(text)
    return {(s.name, s.labels["worker"]): s.value for family in families for s in family.samples}


def test_the_numbers_of_all_processes(workers):
    kept = d.remotecall(bytes, workers[0], 10)
    kept.wait()
    numbers = d.metrics()
    assert list(numbers) == [1, *workers]
    for pid, its in numbers.items():
        assert its["up"] == 1
        assert its["calls_running"] == 0
        assert set(its) == {*d.stats(), "up"}
        assert its["messages_sent"] > 0, pid
    wait_until(lambda: d.metrics()[workers[0]]["refs_owned"] == d.stats(workers[0])["refs_owned"])


def test_every_number_is_described():
    assert {*_metrics.TOTALS, *_metrics.STATES} == {*_core.stats(), "up"}


def test_prometheus_reads_the_page(workers):
    with d.serve_metrics() as server:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", server.address)
        before = samples(server)
        for _ in range(50):
            d.remotecall_fetch(abs, workers[0], -1)
        after = samples(server)
    assert {worker for _, worker in after} == {"1", *map(str, workers)}
    name, worker = "pydist_messages_received_total", str(workers[0])
    assert after[name, worker] >= before[name, worker] + 50
    assert after["pydist_up", worker] == 1
    assert after["pydist_calls_running", "1"] == 0
    with pytest.raises(URLError):
        samples(server)
    server.close()
    assert "closed" in repr(server)


def test_a_stuck_worker_is_down_and_holds_up_nobody(workers, tmp_path):
    """A worker that holds its interpreter does not answer: it is told of as down, in time."""
    held = tmp_path / "held"
    future = d.remotecall(hold_gil, workers[0], 1.5, str(held))
    wait_until(held.exists)
    numbers = d.metrics(timeout=0.2)
    assert numbers[workers[0]] == {"up": 0}
    assert numbers[workers[1]]["up"] == 1
    assert future.fetch(30) == "released"
    wait_until(lambda: d.metrics()[workers[0]]["up"] == 1)
    wait_until(lambda: d.stats(workers[0])["calls_running"] == 0)


def test_without_prometheus_client_it_is_said_what_to_do(monkeypatch: Any):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pydist\[prometheus\]"):
        d.serve_metrics()
