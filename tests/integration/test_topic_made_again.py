"""A topic that is deleted and made again under a running or stopped worker is read from its beginning, and said so."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import KafkaException

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


def _make_again(kafka: Kafka, topic: str) -> None:
    """Delete and create within a second: the broker refuses the name for a moment."""
    kafka.delete_topic(topic)
    deadline_s = time.monotonic() + 10
    while True:
        try:
            kafka.create_topic(topic)
        except KafkaException:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        else:
            return


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
        _make_again(kafka, topics.requests)
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
