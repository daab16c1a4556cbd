"""The consumer over real clients: however records are held back, none is skipped and none comes early."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from tests.builders import IgnoreRebalances
from worker.kafka import client_config
from worker.kafka.consumer import Consumer
from worker.kafka.embedded import EmbeddedBroker
from worker.messages import Partition
from worker.settings import KafkaSettings

PARTITIONS = 4  # what the embedded broker gives every topic
RECORDS = 80
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.acceptance)])
def test_records_come_in_order_however_they_are_held_back(broker: EmbeddedBroker, seed: int) -> None:
    """As the loop does: hold a record back, drop what was read behind it, let go at any time, paused or not."""
    topic, draw = f"held-{uuid.uuid4().hex[:8]}", random.Random(seed)
    broker.create(topic)
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    for number in range(PARTITIONS):
        for _ in range(RECORDS):
            producer.produce(topic, b"x", partition=number)
    assert producer.flush(30) == 0
    settings = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, group_id=topic)
    consumer = Consumer(client_config.consumer(settings))
    consumer.subscribe([topic], IgnoreRebalances())
    wanted = dict.fromkeys((Partition(topic, number) for number in range(PARTITIONS)), 0)
    held: set[Partition] = set()
    deadline_s = time.monotonic() + LIMIT_S
    while min(wanted.values()) < RECORDS:
        assert time.monotonic() < deadline_s, wanted
        dropped: set[Partition] = set()
        for record in consumer.poll(draw.choice([1, 7, 40]), 0.02):
            partition, offset = record.position.partition, record.position.offset
            if partition in dropped:
                continue
            assert partition not in held
            assert offset == wanted[partition]
            again = draw.random() < 0.04
            wanted[partition] += not again
            if again or draw.random() < 0.04:
                consumer.hold(partition, wanted[partition])
                held.add(partition)
                dropped.add(partition)
        for partition in sorted(held):
            if draw.random() < 0.3:
                held.remove(partition)
                consumer.unhold(partition)
        (consumer.pause if draw.random() < 0.2 else consumer.resume)()
    consumer.close()
