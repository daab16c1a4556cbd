"""Records that are gone before they were read are counted and said, per partition, with from and to."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.endpoints import metric
from tests.faults.verifier import Topics, group_lag, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

PARTITIONS = 3


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests", partitions=PARTITIONS), topic("results"), topic("dead"))


def _environment(kafka: Kafka, topics: Topics) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
    }


def _send(kafka: Kafka, topics: Topics, name: str, count: int) -> None:
    records = ((f"{name}{i}", request(f"{name}{i}", "plain")) for i in range(count))
    send(kafka.bootstrap_servers, topics.requests, records)


def _await_end(kafka: Kafka, topics: Topics, worker: WorkerProcess) -> None:
    wait_until(lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 40, "the end", worker)


def _offsets(kafka: Kafka, topic: str) -> list[tuple[int, int]]:
    client = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "offsets"})
    found = [client.get_watermark_offsets(TopicPartition(topic, n), timeout=30) for n in range(PARTITIONS)]
    client.close()
    return found


def _events(worker: WorkerProcess) -> dict[str, tuple[int, int, int]]:
    """What the worker says of each partition: from, to and count."""
    return {
        str(event["partition"]): (event["from_offset"], event["to_offset"], event["records"])
        for event in worker.events("records_skipped")
    }


@pytest.mark.timeout(120)
def test_records_that_retention_deleted_unread_are_counted(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    _send(kafka, topics, "first", 60)
    with WorkerProcess(_environment(kafka, topics), tmp_path / "worker.log") as worker:
        _await_end(kafka, topics, worker)
        assert worker.stop() == 0
        committed = [high for _, high in _offsets(kafka, topics.requests)]
        _send(kafka, topics, "unread", 300)
        deleted = [offset + 20 for offset in committed]
        positions = [TopicPartition(topics.requests, n, offset) for n, offset in enumerate(deleted)]
        admin = kafka.admin()  # held until the answers
        for done in admin.delete_records(positions).values():
            done.result(timeout=30)
        worker.restart()
        _await_end(kafka, topics, worker)
        wait_until(lambda: sum(metric(worker, "records_skipped_total")) > 0, 10, "the count", worker)
        assert sum(metric(worker, "records_skipped_total", reason="retention")) == 20 * PARTITIONS
        assert _events(worker) == {f"{topics.requests}-{n}": (committed[n], deleted[n], 20) for n in range(PARTITIONS)}
        assert worker.stop() == 0
    assert len(read_all(kafka.bootstrap_servers, topics.results)) == 360 - 20 * PARTITIONS


@pytest.mark.timeout(120)
def test_a_committed_offset_beyond_the_end_is_said(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    _send(kafka, topics, "k", 30)
    ends = [high for _, high in _offsets(kafka, topics.requests)]
    client = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": topics.requests})
    client.commit(
        offsets=[TopicPartition(topics.requests, n, end + 1000) for n, end in enumerate(ends)], asynchronous=False
    )
    client.close()
    with WorkerProcess(_environment(kafka, topics), tmp_path / "worker.log") as worker:
        wait_until(lambda: len(read_all(kafka.bootstrap_servers, topics.results)) == 30, 40, "answers", worker, 0.5)
        said = [event for event in worker.events("offset_reset") if event.get("logger") != "librdkafka"]
        assert {(event["partition"], event["from_offset"], event["to_offset"]) for event in said} == {
            (f"{topics.requests}-{n}", end + 1000, 0) for n, end in enumerate(ends)
        }
        assert worker.stop() == 0
