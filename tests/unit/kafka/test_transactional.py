"""What the errors of one transactional producer mean, over Kafka in memory. Its replacement is in test_fencing."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from tests.brokers.memory import Clock, Fault, MemoryBroker, fatal
from tests.delivery.doubles import OUTPUT, partition
from worker.errors import FatalError, Fenced
from worker.kafka.consumer import Consumer
from worker.kafka.transactional import TransactionalPublisher
from worker.messages import CommitBatch, Output, OutputKind, Position

P0 = partition(0)


RELEASE = CommitBatch(((Position(P0, 0, 1), Output(OutputKind.RESULT, OUTPUT, None, b"answer", ())),), {}, {})
BARE_NOTICE = KafkaError(KafkaError._FATAL)


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker(Clock())


@pytest.fixture
def publisher(broker: MemoryBroker) -> TransactionalPublisher:
    with broker.plugged_in():
        consumer = Consumer({"partition.assignment.strategy": "cooperative-sticky"})
        return TransactionalPublisher({"transactional.id": "x"}, consumer, broker.clock, lambda call: call())


@pytest.mark.parametrize("call", ["produce", "send_offsets_to_transaction"])
def test_a_bare_notice_of_a_fatal_error_is_asked_for_its_cause(
    broker: MemoryBroker, publisher: TransactionalPublisher, call: str
) -> None:
    """Whoever is fenced has to know it, whichever call meets it first."""
    broker.faults[call].append(Fault(BARE_NOTICE))
    broker.faults["abort_transaction"].append(fatal())
    with pytest.raises(Fenced):
        publisher.publish(RELEASE, 1.0)
    assert not broker.visible


def test_a_bare_notice_at_the_commit_leaves_it_in_doubt(
    broker: MemoryBroker, publisher: TransactionalPublisher
) -> None:
    broker.faults["commit_transaction"].append(Fault(BARE_NOTICE, applied=True))
    with pytest.raises(FatalError):
        publisher.publish(RELEASE, 1.0)
    assert publisher.in_doubt
