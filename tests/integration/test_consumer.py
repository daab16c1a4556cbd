"""The consumer on a real broker: what a rebalance does to back-pressure."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import pytest

from tests.brokers.kafka import Kafka
from tests.builders import IgnoreRebalances
from tests.conftest import TopicFactory
from tests.faults.verifier import send
from worker.kafka import client_config
from worker.kafka.consumer import Consumer
from worker.messages import Partition
from worker.settings import KafkaSettings

pytestmark = pytest.mark.kafka


def _member(kafka: Kafka, topic: str, protocol: Literal["classic", "consumer"]) -> Consumer:
    settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, group_id=topic, group_protocol=protocol)
    consumer = Consumer(client_config.consumer(settings))
    consumer.subscribe([topic], IgnoreRebalances())
    return consumer


def _await_share(members: Sequence[Consumer], share: int) -> None:
    deadline_s = time.monotonic() + 60
    while any(len(member.assignment) != share for member in members):
        assert time.monotonic() < deadline_s, [len(member.assignment) for member in members]
        for member in members:
            member.poll(100, 0.02)


@pytest.mark.parametrize("protocol", [pytest.param("classic", marks=pytest.mark.acceptance), "consumer"])
def test_a_partition_paused_under_a_former_assignment_is_read_again(
    kafka: Kafka, topic: TopicFactory, protocol: Literal["classic", "consumer"]
) -> None:
    """librdkafka keeps the pause of a partition that goes and returns; ours ended in between, without it."""
    name = topic(partitions=2)
    one = _member(kafka, name, protocol)
    _await_share([one], 2)
    one.pause()
    two = _member(kafka, name, protocol)
    _await_share([one, two], 1)
    one.resume()
    two.close()
    _await_share([one], 2)
    send(kafka.bootstrap_servers, name, ((f"k{i}", b"x") for i in range(100)))
    read: set[Partition] = set()
    deadline_s = time.monotonic() + 30
    while len(read) < 2 and time.monotonic() < deadline_s:
        read |= {record.position.partition for record in one.poll(100, 0.1)}
    one.close()
    assert len(read) == 2


@pytest.mark.parametrize("protocol", ["classic", pytest.param("consumer", marks=pytest.mark.acceptance)])
def test_a_partition_that_arrives_under_pressure_is_paused(
    kafka: Kafka, topic: TopicFactory, protocol: Literal["classic", "consumer"]
) -> None:
    name = topic(partitions=2)
    send(kafka.bootstrap_servers, name, ((f"k{i}", b"x") for i in range(100)))
    one = _member(kafka, name, protocol)
    one.pause()
    _await_share([one], 2)
    assert not one.poll(100, 2.0)
    one.resume()
    deadline_s = time.monotonic() + 30
    read = 0
    while read < 100 and time.monotonic() < deadline_s:
        read += len(one.poll(100, 0.1))
    one.close()
    assert read == 100
