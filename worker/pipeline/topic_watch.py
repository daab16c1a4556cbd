"""Topics that we read: those that may not be read, and those that were deleted and made again.

The second is noticed at the assignment of their partitions or while they are read.

What follows from it, reading from the beginning, is done by `worker.pipeline.loop.Loop` and `worker.kafka.consumer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from worker.errors import BrokerAway
from worker.kafka.consumer import Consumer
from worker.kafka.topic_ids import TopicIds, TopicState
from worker.messages import Partition
from worker.pipeline.clocks import Clocks
from worker.rules.offset_metadata import TopicId, topic_id_of

log = structlog.get_logger("worker.kafka")

# At an assignment the group waits for nobody, but the partitions do.
_FETCH_TIMEOUT_S: Final = 2.0
_COMMITTED_TIMEOUT_S: Final = 1.0


class TopicWatch:
    """Compares the ids of topics with those that offsets belong to. Kafka thread only."""

    def __init__(self, ids: TopicIds, consumer: Consumer, clocks: Clocks) -> None:
        self._ids = ids
        self._consumer = consumer
        self._clocks = clocks
        # Where reading stood when the ids were asked for: if the answer is the id that we know, all before is of it.
        self._asked: dict[Partition, int] = {}
        self._confirmed: dict[Partition, int] = {}
        self._changes: dict[str, TopicId] = {}

    def assigned(self, committed: Mapping[Partition, tuple[int, str]]) -> list[Partition]:
        """Of partitions that have just been assigned, those whose committed offset is one of a former topic. Says so.

        ``committed`` are offsets and what stands beside them. An offset without an id belongs to the topic that is
        there now, as far as anybody knows.
        """
        known = self._consumer.assignment.known
        states = self._ids.fetch({partition.topic for partition in committed}, _FETCH_TIMEOUT_S) if committed else {}
        found: list[Partition] = []
        for partition, (offset, metadata) in sorted(committed.items()):
            assigned, former = known[partition], topic_id_of(metadata)
            state = states.get(partition.topic)
            current = None if state is None else state.topic_id
            if current is not None and former is not None and current.is_another_than(former):
                found.append(partition)
                assigned.next_offset = 0
                _say(partition, former, current, offset)
            assigned.topic_id = current or former
        return found

    def step(self) -> None:
        """Ask if it is time, and look whether the answer is there. Waits for nothing, as a rule."""
        if self._ids.ask(self._clocks.monotonic_s()):
            self._asked = self._consumer.assignment.next_offsets()
        elif (states := self._ids.answer()) is not None:
            self._consumer.subscription.learn(states, self._ids.errors)
            self._learn(states)
            for assigned in self._consumer.assignment.known.values():
                state, former = states.get(assigned.partition.topic), assigned.topic_id
                if state is None or state.topic_id is None or former is None:
                    continue
                if state.topic_id.is_another_than(former):
                    self._changes[assigned.partition.topic] = state.topic_id
                elif (offset := self._asked.get(assigned.partition)) is not None:
                    self._confirmed[assigned.partition] = offset

    def _learn(self, states: Mapping[str, TopicState]) -> None:
        """Nobody answered when these partitions were assigned: now we are told which topic their offsets belong to."""
        without_id = [
            assigned.partition
            for assigned in self._consumer.assignment.known.values()
            if assigned.topic_id is None and (state := states.get(assigned.partition.topic)) and state.topic_id
        ]
        if without_id:
            try:
                committed = self._consumer.commits.committed(without_id, _COMMITTED_TIMEOUT_S)
            except BrokerAway as error:  # the next time
                log.warning("topic_id_unknown", error=str(error))
                return
            for partition, (_, metadata) in committed.items():
                former = topic_id_of(metadata)
                self._consumer.assignment.known[partition].topic_id = former or states[partition.topic].topic_id

    @property
    def has_changes(self) -> bool:
        """True if topics were made again whose partitions are to be read from their beginning."""
        return bool(self._changes)

    def take(self) -> dict[Partition, TopicId]:
        """The assigned partitions of topics that were made again, and their ids now. Says so, a line each."""
        changes, self._changes = self._changes, {}
        found: dict[Partition, TopicId] = {}
        for assigned in sorted(self._consumer.assignment.known.values(), key=lambda each: each.partition):
            current = changes.get(assigned.partition.topic)
            if current is None or assigned.topic_id is None or not current.is_another_than(assigned.topic_id):
                continue
            found[assigned.partition] = current
            begin, read = self._confirmed.pop(assigned.partition, 0), assigned.next_offset or 0
            # Where the position lies before what was known to be old, the client began anew by itself.
            _say(assigned.partition, assigned.topic_id, current, read - begin if read >= begin else read)
        return found


def _say(partition: Partition, former: TopicId, current: TopicId, answered: int) -> None:
    """``answered`` is how many records of the new topic can have been answered before this was noticed."""
    log.error(
        "topic_made_again",
        partition=f"{partition.topic}-{partition.number}",
        former_id=former.topic_id,
        id=current.topic_id,
        answered_again_at_most=answered,
        reads_from="the beginning",
    )
