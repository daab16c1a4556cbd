"""Transactions that fail in every way that librdkafka knows."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from tests.brokers.memory import MemoryBroker, abortable, fatal, retriable
from tests.delivery.observed import P0, P1, committed, offsets, started
from worker.errors import FatalError


@pytest.mark.parametrize("applied", [True, False])
def test_a_commit_without_an_answer_is_asked_again(broker: MemoryBroker, *, applied: bool) -> None:
    worker = started(broker)
    broker.faults["commit_transaction"].append(retriable(applied=applied))
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert worker.counted("transactions_total", result="committed") == 1


@pytest.mark.parametrize("call", ["produce", "send_offsets_to_transaction", "commit_transaction"])
def test_an_aborted_transaction_is_done_again(broker: MemoryBroker, call: str) -> None:
    worker = started(broker)
    broker.faults[call].append(abortable())
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert worker.counted("transactions_total", result="aborted") == 1


@pytest.mark.parametrize("applied", [True, False])
def test_a_producer_lost_while_it_commits_is_replaced_and_nothing_is_answered_twice(
    broker: MemoryBroker, applied: bool
) -> None:
    worker = started(broker)
    broker.faults["commit_transaction"].append(fatal(applied=applied))
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert broker.committed[P0] == 4


def test_a_producer_is_lost_again_and_again(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.faults["send_offsets_to_transaction"].extend([abortable(), fatal()])
    broker.faults["abort_transaction"].append(fatal(KafkaError.INVALID_TXN_STATE))
    broker.faults["commit_transaction"].append(fatal())
    broker.faults["committed"].append(retriable())
    broker.send(P0, *[b"ok"] * 4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]


def test_a_fenced_worker_whose_name_is_contested_asks_the_group_first(broker: MemoryBroker) -> None:
    worker = started(broker, contested=True)
    broker.faults["send_offsets_to_transaction"].append(fatal())
    broker.faults["commit"].extend([retriable()] * 3)
    broker.faults["init_transactions"].append(fatal(KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED))
    broker.send(P0, b"ok")
    with pytest.raises(FatalError, match="grants no transactions"):
        worker.settle()
    assert not broker.faults["commit"], "it took the name back before the group had answered"


@pytest.mark.parametrize("how", ["revoke", "lose"])
def test_a_partition_that_leaves_while_an_abort_is_unanswered_is_not_written_again(
    broker: MemoryBroker, how: str
) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 3)
    broker.send(P1, *[b"ok"] * 3)
    broker.faults["send_offsets_to_transaction"].append(abortable())
    broker.faults["abort_transaction"].extend([retriable()] * 100)  # until the time is up
    broker.faults["init_transactions"].extend([retriable()] * 100)
    while len(broker.faults["abort_transaction"]) == 100:
        worker.turn()
    getattr(broker, how)(P0)
    worker.turn(2)
    broker.faults.clear()
    worker.settle()
    # It is somebody else's, who may have answered it meanwhile.
    assert offsets(broker, P0) == []
    assert committed(broker) == {P1: 3}
    newcomer = started(broker)
    newcomer.settle()
    assert offsets(broker, P0) == [0, 1, 2]
    assert offsets(broker, P1) == [0, 1, 2]


def test_a_partition_that_leaves_while_the_queue_is_full_is_not_written_again(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 3)
    broker.queue_limit = 0
    while not worker.counted("broker_errors_total"):
        worker.turn()
    broker.lose(P0)
    worker.loop.step()
    broker.queue_limit = 100
    worker.turn(300)
    assert offsets(broker) == []
    assert committed(broker) == {}
