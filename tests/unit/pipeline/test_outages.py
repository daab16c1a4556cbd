"""Broker, registry and device that are away, and topics that are missing."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, KafkaException

from tests.brokers.memory import Fault, MemoryBroker, MemoryProducer, retriable
from tests.delivery.doubles import (
    DEAD_LETTERS,
)
from tests.delivery.observed import BOTH, P0, P1, committed, offsets, reasons, started
from tests.delivery.worker import BATCH, RETRY, Guarantee


@BOTH
def test_a_broker_away_is_waited_for(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.send(P0, *[b"ok"] * 6)
    while not worker.loop.in_flight:
        worker.turn()
    broker.away = True
    began_s = broker.clock()
    turns = 0
    while broker.clock() < began_s + 60:
        worker.turn()
        turns += 1
    assert not broker.visible
    assert turns < 60 * 30, "a busy loop"
    broker.away = False
    worker.settle(RETRY.max_s + 2)
    assert offsets(broker) == list(range(6))
    assert reasons(broker) == {}


@BOTH
def test_what_the_producer_logs_is_taken_while_nothing_is_published(
    broker: MemoryBroker, guarantee: Guarantee, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka keeps what nobody takes: an idle worker grew by 0.3 MB/s and used a third of a core."""
    worker = started(broker, guarantee)
    worker.turn(5)
    polls: list[float] = []
    poll = MemoryProducer.poll

    def counted(producer: MemoryProducer, timeout: float) -> int:
        polls.append(timeout)
        return poll(producer, timeout)

    monkeypatch.setattr(MemoryProducer, "poll", counted)
    broker.away = True
    worker.turn(20)
    assert len(polls) >= 20


@BOTH
def test_a_registry_away_is_waited_for(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    worker.codec.away = True
    broker.send(P0, *[b"ok"] * 30)
    broker.send(P1, *[b"ok"] * 30)
    worker.turn(200)
    assert worker.consumer.paused
    held = worker.loop.in_flight
    assert 0 < held <= 2 * BATCH.max_messages, "reading goes on though nothing can be decoded"
    broker.revoke(P1)
    worker.turn(10)
    worker.codec.away = False
    worker.settle()
    assert offsets(broker) == list(range(30))
    assert offsets(broker, P1) == []
    assert reasons(broker) == {}


@BOTH
def test_a_device_away_costs_no_attempt(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    worker.engine.away = 20
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert reasons(broker) == {}


@BOTH
def test_an_unwritable_dead_letter_topic_blocks_the_commit(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.unwritable = {DEAD_LETTERS}
    broker.send(P0, b"ok", b"garbage", b"ok")
    worker.turn(500)
    assert broker.committed.get(P0, 0) <= 1
    assert offsets(broker, dead=True) == []
    broker.unwritable = set()
    worker.settle()
    assert committed(broker) == {P0: 3}
    assert sorted(set(offsets(broker))) == [0, 1, 2]


@BOTH
def test_a_topic_that_is_missing_is_waited_for(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.faults["produce"].extend([Fault(KafkaError(KafkaError._UNKNOWN_TOPIC))] * 3)
    broker.send(P0, b"ok", b"ok")
    worker.settle()
    assert sorted(set(offsets(broker))) == [0, 1]


def test_a_commit_that_cannot_be_sent_is_sent_later(broker: MemoryBroker) -> None:
    worker = started(broker, "at_least_once")
    broker.send(P0, b"ok")
    broker.faults["commit"].append(retriable())
    member = broker.member
    assert member is not None
    refused, commit = 2, member.commit

    def refuse(**arguments: object) -> None:
        nonlocal refused
        refused -= 1
        if refused >= 0:
            raise KafkaException(KafkaError(KafkaError._STATE))
        commit(**arguments)  # type: ignore[arg-type]  # passed through

    member.commit = refuse  # type: ignore[method-assign]
    worker.settle()
    worker.turn(30)
    assert committed(broker) == {P0: 1}
    assert offsets(broker) == [0]


def test_a_late_failure_of_an_old_commit_does_not_take_back_a_newer_one(broker: MemoryBroker) -> None:
    worker = started(broker, "at_least_once")
    broker.faults["commit"].append(retriable())
    worker.consumer.commits.commit({P0: 5}, wait=False)
    worker.consumer.commits.commit({P0: 9}, wait=False)
    worker.turn(5)
    assert committed(broker) == {P0: 9}
