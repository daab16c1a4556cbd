"""The quarantine when partitions come and go and nobody dies."""

from __future__ import annotations

import contextlib

from tests.brokers.memory import MemoryBroker
from tests.delivery.doubles import Killed, answered, partition, reason
from tests.delivery.worker import BATCH, Worker
from worker.pipeline.quarantine import SUSPECT_DELAY_S
from worker.rules.crash_count import STARTS, Mark
from worker.rules.offset_metadata import mark_of

P0 = partition(0)


def started(broker: MemoryBroker) -> Worker:
    worker = Worker(broker)
    broker.assign(P0)
    worker.loop.step()
    return worker


def quarantined(broker: MemoryBroker) -> Worker:
    """A worker that has a record in hand which is marked, after as many deaths as it takes."""
    broker.send(P0, *[b"ok"] * 6)
    for _ in range(STARTS):  # each dies with records in hand, and none is to blame
        busy(started(broker))
    worker = started(broker)
    busy(worker)
    assert mark_of(broker.metadata[P0]).deaths == 1
    return worker


def busy(worker: Worker) -> None:
    """Let it take in hand what there is, and answer nothing."""
    worker.stuck = True
    deadline_s = worker.clock() + SUSPECT_DELAY_S + 1
    while worker.clock() < deadline_s:
        worker.loop.step()


def test_a_partition_that_is_lost_and_comes_back_to_a_worker_that_lives_condemns_nothing(broker: MemoryBroker) -> None:
    worker = quarantined(broker)
    for _ in range(3):
        broker.lose(P0)
        worker.loop.step()
        broker.assign(P0)
        for _ in range(5):
            worker.loop.step()
    worker.stuck = False
    worker.settle()
    assert [(answered(output)[1], reason(output)) for output in broker.visible] == [(i, "") for i in range(6)]


def test_another_worker_that_gets_it_tries_the_record_once_more_and_a_third_condemns_it(broker: MemoryBroker) -> None:
    """They cannot know that the first one lives."""
    quarantined(broker)
    busy(started(broker))
    assert mark_of(broker.metadata[P0]).deaths == 2
    assert broker.visible == []
    started(broker).settle()
    assert [reason(output) for output in broker.visible] == ["crash", *[""] * 5]


def test_a_record_that_was_marked_once_and_is_answered_is_forgotten(broker: MemoryBroker) -> None:
    quarantined(broker)
    started(broker).settle()
    assert [reason(output) for output in broker.visible] == [""] * 6
    assert mark_of(broker.metadata[P0]) == Mark()


def test_a_worker_that_loses_its_partitions_again_and_again_counts_no_start(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 6)
    worker = started(broker)
    busy(worker)
    for _ in range(2 * STARTS):
        broker.lose(P0)
        worker.loop.step()
        broker.assign(P0)
        busy(worker)
    assert mark_of(broker.metadata[P0]).starts == 1


def test_while_a_start_counts_little_is_in_hand(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 200)
    worker = started(broker)
    worker.stuck = True
    for _ in range(50):
        worker.loop.step()
    assert worker.loop.in_flight <= 3 * BATCH.max_messages
    worker.stuck = False
    worker.settle()
    assert broker.committed[P0] == 200
    assert mark_of(broker.metadata[P0]).starts == 0


def test_a_killer_behind_much_that_was_in_hand_is_found_all_the_same(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 34, b"kill", *[b"ok"] * 30)
    deaths = 0
    while broker.committed.get(P0, 0) < 65:
        worker = started(broker)
        with contextlib.suppress(Killed):
            worker.settle(600)
            break
        deaths += 1
    assert deaths <= 6
    assert [answered(output)[1] for output in broker.visible if reason(output)] == [34]
