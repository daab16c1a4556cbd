"""A topic that is deleted and made again under a running or stopped worker is read from its beginning, and said so."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, group_lag, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

OLD, NEW = 50, 80


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests"), topic("results"), topic("dead"))


def _environment(kafka: Kafka, topics: Topics, guarantee: str) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_DELIVERY__GUARANTEE": guarantee,
    }


def _send(kafka: Kafka, topic: str, keys: Sequence[str]) -> None:
    send(kafka.bootstrap_servers, topic, ((key, request(key, f"plain {key}")) for key in keys))


def _answered(kafka: Kafka, topics: Topics) -> list[str]:
    return sorted((message.key() or b"").decode() for message in read_all(kafka.bootstrap_servers, topics.results))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("guarantee", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.acceptance)])
@pytest.mark.parametrize(
    "running",
    [
        True,
        pytest.param(False, marks=pytest.mark.acceptance),  # Kafka deletes the group's offsets with the topic
    ],
)
def test_nothing_of_the_new_topic_is_passed_over(
    kafka: Kafka, topics: Topics, tmp_path: Path, guarantee: str, running: bool
) -> None:
    old, new = [f"old{i}" for i in range(OLD)], [f"new{i}" for i in range(NEW)]
    _send(kafka, topics.requests, old)
    with WorkerProcess(_environment(kafka, topics, guarantee), tmp_path / "worker.log") as worker:
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 30, "the old", worker
        )
        # A fetch that falls in between would find the topic missing, or its offset behind the end, and begin anew.
        worker.signal(signal.SIGSTOP) if running else worker.stop()
        kafka.make_again(topics.requests)
        _send(kafka, topics.requests, new)
        worker.signal(signal.SIGCONT) if running else worker.restart()
        wait_until(lambda: set(_answered(kafka, topics)) >= set(new), 45, "the new topic's answers", worker, 1.0)
        assert worker.stop() == 0
        said = [event["answered_again_at_most"] for event in worker.events("topic_made_again")]
    answers = _answered(kafka, topics)
    assert set(answers) == {*old, *new}
    again = len(answers) - len(set(answers))  # answered before the change was seen
    assert len(said) == int(running)
    assert sum(said) >= again


@pytest.mark.timeout(120)
def test_a_restart_sees_that_a_topic_was_made_again(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    """Kafka deletes a group's offsets with the topic, and takes those that a worker commits after that."""
    retry = f"{topics.requests}.retry.1s"
    kafka.create_topic(retry)
    keys = {topic: [f"{topic}-{i}" for i in range(OLD + NEW)] for topic in (topics.requests, retry)}
    environment = _environment(kafka, topics, "exactly_once") | {"XNLI_TOPICS__RETRY": "1"}
    group = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": topics.requests})
    for topic in keys:
        _send(kafka, topic, keys[topic][:OLD])
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        wait_until(lambda: len(_answered(kafka, topics)) == 2 * OLD, 30, "the old", worker)
        wait_until(lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 30, "it", worker)
        assert worker.stop() == 0
        former = group.committed([TopicPartition(topic, 0) for topic in keys], timeout=30)
        for topic in keys:
            kafka.make_again(topic)
            _send(kafka, topic, keys[topic][OLD:])
        group.commit(offsets=former, asynchronous=False)
        group.close()
        worker.restart()
        wait_until(lambda: len(_answered(kafka, topics)) >= 2 * (OLD + NEW), 45, "the new", worker, 0.5)
        assert {event["partition"] for event in worker.events("topic_made_again")} == {f"{topic}-0" for topic in keys}
        assert worker.stop() == 0
    assert _answered(kafka, topics) == sorted(key for each in keys.values() for key in each)


@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_a_shorter_topic_under_the_same_name_is_read_while_records_are_in_hand(
    kafka: Kafka, topics: Topics, tmp_path: Path
) -> None:
    """The client goes back to the beginning by itself, while records from farther on are being computed."""
    environment = _environment(kafka, topics, "exactly_once") | {
        "XNLI_TEST_SECONDS_PER_BATCH": "3",
        "XNLI_BATCH__MAX_MESSAGES": str(OLD),
    }
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        worker.wait_for("rebalance")
        _send(kafka, topics.requests, [f"old{i}" for i in range(3 * OLD)])
        wait_until(lambda: len(_answered(kafka, topics)) >= OLD, 30, "the first", worker)
        kafka.make_again(topics.requests)
        new = [f"new{i}" for i in range(10)]
        _send(kafka, topics.requests, new)
        wait_until(lambda: set(_answered(kafka, topics)) >= set(new), 45, "the new topic's answers", worker, 0.5)
        assert worker.starts == 1
        assert worker.stop() == 0
