from __future__ import annotations

from tests.brokers.memory import MemoryBroker
from tests.delivery.observed import BOTH, P0, offsets, started
from tests.delivery.worker import Guarantee, Worker
from worker.kafka.topic_ids import TopicChange, TopicState
from worker.pipeline.clocks import Clocks
from worker.pipeline.topic_watch import TopicWatch


class Ids:
    """Answers at once, in the step after it was asked; ``current`` is what the cluster would say."""

    def __init__(self) -> None:
        self.known = self.current = "old"
        self._is_asked = False

    def ask(self, now_s: float) -> bool:
        was_asked, self._is_asked = self._is_asked, True
        return not was_asked

    def answer(self) -> list[TopicChange]:
        self._is_asked = False
        former, self.known = self.known, self.current
        return [TopicChange(P0.topic, TopicState(former, 2), TopicState(self.known, 2))]


def _watched(broker: MemoryBroker, guarantee: Guarantee) -> tuple[Worker, Ids]:
    worker, ids = started(broker, guarantee), Ids()
    clocks = Clocks(worker.clock, worker.clock, worker.wait)
    worker.loop.topic_watch = TopicWatch(ids, worker.consumer, clocks)  # type: ignore[arg-type]
    return worker, ids


@BOTH
def test_a_topic_made_again_is_read_from_its_beginning(broker: MemoryBroker, guarantee: Guarantee) -> None:
    broker.send(P0, *[b"ok"] * 5)
    worker, ids = _watched(broker, guarantee)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3, 4]
    ids.current = "new"
    worker.turn(4)
    worker.settle()
    assert offsets(broker) == [0, 1, 2, 3, 4] * 2
    assert broker.committed[P0] == 5


@BOTH
def test_a_late_result_of_the_former_topic_is_dropped(broker: MemoryBroker, guarantee: Guarantee) -> None:
    broker.send(P0, *[b"ok"] * 5)
    worker, ids = _watched(broker, guarantee)
    worker.stuck = True
    worker.turn(3)
    ids.current = "new"
    broker.inputs[P0].clear()
    worker.turn(3)  # noticed while the device computes
    broker.send(P0, b"ok")
    worker.stuck = False
    worker.settle()
    assert offsets(broker) == [0]
    assert broker.committed[P0] == 1
