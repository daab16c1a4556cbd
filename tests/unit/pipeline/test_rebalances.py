"""Partitions that come and go, and back-pressure."""

from __future__ import annotations

import math

import pytest

from tests.brokers.memory import MemoryBroker, abortable
from tests.delivery.doubles import (
    HUGE_BYTES,
    LONG_TOKENS,
)
from tests.delivery.observed import BOTH, P0, P1, committed, offsets, reasons, started
from tests.delivery.worker import BATCH, Guarantee, Worker
from worker.pipeline.batch import BATCHES_IN_HAND, BatchPolicy
from worker.pipeline.clocks import BUSY_POLL_S
from worker.pipeline.fetch import PAUSE_AFTER_S


@BOTH
@pytest.mark.parametrize("cooperative", [True, False])
def test_on_revoke_what_is_computed_is_committed_and_the_rest_left(
    broker: MemoryBroker, guarantee: Guarantee, *, cooperative: bool
) -> None:
    worker = started(broker, guarantee, cooperative=cooperative)
    broker.send(P0, *[b"ok"] * 6)
    while worker.inference.has_room:  # a batch of four is offered, two records stay in line
        worker.loop.step()
    broker.revoke(P0, P1)
    worker.loop.step()
    assert offsets(broker) == [0, 1, 2, 3]
    assert worker.loop.in_flight == 0
    broker.assign(P0, P1)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3, 4, 5]
    assert committed(broker) == {P0: 6}


def test_a_late_result_of_a_former_assignment_is_dropped(broker: MemoryBroker) -> None:
    worker = started(broker, stuck=True)
    broker.send(P0, *[b"ok"] * 4)
    while worker.inference.has_room:
        worker.loop.step()
    began_s = broker.clock()
    broker.revoke(P0)
    broker.assign(P0)
    worker.loop.step()
    assert broker.clock() - began_s == pytest.approx(10.0, abs=0.1), "the deadline of a revoke"
    worker.stuck = False
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3]
    assert worker.engine.runs == [4, 4], "computed under both assignments, published under one"


@BOTH
def test_of_a_lost_partition_nothing_is_committed(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.send(P0, *[b"ok"] * 4)
    while worker.inference.has_room:
        worker.loop.step()
    worker.infer()
    broker.lose(P0)
    worker.turn(100)
    assert broker.visible == []
    assert committed(broker) == {}


def test_a_retry_of_a_partition_that_left_is_forgotten(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"poison")
    while not worker.counted("records_retried_total"):
        worker.turn()
    broker.revoke(P0)
    broker.assign(P0)
    worker.settle()
    assert reasons(broker) == {0: "inference"}
    assert offsets(broker) == [0]


def test_an_output_refused_after_its_partition_left_does_not_end_the_worker(broker: MemoryBroker) -> None:
    worker = started(broker, "at_least_once")
    broker.client_limit_bytes, broker.broker_limit_bytes = 2 * HUGE_BYTES, HUGE_BYTES // 2
    broker.send(P0, b"huge")
    broker.send(P1, b"ok")
    while worker.loop.in_flight < 2:
        worker.turn()
    broker.away = True
    while not worker.counted("broker_errors_total"):
        worker.turn()
    broker.lose(P0)
    worker.loop.step()
    broker.away = False
    worker.settle()
    assert committed(broker) == {P1: 1}


def test_a_revoke_while_transactions_fail_neither_spins_nor_lengthens_the_back_off(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 4)
    broker.faults["send_offsets_to_transaction"].extend([abortable()] * 1_000)
    while worker.inference.has_room:
        worker.loop.step()
    broker.revoke(P0)
    worker.loop.step()
    assert worker.counted("transactions_total", result="aborted") < 20


def test_a_partition_assigned_under_pressure_is_paused(broker: MemoryBroker) -> None:
    worker = Worker(broker)
    broker.assign(P0)
    broker.send(P0, *[b"ok"] * 40)
    worker.settle()  # beyond what is read with care at the start
    worker.stuck = True
    broker.send(P0, *[b"ok"] * 160)
    broker.send(P1, *[b"ok"] * 5)
    worker.turn(30)
    assert worker.loop.in_flight >= BATCHES_IN_HAND * BATCH.max_messages
    assert worker.counted("paused_partitions") == 0  # it may be a moment's matter
    worker.turn(math.ceil(PAUSE_AFTER_S / BUSY_POLL_S))
    assert worker.consumer.paused
    held = worker.loop.in_flight
    assert held <= (BATCHES_IN_HAND + 1) * BATCH.max_messages
    broker.assign(P1)
    worker.turn(5)
    assert worker.loop.in_flight == held
    assert worker.counted("paused_partitions") == 2
    worker.stuck = False
    worker.settle()
    assert offsets(broker) == list(range(200))
    assert offsets(broker, P1) == list(range(5))


def test_bytes_in_hand_are_bounded_headers_included(broker: MemoryBroker) -> None:
    worker = started(broker, stuck=True, batch=BatchPolicy(max_messages=1_000, max_tokens=1 << 20, max_wait_s=0.05))
    broker.headers = [("big", b"x" * (1 << 20))]
    broker.send(P0, *[b"ok"] * 300)
    worker.turn(300)
    assert worker.consumer.paused
    assert worker.loop.in_flight < 80, "64 MiB and one poll more"


def test_tokens_in_hand_are_bounded_whatever_a_poll_brings(broker: MemoryBroker) -> None:
    worker = started(broker, stuck=True)
    for where in (P0, P1):
        broker.send(where, *[b"long"] * 10)
    for _ in range(30):
        worker.turn()
        assert worker.loop.handoff.tokens < BATCHES_IN_HAND * BATCH.max_tokens + LONG_TOKENS
    worker.stuck = False
    worker.settle()
    assert offsets(broker, P0) == offsets(broker, P1) == list(range(10))


def test_a_revoke_in_an_outage_ends_before_the_watchdog_thinks_of_a_hang(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 4)
    while not worker.loop.in_flight:
        worker.turn()
    broker.away = True
    broker.revoke(P0, P1)
    worker.loop.step()
    assert worker.health.healthy(broker.clock()).problems == ()
