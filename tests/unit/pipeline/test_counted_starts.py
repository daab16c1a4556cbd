"""Starts that are counted, and records that kill the process."""

from __future__ import annotations

import contextlib
import random
from unittest.mock import Mock, patch

import pytest
from confluent_kafka import KafkaError
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.brokers.memory import Clock, MemoryBroker, abortable, retriable
from tests.delivery.doubles import (
    Killed,
    answered,
    reason,
)
from tests.delivery.observed import BOTH, P0, P1, committed, offsets, reasons, started, starts
from tests.delivery.worker import RETRY, Guarantee, Worker
from worker.errors import FatalError
from worker.rules.crash_count import DEATHS, Mark
from worker.rules.offset_metadata import render
from worker.rules.retry import RetryPolicy


def test_a_mark_that_could_not_be_committed_does_not_take_back_what_was_answered_since(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 4)
    worker = Worker(broker)
    broker.faults["commit"].extend([retriable()] * 1_000)
    broker.assign(P0)
    worker.settle()
    broker.faults.clear()
    worker.turn(10)
    assert committed(broker) == {P0: 4}
    started(broker).settle()
    assert offsets(broker) == [0, 1, 2, 3]


def test_marks_are_not_taken_back_over_a_commit_without_an_answer(broker: MemoryBroker) -> None:
    """An offset committed outside the transaction would win over the one inside."""
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 4)
    broker.faults["commit_transaction"].extend([retriable()] * 100)
    while not worker.counted("broker_errors_total"):
        worker.turn()
    broker.revoke(P0)
    worker.loop.step()
    broker.faults.clear()
    while broker.undecided is not None:
        worker.turn()
    started(broker).settle()
    assert offsets(broker) == [0, 1, 2, 3]


def test_a_start_that_ends_in_an_error_stays_counted(broker: MemoryBroker) -> None:
    """A device that a text broke for good ends the process in good order, and again, and again."""
    broker.send(P0, b"ok")
    for times in (1, 2):
        worker = started(broker)
        worker.stuck = True
        worker.turn(3)
        worker.inference._crash = FatalError("the device failed and this process cannot use it any more")
        with pytest.raises(FatalError):
            worker.turn(3)
        with contextlib.suppress(FatalError):
            worker.loop.close()
        assert starts(broker) == times


def test_an_idle_worker_counts_no_start(broker: MemoryBroker) -> None:
    for _ in range(5):
        worker = started(broker)
        worker.turn(5)
        assert not any(broker.metadata.values())


@pytest.mark.parametrize("how", ["drain", "revoke"])
def test_a_partition_handed_over_in_good_order_is_not_counted(broker: MemoryBroker, how: str) -> None:
    worker = started(broker)
    broker.send(P0, *[b"ok"] * 20)
    worker.turn(2)
    assert starts(broker) == 1
    if how == "drain":
        assert worker.loop.drain(5.0)
        worker.loop.close()
    else:
        broker.revoke(P0)
        worker.turn()
    assert starts(broker) == 0


def test_kills_from_outside_that_come_after_progress_never_quarantine(broker: MemoryBroker) -> None:
    for place in range(7):
        broker.send(P0, *[b"ok"] * 30)
        worker = started(broker)
        while broker.committed.get(P0, 0) <= 30 * place:
            worker.turn()
            assert not any(worker.loop.quarantine.quarantines())
    started(broker).settle()
    assert offsets(broker) == list(range(210))
    assert reasons(broker) == {}
    assert not any(broker.metadata.values())


