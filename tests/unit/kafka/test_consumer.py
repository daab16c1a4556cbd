"""What the consumer knows of a partition, over Kafka in memory. What the loop makes of it is in test_loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError

from tests.brokers.memory import Clock, Fault, MemoryBroker
from tests.builders import IgnoreRebalances
from tests.delivery.doubles import partition
from worker.kafka.consumer import Consumer
from worker.messages import Partition

P0, P1 = partition(0), partition(1)


@pytest.fixture
def broker() -> Iterator[MemoryBroker]:
    broker = MemoryBroker(Clock())
    with broker.plugged_in():
        yield broker


@pytest.fixture
def consumer(broker: MemoryBroker) -> Consumer:
    consumer = Consumer({"partition.assignment.strategy": "cooperative-sticky"})
    consumer.subscribe([P0.topic], IgnoreRebalances())
    broker.assign(P0, P1)
    consumer.poll(1, 0)
    return consumer


def read(consumer: Consumer) -> list[tuple[Partition, int]]:
    return [(record.position.partition, record.position.offset) for record in consumer.poll(100, 0)]


def test_of_a_partition_that_left_nothing_is_remembered(broker: MemoryBroker, consumer: Consumer) -> None:
    """Neither that it was held, nor where, nor the commit that failed."""
    broker.send(P0, b"0", b"1")
    assert read(consumer) == [(P0, 0), (P0, 1)]
    broker.faults["commit"].append(Fault(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE)))
    consumer.commits.commit({P0: 2}, wait=False)
    consumer.poll(1, 0)  # the answer
    consumer.hold(P0, 1)
    former = consumer.assignment[P0]
    broker.lose(P0)
    consumer.poll(1, 0)
    assert dict(consumer.assignment) == {P1: former + 1}
    assert P0 not in consumer.ends.lag({})
    broker.assign(P0)
    assert read(consumer) == [(P0, 0), (P0, 1)]
    consumer.commits.recommit()
    assert broker.committed == {}
    assert consumer.assignment[P0] > former + 1
    assert not consumer.owns({P0: former})
    assert consumer.owns(dict(consumer.assignment))


def test_a_record_whose_partition_left_while_more_were_taken_is_dropped(
    broker: MemoryBroker, consumer: Consumer
) -> None:
    broker.send(P0, b"0")
    consumer._client._fetch()  # type: ignore[attr-defined]
    broker.lose(P0)  # its callback runs inside the same poll
    assert read(consumer) == []
    assert P0 not in consumer.assignment


def test_a_failed_commit_is_sent_again_until_it_is_taken(broker: MemoryBroker, consumer: Consumer) -> None:
    broker.faults["commit"].extend([Fault(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE))] * 2)
    consumer.commits.commit({P0: 5}, wait=False)
    for _ in range(3):
        consumer.poll(1, 0)
        consumer.commits.recommit()
    consumer.poll(1, 0)
    assert broker.committed == {P0: 5}
    broker.committed.clear()
    consumer.commits.recommit()
    assert broker.committed == {}, "what was taken is not sent again"
