"""The topic of label sets while a worker runs: made again, it is read again; partitions added later are read too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions

from tests.brokers.kafka import Kafka
from tests.builders import followed_sets
from tests.conftest import TopicFactory
from worker.label_sets.topic import FollowedSets

pytestmark = pytest.mark.kafka


@pytest.fixture
def name(topic: TopicFactory) -> str:
    return topic("label-sets", config={"cleanup.policy": "compact"})


@pytest.fixture
def sets(kafka: Kafka, name: str) -> Iterator[FollowedSets]:
    found = followed_sets(kafka.bootstrap_servers, kafka.admin(), name)
    _write(kafka, name, 0, "old")
    found.load(lambda: False)
    yield found
    found.close()


def _write(kafka: Kafka, topic: str, partition: int, key: str) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    producer.produce(topic, key=key, value=b'["a", "b"]', partition=partition)
    assert producer.flush(20) == 0


def _until(sets: FollowedSets, condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        sets.refresh()
        time.sleep(0.01)


@pytest.mark.timeout(60)
def test_a_topic_made_again_is_read_again(kafka: Kafka, name: str, sets: FollowedSets) -> None:
    """At once: before it has been asked again which topic is there."""
    assert set(sets.stored) == {"old"}
    kafka.make_again(name)
    _write(kafka, name, 0, "new")
    _until(sets, lambda: set(sets.stored) == {"new"})


@pytest.mark.timeout(60)
@pytest.mark.acceptance
def test_partitions_added_later_are_read(kafka: Kafka, name: str, sets: FollowedSets) -> None:
    admin = kafka.admin()  # held until the answer
    admin.create_partitions([NewPartitions(name, 2)])[name].result(timeout=20)
    time.sleep(0.5)
    _write(kafka, name, 1, "new")
    _until(sets, lambda: set(sets.stored) == {"old", "new"})
