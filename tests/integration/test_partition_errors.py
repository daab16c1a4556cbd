"""What stands still is named: a partition in readiness, a metric and the log; a topic that is not there by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.endpoints import metric, page
from tests.faults.verifier import Topics, count, request, send
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
