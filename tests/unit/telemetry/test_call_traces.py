"""The spans of requests over HTTP, by the real SDK into memory, from the whole HTTP side on a port of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from tests.unit.http.served import Served, idle, served, until
from tests.unit.http.test_inference import WAITS, Asking, body
from worker.telemetry.call_traces import CallTraces
from worker.telemetry.spans import provider

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
CONTEXT = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}
TEXT = {"text": "a", "labels": ["b", "c"]}


class Traced:
    """A worker's HTTP side whose spans are kept."""

    def __init__(self, found: Served) -> None:
        self.served = found
        self.exporter = InMemorySpanExporter()
        source = provider(self.exporter, {"service.name": "xnli-worker"}, 256)
        source.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.traces = CallTraces(source, time.monotonic, time.time)
        found.endpoint.trace(self.traces)

    def spans(self, name: str) -> list[ReadableSpan]:
        """Spans of this name; the one of a request ends a moment after its answer is read."""
        until(lambda: any(span.name == name for span in self.exporter.get_finished_spans()), name)
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        (found,) = self.spans(name)
        return found


@pytest.fixture
def traced() -> Iterator[Traced]:
    with served() as found:
        made = Traced(found)
        yield made
        made.traces.close()


def test_a_request_is_a_child_of_its_caller_s_span_with_a_child_for_each_step(traced: Traced) -> None:
    assert traced.served.ask("/v1/classify?q=secret", [TEXT, TEXT], headers=CONTEXT).status == 200
    span = traced.only("POST /v1/classify")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == CALLER
    assert span.context.trace_state["vendor"] == "1"
    assert span.kind is SpanKind.SERVER
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "url.path": "/v1/classify",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": traced.served.endpoint.port,
        "xnli.requests": 2,
        "xnli.tokens": 32,
    }
    children = [traced.only("tokenise"), traced.only("forward")]
    for child in children:
        assert child.parent is not None
        assert child.parent.span_id == span.context.span_id
        assert (span.start_time or 0) <= (child.start_time or 0) <= (child.end_time or 0) <= (span.end_time or 0)
    assert abs(time.time_ns() - (span.start_time or 0)) < 10**11  # of the wall clock


@pytest.mark.parametrize(
    ("path", "route", "sent"),
    [
        ("/v1/entail", "/v1/entail", {"text": "a", "hypotheses": ["b"]}),
        ("/v1/embed", "/v1/embed", {"text": "a"}),
        ("/", "/", {"inputs": "a", "parameters": {"candidate_labels": ["b"]}}),
        ("/models/scripted", "/models/{name:path}", {"inputs": "a"}),
        ("/embed", "/embed", {"inputs": "a"}),
        ("/v1/embeddings", "/v1/embeddings", {"input": "a", "model": "any"}),
    ],
)
def test_every_path_that_answers_requests_continues_the_trace(
    traced: Traced, path: str, route: str, sent: dict[str, object]
) -> None:
    assert traced.served.ask(path, sent, headers=CONTEXT).status == 200
    span = traced.only(f"POST {route}")
    assert f"{span.context.trace_id:032x}" == TRACE
    assert (span.attributes or {})["http.route"] == route


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, {"traceparent": "00-" + "0" * 32 + "-1-01"}])
def test_without_a_context_it_is_the_root_of_a_trace(traced: Traced, headers: dict[str, str]) -> None:
    assert traced.served.ask("/v1/classify", TEXT, headers=headers).status == 200
    assert traced.only("POST /v1/classify").parent is None


def test_what_is_not_sampled_stays_so(traced: Traced) -> None:
    unsampled = {"traceparent": f"00-{TRACE}-{CALLER}-00"}
    assert traced.served.ask("/v1/classify", TEXT, headers=unsampled).status == 200
    assert traced.served.ask("/v1/embed", {"text": "a"}, headers=CONTEXT).status == 200
    traced.spans("POST /v1/embed")
    assert "POST /v1/classify" not in {span.name for span in traced.exporter.get_finished_spans()}


def test_a_caller_s_mistake_is_no_error_of_ours(traced: Traced) -> None:
    assert traced.served.ask("/v1/classify", {"text": "a"}, headers=CONTEXT).status == 422
    span = traced.only("POST /v1/classify")
    assert (span.attributes or {})["http.response.status_code"] == 422
    assert "error.type" not in (span.attributes or {})
    assert span.status.is_unset


def test_a_failure_of_ours_is_one_and_its_line_carries_the_caller_s_trace(traced: Traced) -> None:
    with capture_logs(processors=[merge_contextvars]) as lines:
        answer = traced.served.ask("/v1/embed", {"text": "poison"}, headers=CONTEXT)
    span = traced.only("POST /v1/embed")
    assert (answer.status, (span.attributes or {})["http.response.status_code"]) == (500, 500)
    assert (span.attributes or {})["error.type"] == "failed"
    assert not span.status.is_ok
    (line,) = [line for line in lines if line["event"] == "call_failed"]
    assert (line["trace_id"], line["span_id"]) == (TRACE, f"{span.context.span_id:016x}")


def test_before_the_model_is_loaded_it_is_said_that_nothing_answers() -> None:
    with idle() as found:
        traced = Traced(found)
        assert found.ask("/v1/embed", {"text": "a"}, headers=CONTEXT).status == 503
        assert (traced.only("POST /v1/embed").attributes or {})["error.type"] == "unavailable"


def test_a_client_that_goes_away_is_told_of_without_a_status(traced: Traced) -> None:
    blocking = Asking(lambda: traced.served.ask("/v1/embed", WAITS))
    traced.served.engine.begun.wait(20)
    gone = traced.served.connect(body("b"))
    until(lambda: len(traced.served.calls) == 1, "it waits")
    gone.close()
    span = traced.only("POST /v1/embed")
    assert (span.attributes or {})["error.type"] == "ClientDisconnect"
    assert "http.response.status_code" not in (span.attributes or {})
    traced.served.engine.go.set()
    assert blocking.answer.status == 200


def test_probes_and_metrics_make_no_spans(traced: Traced) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        traced.served.ask(path, headers=CONTEXT)
    assert traced.served.ask("/v1/embed", {"text": "a"}).status == 200
    assert len(traced.spans("POST /v1/embed")) == 1
    assert {span.name for span in traced.exporter.get_finished_spans()} == {"POST /v1/embed", "tokenise", "forward"}


def test_without_traces_an_answer_imports_nothing_of_opentelemetry() -> None:
    program = (
        "import sys, worker.serve;"
        "from tests.unit.http.served import served;"
        "from worker import settings, tracing;"
        "assert tracing.open_call_traces(None, '') is None;"
        "held = served(); found = held.__enter__();"
        f"answer = found.ask('/v1/embed', {{'text': 'a'}}, headers={CONTEXT!r});"
        "assert answer.status == 200, answer;"
        "assert found.endpoint._site.traces is None;"
        "names = [name for name in sys.modules if name.split('.')[0] in {'opentelemetry', 'grpc'}];"
        "import os; os._exit(bool(names))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