@given(seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_kills_from_outside_condemn_nobody_however_fast_they_come(seed: int) -> None:
    broker, draw = MemoryBroker(Clock()), random.Random(seed)
    broker.send(P0, *[b"ok"] * 40)
    broker.send(P1, *[b"ok"] * 40)
    for _ in range(10):
        worker = started(broker)
        deadline_s = broker.clock() + draw.uniform(0.0, 4.0)
        while broker.clock() < deadline_s:
            worker.turn()
        # and dies
    started(broker).settle()
    assert offsets(broker, P0) == offsets(broker, P1) == list(range(40))
    assert reasons(broker) == {}
    assert not any(broker.metadata.values()), "a quarantine lifts itself"


@BOTH
def test_a_record_that_kills_is_dead_lettered_and_no_neighbour_of_it(
    broker: MemoryBroker, guarantee: Guarantee
) -> None:
    """Not even a quarantined one that waits for its next attempt, marked, while the killer has its turn."""
    broker.send(P0, b"ok", b"flaky 2", b"kill", b"ok", b"kill")
    broker.send(P1, b"flaky 2", b"poison", b"ok")
    began = 0
    while True:
        began += 1
        worker = started(broker, guarantee)
        try:
            worker.settle(200)
        except Killed:
            continue
        break
    assert began <= 6 + DEATHS + 1, "six restarts for the first of them, two for the next"
    assert offsets(broker, P0) == [0, 1, 2, 3, 4]
    assert offsets(broker, P1) == [0, 1, 2]
    assert {answered(output): reason(output) for output in broker.visible if reason(output)} == {
        (P0, 2): "crash",
        (P0, 4): "crash",
        (P1, 1): "inference",
    }


@given(place=st.integers(0, 120), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_one_killer_costs_at_most_six_restarts(place: int, seed: int) -> None:
    """Wherever it stands, and however many answers before it get out on every start."""
    broker, draw = MemoryBroker(Clock()), random.Random(seed)
    broker.send(P0, *[b"ok"] * place, b"kill", *[b"ok"] * 50)
    broker.send(P1, *[b"ok"] * 100)
    restarts = -1
    while broker.committed.get(P0, 0) < place + 51:
        restarts += 1
        worker = started(broker)
        with contextlib.suppress(Killed):
            for _ in range(2_000):
                worker.loop.step()
                for _ in range(draw.randrange(3)):
                    worker.infer()
                if broker.committed.get(P0, 0) == place + 51:
                    break
    assert restarts <= 6
    assert offsets(broker, P0, dead=False) == [i for i in range(place + 51) if i != place]


def test_a_registry_away_is_asked_now_and_then_in_quarantine_too(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.metadata[P0] = render(Mark(until=8))
    broker.send(P0, b"ok", b"ok")
    worker = Worker(broker)
    worker.codec.away = True
    read = Mock(wraps=worker.codec.read)
    monkeypatch.setattr(worker.codec, "read", read)
    store = Mock(wraps=broker.store)
    monkeypatch.setattr(broker, "store", store)
    broker.assign(P0)
    began_s = broker.clock()
    while broker.clock() < began_s + 20:
        worker.turn()
    assert 20 / RETRY.max_s <= read.call_count <= 20 / RETRY.max_s + 6, "less at first: 0.2 s, 0.4 s, ..."
    assert store.call_count <= 2, "the mark is committed once"
    worker.codec.away = False
    worker.settle()
    assert offsets(broker) == [0, 1]


def test_progress_resets_the_count(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"ok")
    worker.settle()
    assert starts(broker) == 0


def test_back_off_after_failed_publishes_grows_and_is_reset(broker: MemoryBroker) -> None:
    slow = RetryPolicy(max_attempts=3, initial_s=1.0, max_s=30.0, multiplier=2.0, jitter=0.0)
    worker = started(broker, retry=slow)
    for _ in range(2):
        broker.faults["send_offsets_to_transaction"].extend([abortable()] * 3)
        broker.send(P0, b"ok")
        began_s = broker.clock()
        worker.settle()
        assert 7.0 < broker.clock() - began_s < 8.0  # 1 + 2 + 4


def test_a_consumer_that_was_fenced_ends_the_worker_however_it_is_told(broker: MemoryBroker) -> None:
    """After an outage a static member may be fenced by its own answer that got lost; polled, the error has no flag."""
    worker = started(broker)
    told = KafkaError(KafkaError._FATAL, "Static consumer fenced by other consumer with same group.instance.id")
    assert not told.fatal()
    with (
        patch.object(worker.consumer._client, "poll", lambda _: Mock(error=lambda: told)),
        pytest.raises(FatalError, match="Static consumer fenced"),
    ):
        worker.turn()
