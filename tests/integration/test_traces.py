"""Traces over OTLP, as a collector receives them from a real worker on real Kafka."""

from __future__ import annotations

import http.client
import json
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.brokers.collector import Collector, Received
from tests.brokers.kafka import Kafka
from tests.brokers.ports import free_ports
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, group_lag, read_all, request
from tests.faults.workers import WorkerProcess, wait_until

PRODUCERS = 3
REQUESTS = 8


def _trace(producer: int) -> str:
    return f"{producer + 1:032x}"


def _send(kafka: Kafka, topic: str) -> None:
    """Eight requests from three producers, each in a trace of its own, the last without any."""
    clients = [Producer({"bootstrap.servers": kafka.bootstrap_servers}) for _ in range(PRODUCERS)]
    for i in range(REQUESTS):
        at = i % PRODUCERS
        context = f"00-{_trace(at)}-{i + 1:016x}-01".encode()
        labels = ("a", "b") if i != 3 else ()  # which becomes a dead letter
        headers: list[tuple[str, str | bytes | None]] = [("traceparent", context)] if i < REQUESTS - 1 else []
        clients[at].produce(topic, request(f"k{i}", f"text {i}", labels), key=f"k{i}", headers=headers)
        clients[at].flush(30)


def _is_answered(kafka: Kafka, topics: Topics) -> bool:
    return group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0


