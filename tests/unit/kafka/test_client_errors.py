"""What follows from librdkafka's codes, whichever of our clients is told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
from confluent_kafka import KafkaError, KafkaException

from tests.brokers.memory import Clock, Fault, MemoryBroker
from tests.delivery.doubles import OUTPUT, partition
from worker.commands.connection import Reports
from worker.errors import FatalError, Fenced
from worker.kafka import client_errors
from worker.kafka.at_least_once import AtLeastOncePublisher
from worker.kafka.client_errors import ErrorLog, ErrorReports
from worker.kafka.consumer import Consumer
from worker.messages import CommitBatch, Output, OutputKind, Position

# As a consumer polls it: librdkafka sets the code and leaves out the flag.
UNFLAGGED = KafkaError(KafkaError._FATAL, "Static consumer fenced by other consumer with same group.instance.id")
P0 = partition(0)


@pytest.mark.parametrize("reports", [Reports, lambda: ErrorLog("consumer")], ids=["commands", "worker"])
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (UNFLAGGED, pytest.raises(FatalError, match="cannot go on: _FATAL: Static consumer fenced")),
        (KafkaError(KafkaError._AUTHENTICATION, None, True, False, False), pytest.raises(FatalError)),
        (KafkaError(KafkaError.FENCED_INSTANCE_ID, None, True, False, False), pytest.raises(Fenced)),
        (KafkaError(KafkaError._TRANSPORT), nullcontext()),
    ],
    ids=["without the flag", "with the flag", "fenced", "an outage"],
)
def test_a_fatal_error_ends_the_client_with_or_without_its_flag(
    reports: Callable[[], ErrorReports], error: KafkaError, outcome: AbstractContextManager[object]
) -> None:
    told = reports()
    told(error)
    told(KafkaError(KafkaError._TRANSPORT))  # what comes later does not hide it
    with outcome:
        told.check()


def test_a_producer_that_is_told_so_by_a_call_ends_at_once() -> None:
    broker = MemoryBroker(Clock())
    with broker.plugged_in():
        consumer = Consumer({"partition.assignment.strategy": "cooperative-sticky"})
        publisher = AtLeastOncePublisher({}, consumer, broker.clock)
        broker.faults["produce"].append(Fault(UNFLAGGED))
        output = Output(OutputKind.RESULT, OUTPUT, None, b"answer", ())
        with pytest.raises(FatalError, match="the producer cannot go on"):
            publisher.publish(CommitBatch(((Position(P0, 0, 1), output),), {P0: 1}, {P0: 1}), 1.0)


@pytest.mark.parametrize(
    ("code", "of_the_record"), [(KafkaError.MSG_SIZE_TOO_LARGE, True), (KafkaError.TOPIC_AUTHORIZATION_FAILED, False)]
)
def test_a_refusal_is_the_records_or_the_brokers(code: int, *, of_the_record: bool) -> None:
    error = KafkaException(KafkaError(code)).args[0]
    assert client_errors.is_of_the_record(error) is of_the_record
