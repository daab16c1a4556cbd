"""What stands still is named: a partition in readiness, a metric and the log; a topic that is not there by its name."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.endpoints import metric, page
from tests.faults.verifier import Topics, count, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka


def _environment(kafka: Kafka, topics: Topics) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
    }


@pytest.mark.timeout(90)
def test_a_partition_that_stands_still_is_named(kafka: Kafka, topic: TopicFactory, tmp_path: Path) -> None:
    """The operator forbids resets, and one of two partitions has an offset that is not there."""
    topics = Topics(topic("requests", partitions=2), topic("results"), topic("dead"))
    client = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": topics.requests})
    positions = [TopicPartition(topics.requests, 0, 0), TopicPartition(topics.requests, 1, 1000)]
    client.commit(offsets=positions, asynchronous=False)
    client.close()
    send(kafka.bootstrap_servers, topics.requests, ((f"k{i}", request(f"k{i}", "plain")) for i in range(40)))
    settings = _environment(kafka, topics) | {
        "XNLI_KAFKA__CONSUMER_PROPERTIES": json.dumps({"auto.offset.reset": "error"})
    }
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        wait_until(lambda: count(kafka.bootstrap_servers, topics.results) > 0, 30, "the other's answers", worker)
        wait_until(lambda: page(worker, "/readyz")[0] == 503, 10, "a failing /readyz", worker)
        assert f"{topics.requests}-1" in page(worker, "/readyz")[1]
        assert page(worker, "/healthz")[0] == 200  # a restart would help nothing
        assert metric(worker, "stalled_partitions") == [1.0]
        said = [event for event in worker.events() if f"{topics.requests}-1" in str(event.get("partition"))]
        assert said
        assert worker.stop() == 0


@pytest.mark.timeout(90)
@pytest.mark.xfail(strict=True, reason="/readyz says 200 and the log says: Purged in queue")
@pytest.mark.parametrize("missing", ["results", "dead letters"])
@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_a_missing_topic_is_named(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, missing: str, guarantee: str
) -> None:
    requests = topic("requests")
    absent = f"absent-{requests}"
    there = topic("there")
    topics = Topics(requests, *((absent, there) if missing == "results" else (there, absent)))
    send(kafka.bootstrap_servers, requests, [("k", request("k", "plain")), ("bad", b"\x17 no Avro")])
    settings = _environment(kafka, topics) | {"XNLI_DELIVERY__GUARANTEE": guarantee}
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        wait_until(lambda: bool(worker.events("started")), 30, "the start", worker)
        wait_until(lambda: page(worker, "/readyz")[0] == 503 and absent in page(worker, "/readyz")[1], 30, absent)
        assert any(absent in str(e) for e in worker.events() if e.get("level") in {"warning", "error"})
        kafka.create_topic(absent)
        wait_until(lambda: page(worker, "/readyz")[0] == 200, 45, "readiness", worker)
        worker.stop()


@pytest.mark.timeout(120)
@pytest.mark.xfail(strict=True, reason="each refusal costs aborted transactions: one record goes alone after the other")
def test_results_that_a_topic_refuses_cost_little(kafka: Kafka, topic: TopicFactory, tmp_path: Path) -> None:
    import random  # noqa: PLC0415 (here alone)

    topics = Topics(topic("requests"), topic("results", config={"max.message.bytes": "20000"}), topic("dead"))
    refused = set(range(5, 110, 5))
    records = [
        (f"k{i}", request(f"k{i}", "plain", [random.Random(i).randbytes(20_000).hex()] if i in refused else ["a"]))
        for i in range(120)
    ]
    send(kafka.bootstrap_servers, topics.requests, records)
    settings = _environment(kafka, topics) | {"XNLI_LIMITS__MAX_LABEL_CHARS": "50000"}
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        worker.wait_for("rebalance")
        began_s = time.monotonic()
        wait_until(lambda: len(read_all(kafka.bootstrap_servers, topics.results)) == 99, 60, "results", worker, 0.5)
        took_s = time.monotonic() - began_s
        assert len(read_all(kafka.bootstrap_servers, topics.dead_letters)) == len(refused)
        assert sum(metric(worker, "transactions_total", result="aborted")) <= 12
        assert took_s < 8
        assert worker.stop() == 0
        assert "_STATE" not in worker.log_path.read_text()