@pytest.mark.kafka
@pytest.mark.timeout(120)
def test_the_trace_of_a_batch_of_many_producers_arrives(kafka: Kafka, topic: TopicFactory, tmp_path: Path) -> None:
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    _send(kafka, topics.requests)
    with Collector() as collector:
        environment = topics.environment() | {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_KAFKA__GROUP_ID": topics.requests,
            "XNLI_LOG__LEVEL": "debug",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with WorkerProcess(environment, tmp_path / "worker.log") as worker:
            wait_until(lambda: _is_answered(kafka, topics), 60, "results", worker)
            assert worker.stop() == 0  # which sends what waits
            lines = worker.events("batch")
            letters = worker.events("dead_letter")
        spans = {span.span_id: span for span in collector.spans}
    batches = [span for span in spans.values() if span.name == f"process {topics.requests}"]
    answered = [span for span in spans.values() if span.name == f"create {topics.results}"]
    assert sum(int(span.attributes["messaging.batch.message_count"]) for span in batches) == REQUESTS - 1
    assert {trace for span in batches for trace, _ in span.links} == {_trace(at) for at in range(PRODUCERS)}
    assert sum(len(span.links) for span in batches) == REQUESTS - 2  # one is a dead letter, one brought no context
    assert {line["trace_id"] for line in lines} == {span.trace_id for span in batches}
    for batch in batches:
        _is_whole(batch, spans)
    # Results carry their requests' traces on, and the span that they name was received.
    for message in read_all(kafka.bootstrap_servers, topics.results):
        context = dict(message.headers() or [])["traceparent"]
        assert isinstance(context, bytes)
        _, trace, span_id, _ = context.decode().split("-")
        key = int((message.key() or b"")[1:])
        assert span_id in spans
        assert spans[span_id].trace_id == trace
        assert trace == (_trace(key % PRODUCERS) if key < REQUESTS - 1 else batches[-1].trace_id)
    assert {span.parent_id for span in answered} == {f"{i + 1:016x}" for i in range(REQUESTS - 1) if i != 3}
    (letter,) = [span for span in spans.values() if span.name == f"create {topics.dead_letters}"]
    assert (letter.trace_id, letter.parent_id) == (_trace(0), f"{4:016x}")
    assert (letter.status, letter.attributes["error.type"]) == ("ERROR", "invalid")
    assert [line["trace_id"] for line in letters] == [_trace(0)]


def _is_whole(batch: Received, spans: dict[str, Received]) -> None:
    assert (batch.kind, batch.parent_id) == ("CONSUMER", "")
    assert batch.resource["service.name"] == "xnli-worker"
    assert batch.resource["deployment.environment.name"] == "test"
    assert abs(time.time_ns() - batch.began_ns) < 10**11
    children = sorted((span for span in spans.values() if span.parent_id == batch.span_id), key=lambda s: s.began_ns)
    assert [span.name.split()[0] for span in children] == ["tokenise", "forward", "publish"]
    for child in children:
        assert child.trace_id == batch.trace_id
        assert batch.began_ns <= child.began_ns <= child.ended_ns <= batch.ended_ns


def _call(port: int, trace: str, text: str = "a text") -> int:
    """Ask over HTTP, in a trace. Returns the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "traceparent": f"00-{trace}-{1:016x}-01"}
    try:
        connection.request("POST", "/v1/classify", json.dumps({"text": text, "labels": ["a", "b"]}), headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _answers(port: int) -> bool:
    try:
        return _call(port, f"{99:032x}") == 200
    except OSError:
        return False


def _produce(kafka: Kafka, topic: str, key: str, text: str) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    producer.produce(topic, request(key, text, ("a",)), key=key, headers=[("traceparent", f"00-{7:032x}-{2:016x}-01")])
    producer.flush(30)


@pytest.mark.kafka
@pytest.mark.timeout(120)
def test_a_batch_is_linked_to_the_call_that_shared_its_forward(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path
) -> None:
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    (port,) = free_ports(1)
    with Collector() as collector:
        environment = topics.environment() | {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_KAFKA__GROUP_ID": topics.requests,
            "XNLI_HTTP__INFERENCE": "true",
            "XNLI_HTTP__PORT": str(port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        }
        with WorkerProcess(environment, tmp_path / "worker.log") as worker:
            _produce(kafka, topics.requests, "k0", "first")  # while a start counts, a partition shares no forward
            wait_until(lambda: _answers(port) and _is_answered(kafka, topics), 60, "the first answers", worker)
            slow = threading.Thread(target=_call, args=(port, f"{8:032x}", "slow=3"))
            slow.start()
            time.sleep(0.5)  # it is computed; what comes now waits for the device together
            _produce(kafka, topics.requests, "k1", "second")
            assert _call(port, f"{9:032x}") == 200
            slow.join()
            assert _call(port, f"{10:032x}", "poison") == 500
            wait_until(lambda: _is_answered(kafka, topics), 60, "results", worker)
            assert worker.stop() == 0
            (line,) = worker.events("call_failed")
        spans = {span.span_id: span for span in collector.spans}
    served = {span.trace_id: span for span in spans.values() if span.kind == "SERVER"}
    shared, failed = served[f"{9:032x}"], served[f"{10:032x}"]
    assert shared.parent_id == f"{1:016x}"
    assert (shared.name, shared.attributes["http.route"]) == ("POST /v1/classify", "/v1/classify")
    assert shared.attributes["http.response.status_code"] == 200
    assert shared.resource["service.name"] == "xnli-worker"
    steps = sorted(span.name for span in spans.values() if span.parent_id == shared.span_id)
    assert steps == ["forward", "tokenise"]
    batches = [span for span in spans.values() if span.name == f"process {topics.requests}"]
    assert (shared.trace_id, shared.span_id) in {link for span in batches for link in span.links}
    assert (failed.status, failed.attributes["error.type"]) == ("ERROR", "failed")
    assert (line["trace_id"], line["span_id"]) == (failed.trace_id, failed.span_id)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_worker_without_kafka_sends_the_traces_of_its_calls(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with Collector() as collector:
        environment = {
            "XNLI_MODEL__NAME": "demo",
            "XNLI_LOG__FORMAT": "json",
            "XNLI_HTTP__PORT": str(port),
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        }
        with WorkerProcess(environment, tmp_path / "log", ("worker.cli", "serve")) as worker:
            worker.wait_for("started", 120)
            assert _call(port, f"{3:032x}") == 200
            assert worker.stop() == 0  # which sends what waits
        found = {span.name: span for span in collector.spans}
    assert set(found) == {"POST /v1/classify", "tokenise", "forward"}
    assert {span.trace_id for span in found.values()} == {f"{3:032x}"}


@pytest.mark.kafka
@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_a_collector_that_is_away_costs_nothing_but_its_spans(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path
) -> None:
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    _send(kafka, topics.requests)
    environment = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",  # the port of discard, where nobody listens
        "OTEL_EXPORTER_OTLP_HEADERS": "x-api-key=planted-credential",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        wait_until(lambda: _is_answered(kafka, topics), 60, "results", worker)
        wait_until(lambda: "opentelemetry" in worker.log_path.read_text(), 30, "what the exporter says", worker)
        assert worker.stop() == 0
        assert worker.events("drained")
    assert "planted-credential" not in worker.log_path.read_text()
