from __future__ import annotations

from collections.abc import Collection

import pytest
from confluent_kafka import KafkaError

from tests.brokers.memory import MemoryBroker, retriable
from tests.delivery.observed import BOTH, P0, offsets, started
from tests.delivery.worker import Guarantee, Worker
from worker.kafka.topic_ids import TopicState
from worker.rules.crash_count import Mark
from worker.rules.offset_metadata import TopicId, render, topic_id_of


class Ids:
    """Answers at once, in the step after it was asked; ``current`` is what the cluster would say, "" nothing."""

    def __init__(self, current: str = "old") -> None:
        self.current = current
        self.errors: dict[str, KafkaError] = {}
        self._is_asked = False

    def ask(self, now_s: float) -> bool:
        was_asked, self._is_asked = self._is_asked, True
        return not was_asked

    def answer(self) -> dict[str, TopicState]:
        self._is_asked = False
        return self.fetch([P0.topic], 0)

    def fetch(self, topics: Collection[str], timeout_s: float) -> dict[str, TopicState]:
        return {topic: TopicState(TopicId(self.current, "cluster"), 2) for topic in topics if self.current}


def _made_again(broker: MemoryBroker, ids: Ids, *values: bytes) -> None:
    """Under the same name, so that committed offsets stay, as they do where a commit comes after the deletion."""
    ids.current = "new"
    broker.inputs[P0].clear()
    broker.send(P0, *values)


@BOTH
def test_a_topic_made_again_is_read_from_its_beginning(broker: MemoryBroker, guarantee: Guarantee) -> None:
    broker.send(P0, *[b"ok"] * 5)
    ids = Ids()
    worker = started(broker, guarantee, topic_ids=ids)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3, 4]
    ids.current = "new"
    worker.turn(4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3, 4] * 2
    assert broker.committed[P0] == 5
    assert topic_id_of(broker.metadata[P0]) == TopicId("new", "cluster")


@BOTH
def test_a_late_result_of_the_former_topic_is_dropped(broker: MemoryBroker, guarantee: Guarantee) -> None:
    broker.send(P0, *[b"ok"] * 5)
    ids = Ids()
    worker = started(broker, guarantee, topic_ids=ids)
    worker.stuck = True
    worker.turn(3)
    _made_again(broker, ids)
    worker.turn(3)  # noticed while the device computes
    broker.send(P0, b"ok")
    worker.stuck = False
    worker.settle()
    assert offsets(broker) == [0]
    assert broker.committed[P0] == 1


@BOTH
def test_a_restart_sees_that_the_topic_was_made_again(broker: MemoryBroker, guarantee: Guarantee) -> None:
    broker.send(P0, *[b"ok"] * 5)
    ids = Ids()
    started(broker, guarantee, topic_ids=ids).settle()
    _made_again(broker, ids, *[b"ok"] * 7)
    worker = started(broker, guarantee, topic_ids=ids)
    worker.settle()
    assert offsets(broker) == [*range(5), *range(7)]
    assert broker.committed[P0] == 7
    assert topic_id_of(broker.metadata[P0]) == TopicId("new", "cluster")


def test_an_empty_topic_made_again_leaves_no_position_of_the_former(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 5)
    ids = Ids()
    started(broker, topic_ids=ids).settle()
    _made_again(broker, ids)
    started(broker, topic_ids=ids).settle()
    assert broker.committed[P0] == 0
    assert topic_id_of(broker.metadata[P0]) == TopicId("new", "cluster")


def test_a_mark_of_the_former_topic_says_nothing_of_the_new_one(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 5)
    broker.committed[P0] = 3
    broker.metadata[P0] = render(Mark(until=9, deaths=2), TopicId("old", "cluster"))
    worker = started(broker, topic_ids=Ids("new"))
    worker.settle()
    assert offsets(broker, dead=False) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("metadata", ["", "damaged", '{"topic_id": "old", "cluster_id": "another"}'])
def test_offsets_of_an_older_release_or_another_cluster_are_gone_on_from(broker: MemoryBroker, metadata: str) -> None:
    broker.send(P0, *[b"ok"] * 5)
    broker.committed[P0], broker.metadata[P0] = 3, metadata
    started(broker, topic_ids=Ids("new")).settle()
    assert offsets(broker) == [3, 4]
    assert topic_id_of(broker.metadata[P0]) == TopicId("new", "cluster")


def test_an_id_that_is_not_answered_at_the_assignment_is_compared_once_it_is(broker: MemoryBroker) -> None:
    broker.send(P0, *[b"ok"] * 5)
    broker.committed[P0] = 3
    broker.metadata[P0] = render(topic_id=TopicId("old", "cluster"))
    ids = Ids("")
    worker = started(broker, topic_ids=ids)
    worker.turn(20)
    assert offsets(broker) == [3, 4]
    assert topic_id_of(broker.metadata[P0]) == TopicId("old", "cluster")
    ids.current = "new"
    worker.turn(4)
    worker.settle()
    assert offsets(broker) == [3, 4, 0, 1, 2, 3, 4]


def test_a_committed_offset_that_was_not_answered_at_the_assignment_is_compared_once_it_is(
    broker: MemoryBroker,
) -> None:
    broker.send(P0, *[b"ok"] * 5)
    broker.committed[P0] = 3
    broker.metadata[P0] = render(topic_id=TopicId("old", "cluster"))
    worker = Worker(broker, topic_ids=Ids("new"))
    broker.assign(P0)
    broker.faults["committed"].append(retriable())
    worker.turn(6)
    worker.settle()
    assert offsets(broker)[-5:] == [0, 1, 2, 3, 4]
