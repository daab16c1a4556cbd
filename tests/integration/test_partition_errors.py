"""What stands still is named: a partition in readiness, a metric and the log; a topic that is not there by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AclOperation

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


@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_an_authorisation_that_is_lost_and_given_back_is_said(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path
) -> None:
    """Of one topic of two, while the worker runs and is idle: no record tells that it may be read again."""
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    other = topic("others")
    settings = _environment(kafka, topics) | {"XNLI_TOPICS__INPUT": f"{topics.requests},{other}"}
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        for name in (topics.requests, other):
            send(kafka.bootstrap_servers, name, [(name, request(name, "plain"))])
        wait_until(lambda: len(read_all(kafka.bootstrap_servers, topics.results)) == 2, 30, "both answers", worker)
        assert page(worker, "/readyz")[0] == 200
        kafka.deny(other, AclOperation.READ)
        wait_until(lambda: page(worker, "/readyz")[0] == 503, 20, "a failing /readyz", worker)
        said = page(worker, "/readyz")[1]
        assert f"{other}-0" in said
        assert "kafka-acls.sh" in said
        assert topics.requests not in said
        assert metric(worker, "stalled_partitions", topic=other, partition="0") == [1.0]
        send(kafka.bootstrap_servers, topics.requests, [("more", request("more", "plain"))])
        wait_until(
            lambda: len(read_all(kafka.bootstrap_servers, topics.results)) == 3, 20, "the other's answer", worker
        )
        kafka.allow(other)
        wait_until(lambda: page(worker, "/readyz")[0] == 200, 20, "a good /readyz", worker)
        assert metric(worker, "stalled_partitions") == []
        assert worker.stop() == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("protocol", [pytest.param("classic", marks=pytest.mark.acceptance), "consumer"])
def test_a_topic_that_may_not_be_seen_keeps_no_other_from_being_read(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, protocol: str
) -> None:
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    hidden = topic("hidden")
    for name in (topics.requests, hidden):
        send(kafka.bootstrap_servers, name, [(name, request(name, "plain"))])
    kafka.deny(hidden, AclOperation.DESCRIBE, AclOperation.READ)
    settings = _environment(kafka, topics) | {
        "XNLI_TOPICS__INPUT": f"{topics.requests},{hidden}",
        "XNLI_KAFKA__GROUP_PROTOCOL": protocol,
    }
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        wait_until(
            lambda: len(read_all(kafka.bootstrap_servers, topics.results)) == 1, 30, "the other's answer", worker
        )
        wait_until(lambda: hidden in page(worker, "/readyz")[1], 20, "a failing /readyz", worker)
        assert page(worker, "/readyz")[0] == 503
        assert metric(worker, "stalled_partitions", topic=hidden, partition="*") == [1.0]
        assert {event["topic"] for event in worker.events("topic_unreadable")} == {hidden}
        kafka.allow(hidden)
        wait_until(lambda: len(read_all(kafka.bootstrap_servers, topics.results)) == 2, 40, "its answer", worker)
        wait_until(lambda: page(worker, "/readyz")[0] == 200, 20, "a good /readyz", worker)
        assert worker.stop() == 0
