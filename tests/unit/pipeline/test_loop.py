"""The loop, step by step, over Kafka in memory and on a fake clock."""

from __future__ import annotations

import pytest

from tests.brokers.memory import MemoryBroker
from tests.delivery.observed import BOTH, P0, P1, committed, offsets, started
from tests.delivery.worker import BATCH, Guarantee


@BOTH
def test_every_record_is_answered_in_order_and_committed(broker: MemoryBroker, guarantee: Guarantee) -> None:
    worker = started(broker, guarantee)
    broker.send(P0, *[b"ok"] * 10)
    broker.send(P1, *[b"ok"] * 5)
    worker.settle()
    assert offsets(broker, P0) == list(range(10))
    assert offsets(broker, P1) == list(range(5))
    assert committed(broker) == {P0: 10, P1: 5}
    assert worker.counted("records_consumed_total", topic="requests") == 15
    assert worker.counted("records_published_total") == 15


def test_lag_is_what_is_not_committed_whether_read_or_not(broker: MemoryBroker) -> None:
    worker = started(broker)
    worker.stuck = True
    broker.send(P0, *[b"ok"] * 100)
    for _ in range(30):
        worker.loop.step()
    assert 0 < worker.loop.in_flight < 100, "some are read, some are not"
    broker.clock.advance(10)
    worker.loop.step()
    assert worker.counted("consumer_lag", topic="requests", partition="0") == 100
    worker.stuck = False
    worker.settle()
    broker.clock.advance(10)
    worker.loop.step()
    assert worker.counted("consumer_lag", topic="requests", partition="0") == 0


def test_a_lone_record_waits_for_max_wait_and_no_longer(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, b"ok")
    began_s = broker.clock()
    while not broker.visible:
        worker.turn()
    # Two polls of the busy loop: one until the batch is offered, one until its result is there.
    assert broker.clock() - began_s == pytest.approx(BATCH.max_wait_s + 0.004, abs=0.003)


def test_tombstones_are_skipped_counted_and_committed(broker: MemoryBroker) -> None:
    worker = started(broker)
    broker.send(P0, None, b"ok", None)
    worker.settle()
    assert offsets(broker) == [1]
    assert committed(broker) == {P0: 3}
    assert worker.counted("tombstones_total") == 2


def test_what_the_worker_committed_is_not_read_again(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 4)
    started(broker).settle()
    broker.send(P0, b"ok")
    started(broker).settle()
    assert offsets(broker) == [0, 1, 2, 3, 4]


@BOTH
def test_reading_that_goes_back_drops_what_was_in_hand(broker: MemoryBroker, guarantee: Guarantee) -> None:
    """A topic was cut off, or made again and is shorter: the client begins anew by itself."""
    broker.send(P0, *[b"ok"] * 5)
    worker = started(broker, guarantee)
    worker.stuck = True
    worker.turn(3)
    assert worker.loop.in_flight == 5
    broker.inputs[P0].clear()
    broker.send(P0, b"ok", b"ok")
    worker.turn(3)
    worker.stuck = False
    worker.settle()
    assert offsets(broker) == [0, 1]
    assert broker.committed[P0] == 2


@BOTH
def test_what_is_under_way_when_reading_goes_back_does_not_win(broker: MemoryBroker, guarantee: Guarantee) -> None:
    broker.send(P0, *[b"ok"] * 3)
    worker = started(broker, guarantee, slow_offsets=True)
    worker.turn(3)
    broker.inputs[P0].clear()
    broker.send(P0, b"ok", b"ok")
    worker.turn(3)
    worker.slow_offsets = False
    worker.answer_offsets()
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 0, 1]
    assert broker.committed[P0] == 2
