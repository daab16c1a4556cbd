"""The spans of batches and requests, by the real SDK into memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from tests.brokers.memory import Clock, MemoryBroker
from tests.delivery.doubles import DEAD_LETTERS, OUTPUT, partition
from tests.delivery.worker import Worker
from worker.errors import SettingsError
from worker.messages import Headers
from worker.settings import TraceExport
from worker.settings import traces as settings_of_traces
from worker.telemetry.spans import provider
from worker.telemetry.traces import Traces

REQUEST = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
CONTEXT: Headers = (("traceparent", f"00-{REQUEST}-{SPAN}-01".encode()), ("tracestate", b"vendor=1"))
UNSAMPLED: Headers = (("traceparent", f"00-{REQUEST}-{SPAN}-00".encode()),)
NONSENSE: Headers = (("traceparent", b"\xff\xfe"), ("tracestate", b"vendor=1"))


class Traced:
    """A worker over a broker in memory whose spans are kept."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(Clock())
        self.exporter = InMemorySpanExporter()
        source = provider(self.exporter, {"service.name": "xnli-worker"}, 256)
        source.add_span_processor(SimpleSpanProcessor(self.exporter))
        clock = self.broker.clock
        self.traces = Traces(source, "group", OUTPUT, clock, lambda: 1_000_000.0 + clock())
        self.worker = Worker(self.broker, traces=self.traces)
        self.broker.assign(partition())

    def answer(self, *requests: tuple[bytes, Headers]) -> None:
        for value, headers in requests:
            offset = len(self.broker.inputs.get(partition(), []))
            self.broker.own_headers[partition(), offset] = [(name, text or b"") for name, text in headers]
            self.broker.send(partition(), value)
        self.worker.settle()

    def spans(self, begin: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith(begin)]

    def headers(self, topic: str, at: int = 0) -> Headers:
        return [output for output in self.broker.visible if output.topic == topic][at].headers

    def context(self, topic: str, at: int = 0) -> str:
        return (dict(self.headers(topic, at)).get("traceparent") or b"").decode()


@pytest.fixture
def traced() -> Iterator[Traced]:
    made = Traced()
    yield made
    made.traces.close()


def test_a_batch_is_a_span_linked_to_its_requests_with_a_child_for_each_step(traced: Traced) -> None:
    traced.answer((b"ok", CONTEXT), (b"ok", ()), (b"ok", CONTEXT), (b"ok", NONSENSE))
    (batch,) = traced.spans("process")
    assert batch.name == "process requests"
    assert [f"{link.context.trace_id:032x}" for link in batch.links] == [REQUEST, REQUEST]
    assert [link.attributes["messaging.kafka.offset"] for link in batch.links if link.attributes] == [0, 2]
    assert batch.parent is None
    attributes = batch.attributes or {}
    assert attributes["messaging.system"] == "kafka"
    assert attributes["messaging.operation.type"] == "process"
    assert attributes["messaging.batch.message_count"] == 4
    assert attributes["messaging.consumer.group.name"] == "group"
    children = {
        span.name: span
        for span in traced.exporter.get_finished_spans()
        if span.parent is not None and span.parent.span_id == batch.context.span_id
    }
    assert sorted(children) == ["forward", "publish results", "tokenise"]
    for child in children.values():
        assert (batch.start_time or 0) <= (child.start_time or 0) <= (child.end_time or 0) <= (batch.end_time or 0)
    assert int(1e15) <= (batch.start_time or 0) < int(2e15)  # of the wall clock


def test_a_result_carries_on_the_context_of_its_request(traced: Traced) -> None:
    traced.answer((b"ok", (*CONTEXT, ("tenant", b"a"))), (b"ok", ()))
    (batch,) = traced.spans("process")
    (created,) = traced.spans("create results")
    assert f"{created.context.trace_id:032x}" == REQUEST
    assert created.parent is not None
    assert f"{created.parent.span_id:016x}" == SPAN
    assert [link.context.span_id for link in created.links] == [batch.context.span_id]
    assert traced.context(OUTPUT) == f"00-{REQUEST}-{created.context.span_id:016x}-01"
    headers = traced.headers(OUTPUT)
    assert dict(headers)["tracestate"] == b"vendor=1"
    assert dict(headers)["tenant"] == b"a"
    assert len([name for name, _ in headers if name == "traceparent"]) == 1
    # One that brought none belongs to the trace of its batch.
    assert traced.context(OUTPUT, 1).startswith(f"00-{batch.context.trace_id:032x}-{batch.context.span_id:016x}-")


def test_a_request_that_is_not_sampled_stays_so(traced: Traced) -> None:
    traced.answer((b"ok", UNSAMPLED))
    assert traced.spans("create") == []
    assert traced.context(OUTPUT).startswith(f"00-{REQUEST}-")
    assert traced.context(OUTPUT).endswith("-00")


@pytest.mark.parametrize(("value", "reason"), [(b"garbage", "malformed"), (b"poison", "inference")])
def test_a_dead_letter_carries_it_on_and_its_span_says_why(traced: Traced, value: bytes, reason: str) -> None:
    with capture_logs() as lines:
        traced.answer((value, CONTEXT))
        traced.broker.clock.advance(10)
        traced.worker.settle()
        traced.broker.clock.advance(10)
        traced.worker.settle()
    (created,) = traced.spans("create dead-letters")
    assert traced.context(DEAD_LETTERS) == f"00-{REQUEST}-{created.context.span_id:016x}-01"
    assert (created.attributes or {})["error.type"] == reason
    assert not created.status.is_ok
    assert [line["trace_id"] for line in lines if line["event"] == "dead_letter"] == [REQUEST]


def test_the_line_of_a_batch_carries_its_ids(traced: Traced) -> None:
    with capture_logs() as lines:
        traced.answer((b"ok", ()))
    (batch,) = traced.spans("process")
    (line,) = [line for line in lines if line["event"] == "batch"]
    assert line["trace_id"] == f"{batch.context.trace_id:032x}"
    assert line["span_id"] == f"{batch.context.span_id:016x}"


def test_every_request_of_a_large_batch_is_linked() -> None:
    """OpenTelemetry's own limit is 128 links."""
    traced = Traced()
    limits = traced.traces._spans.tracer._span_limits  # type: ignore[attr-defined]
    assert limits.max_links == 256


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "x"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}, TraceExport("grpc", limits_links=False)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317"}, TraceExport("grpc", limits_links=False)),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, TraceExport("grpc", limits_links=False)),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            TraceExport("http/protobuf", limits_links=False),
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SPAN_LINK_COUNT_LIMIT": "5"},
            TraceExport("grpc", limits_links=True),
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_traces_are_on_where_opentelemetry_s_variables_say_so(
    environ: dict[str, str], expected: TraceExport | None
) -> None:
    assert settings_of_traces(environ) == expected


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER = 'zipkin'"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL = 'http/json'",
        ),
    ],
)
def test_what_the_worker_cannot_do_is_named(environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        settings_of_traces(environ)


def test_without_them_nothing_of_opentelemetry_is_imported() -> None:
    program = (
        "import sys, worker.app, worker.pipeline.wiring, worker.settings;"
        "from worker.tracing import open_traces; assert open_traces(None, '') == (None, None);"
        "sys.exit(any(name.split('.')[0] in {'opentelemetry', 'grpc'} for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
