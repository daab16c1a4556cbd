"""Lag is what waits: 0 for an idle worker whatever lies behind the last record, and a series for every partition."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.endpoints import metric
from tests.faults.verifier import Topics, count, group_lag, request
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

REPORT_S = 6.0  # lag is reported every 5 s


def _environment(kafka: Kafka, topics: Topics) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
    }


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests", partitions=3), topic("results"), topic("dead"))


def _transaction(kafka: Kafka, name: str) -> Producer:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": name, "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    return producer


def _produce(producer: Producer, topic: str, count: int, partition: int) -> None:
    for i in range(count):
        producer.produce(topic, key=f"k{i}", value=request(f"k{i}", "plain"), partition=partition)
    assert producer.flush(30) == 0


@contextmanager
def _idle(kafka: Kafka, topics: Topics, folder: Path, answers: int) -> Iterator[WorkerProcess]:
    with WorkerProcess(_environment(kafka, topics), folder / "worker.log") as worker:
        worker.wait_for("rebalance")
        wait_until(lambda: count(kafka.bootstrap_servers, topics.results) >= answers, 30, f"{answers} answers", worker)
        time.sleep(REPORT_S)
        yield worker
        assert worker.stop() == 0


def _lag(worker: WorkerProcess, topics: Topics) -> list[float]:
    return metric(worker, "consumer_lag", topic=topics.requests)


@pytest.mark.timeout(90)
def test_an_idle_worker_has_no_lag_on_any_partition(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    producer = _transaction(kafka, topics.requests)
    _produce(producer, topics.requests, 3, partition=0)
    producer.commit_transaction(30)
    producer.begin_transaction()
    _produce(producer, topics.requests, 7, partition=0)
    _produce(producer, topics.requests, 7, partition=1)  # where nothing else ever comes
    producer.abort_transaction(30)
    with _idle(kafka, topics, tmp_path, answers=3) as worker:
        assert _lag(worker, topics) == [0.0, 0.0, 0.0]
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 30, "lag 0", worker
        )


@pytest.mark.timeout(90)
def test_a_transaction_that_hangs_upstream_has_a_number_of_its_own(
    kafka: Kafka, topics: Topics, tmp_path: Path
) -> None:
    hanging = _transaction(kafka, topics.requests)
    _produce(hanging, topics.requests, 1, partition=0)
    behind = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    _produce(behind, topics.requests, 5, partition=0)
    with _idle(kafka, topics, tmp_path, answers=0) as worker:
        assert sum(_lag(worker, topics)) == 6
        assert sorted(metric(worker, "unstable_records", topic=topics.requests)) == [0.0, 0.0, 6.0]
    hanging.abort_transaction(30)


@pytest.mark.acceptance
@pytest.mark.timeout(90)
def test_a_partition_that_was_never_read_has_a_series(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    with _idle(kafka, topics, tmp_path, answers=0) as worker:
        assert _lag(worker, topics) == [0.0, 0.0, 0.0]


@pytest.mark.acceptance
@pytest.mark.timeout(90)
def test_its_own_retry_topics_have_no_lag(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    retry = f"{topics.requests}.retry.1s"
    kafka.create_topic(retry, 3)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    producer.produce(topics.requests, key="flaky", value=request("flaky", "flaky=2"))
    assert producer.flush(30) == 0
    settings = _environment(kafka, topics) | {"XNLI_TOPICS__RETRY": "1", "XNLI_RETRY__MAX_ATTEMPTS": "4"}
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        wait_until(lambda: count(kafka.bootstrap_servers, topics.results) > 0, 40, "the answer", worker)
        time.sleep(REPORT_S)
        assert metric(worker, "consumer_lag", topic=retry) == [0.0, 0.0, 0.0]
        assert worker.stop() == 0
