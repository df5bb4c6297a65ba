"""The context of OpenTelemetry goes along with calls of every kind, and costs nothing where there is none."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import pydist as d
from pydist import _calls, _otel

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


def seen(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Return the trace, the span and an item of the baggage in which this runs, and its arguments."""
    span = trace.get_current_span().get_span_context()
    return span.trace_id, span.span_id, baggage.get_baggage("tenant"), args, kwargs


async def seen_later(x: int) -> tuple[int, int]:
    await asyncio.sleep(0.01)
    span = trace.get_current_span().get_span_context()
    return span.trace_id, span.span_id


def tell(channel: d.RemoteChannel) -> None:
    channel.put(seen()[:2])


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def span(exporter: InMemorySpanExporter) -> Iterator[tuple[int, int]]:
    """Make a span current, and give its trace and its own number."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("test").start_as_current_span("caller") as current:
        told = current.get_span_context()
        yield told.trace_id, told.span_id
    provider.shutdown()


@pytest.mark.parametrize("where", ["here", "worker"])
def test_calls_of_all_kinds_carry_the_context(workers, span, where):
    pid = 1 if where == "here" else workers[0]
    assert d.remotecall_fetch(seen, pid)[:2] == span
    assert d.remotecall(seen, pid, 1, a=2).fetch() == (*span, None, (1,), {"a": 2})
    assert d.remotecall_wait(seen, pid).fetch()[:2] == span
    assert d.spawnat(pid, lambda: seen()[:2]).fetch() == span
    assert d.remotecall_fetch(seen_later, pid, 1) == span
    assert d.remotecall_fetch(seen, d.WorkerPool([pid]))[:2] == span
    channel = d.RemoteChannel(1)
    d.remote_do(tell, pid, channel)
    assert channel.take(10) == span
    code = "from opentelemetry import trace; span_there = trace.get_current_span().get_span_context()"
    d.everywhere(code, [pid])
    assert d.remotecall_eval("(span_there.trace_id, span_there.span_id)", pid) == span


def test_maps_and_executors_carry_the_context(workers, span):
    found = d.pmap(seen, range(20), pool=d.WorkerPool(workers))
    assert {each[:2] for each in found} == {span}
    assert [each[3] for each in found] == [(n,) for n in range(20)]
    assert {each[:2] for each in d.pmap(seen, range(4), batch_size=1)} == {span}
    assert set(d.pmap(seen_later, range(4))) == {span}
    assert {each[:2] for each in d.pmap(seen, range(4), distributed=False)} == {span}
    with d.Executor(workers=workers) as executor:
        assert executor.submit(seen).result(10)[:2] == span


def test_baggage_goes_along(workers, span):
    token = context.attach(baggage.set_baggage("tenant", "blue"))
    try:
        assert d.remotecall_fetch(seen, workers[0])[2] == "blue"
    finally:
        context.detach(token)


def test_spans_of_workers_are_children_of_that_of_the_caller(workers, span):
    def work() -> tuple[int, int]:
        from opentelemetry.sdk.trace import TracerProvider

        with TracerProvider().get_tracer("worker").start_as_current_span("work") as inner:
            assert inner.parent is not None
            return inner.parent.trace_id, inner.parent.span_id

    assert d.remotecall_fetch(work, workers[0]) == span


def test_the_context_ends_with_the_call(workers, span):
    d.remotecall_fetch(seen, workers[0])
    token = context.attach(context.Context())
    try:
        assert d.remotecall_fetch(seen, workers[0])[:2] == (0, 0)
        d.remotecall(seen_later, workers[0], 1).wait()
        assert d.remotecall_fetch(seen_later, workers[0], 1) == (0, 0)
    finally:
        context.detach(token)


def test_a_context_within_calls_is_passed_on(workers, span):
    one, two = workers
    assert d.remotecall_fetch(lambda: d.remotecall_fetch(seen, two)[:2], one) == span


def test_errors_and_names_are_those_of_the_function(workers, span):
    with pytest.raises(ZeroDivisionError) as info:
        d.remotecall_fetch(divmod, workers[0], 1, 0)
    assert "_otel" not in info.value.remote_traceback
    with d.trace() as trace_of_calls:
        d.remotecall_fetch(divmod, workers[0], 7, 2)
        d.pmap(abs, [1, 2])
    names = {call.name for call in trace_of_calls.calls}
    assert {"divmod", "abs"} <= names


def test_without_a_span_nothing_is_added(workers, monkeypatch):
    assert _otel.carried() == {}
    sent: list[Any] = []
    real = _calls._core.plain_fetch
    monkeypatch.setattr(_calls, "_core", _Spy(_calls._core, sent, real))
    assert d.remotecall_fetch(abs, workers[0], -1) == 1
    assert sent == [(abs, workers[0], (-1,))]


class _Spy:
    """The core, which notes the calls that take the short way."""

    def __init__(self, core: Any, sent: list[Any], real: Any) -> None:
        self._core, self._sent, self._real = core, sent, real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def plain_fetch(self, *call: Any) -> Any:
        self._sent.append(call)
        return self._real(*call)


def test_a_worker_without_opentelemetry_runs_the_call(workers, span):
    def hide() -> None:
        import sys

        for name in [name for name in sys.modules if name.partition(".")[0] == "opentelemetry"]:
            del sys.modules[name]
        sys.modules["opentelemetry"] = None  # type: ignore[assignment]

    (pid,) = d.addprocs(1)
    d.remotecall_fetch(hide, pid)
    assert d.remotecall_fetch(divmod, pid, 7, 2) == (3, 1)
    d.rmprocs(pid)
