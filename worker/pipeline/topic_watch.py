"""Input topics that were deleted and made again while their partitions are assigned: noticed, said, and counted.

The reaction, reading from the beginning under a new generation, is `worker.pipeline.loop.Loop`'s.
"""

from __future__ import annotations

import structlog

from worker.kafka.consumer import Consumer
from worker.kafka.topic_ids import TopicChange, TopicIds
from worker.messages import Partition
from worker.pipeline.clocks import Clocks

log = structlog.get_logger("worker.kafka")


class TopicWatch:
    """Looks at the topics' ids at an interval. Kafka thread only; never waits."""

    def __init__(self, ids: TopicIds, consumer: Consumer, clocks: Clocks) -> None:
        self._ids = ids
        self._consumer = consumer
        self._clocks = clocks
        # Where reading stood when the ids were asked for: if the answer is the id that we know, all before is of it.
        self._asked: dict[Partition, int] = {}
        self._confirmed: dict[Partition, int] = {}
        self._changes: list[TopicChange] = []

    def step(self) -> None:
        """Ask if it is time, and look whether the answer is there."""
        if self._ids.ask(self._clocks.monotonic_s()):
            self._asked = self._consumer.assignment.next_offsets()
        elif (changes := self._ids.answer()) is not None:
            self._changes += [change for change in changes if change.is_made_again]
            changed = {change.topic for change in self._changes}
            self._confirmed |= {p: offset for p, offset in self._asked.items() if p.topic not in changed}

    @property
    def has_changes(self) -> bool:
        """True if topics were made again whose partitions are to be read from their beginning."""
        return bool(self._changes)

    def take(self) -> list[Partition]:
        """The assigned partitions of topics that were made again. Says so, a line each."""
        changes, self._changes = self._changes, []
        found: list[Partition] = []
        read_until = self._consumer.assignment.next_offsets()
        for change in changes:
            for partition in sorted(p for p in self._consumer.assignment if p.topic == change.topic):
                found.append(partition)
                begin, read = self._confirmed.pop(partition, 0), read_until.get(partition, 0)
                log.error(
                    "topic_made_again",
                    partition=str(partition),
                    former_id=change.former.topic_id,
                    id=change.current.topic_id,
                    # Where the position lies before what was known to be old, the client began anew by itself.
                    answered_again_at_most=read - begin if read >= begin else read,
                    reads_from="the beginning",
                )
        return found
