"""Partitions that are read once more from before their position: it lies in a topic that is not there any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition

from worker.errors import BrokerAway
from worker.kafka.assignment import Assignment, FetchState, positions_of
from worker.kafka.offset_commits import OffsetCommits
from worker.kafka.skips import Skips
from worker.messages import Partition
from worker.rules.offset_metadata import TopicId


class Rewinds:
    """What the client rewound by itself, and what is rewound by us.

    ``waiting`` are partitions of the first kind and the offsets that reading began anew at. Nothing is taken of them
    until `begin`, because what was read before under the same numbers may still be in hand.

    Args:
        client: The member of the group.
        assignment: What is assigned to it.
        commits: Its committed offsets.
        skips: Says where reading went on, and why.
    """

    def __init__(self, client: Client, assignment: Assignment, commits: OffsetCommits, skips: Skips) -> None:
        self._client = client
        self._assignment = assignment
        self._commits = commits
        self._skips = skips
        self.waiting: dict[Partition, int] = {}

    def jumped(self, assigned: FetchState, offset: int) -> bool:
        """Reading goes on at an offset that is not the next one. True if it went back."""
        is_back = self._skips.jumped(assigned, offset)
        if is_back:
            self.waiting[assigned.partition] = offset
        return is_back

    def begin(
        self, begins: Mapping[Partition, int], topic_ids: Mapping[Partition, TopicId], *, is_paused: bool
    ) -> dict[Partition, int]:
        """Read assigned partitions from other offsets (`OFFSET_BEGINNING` is one). Returns their new generations.

        ``topic_ids`` are of those whose topic was made again. ``is_paused``: nothing is fetched for now.
        """
        former = {partition: self._assignment.known[partition].topic_id for partition in begins}
        fresh = self._assignment.add(begins)
        for partition, offset in begins.items():
            assigned = self._assignment.known[partition]
            assigned.topic_id = topic_ids.get(partition, former[partition])
            assigned.next_offset = max(0, offset)
            self._client.seek(TopicPartition(partition.topic, partition.number, offset))
        self.forget(begins)
        (self._client.pause if is_paused else self._client.resume)(positions_of(begins))
        self.commit({partition: max(0, offset) for partition, offset in begins.items()})
        return fresh

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commit where reading begins, so that no position of a former topic outlives this process."""
        if offsets:
            with suppress(BrokerAway):  # it is noted, and committed again
                self._commits.commit(offsets, wait=False)

    def forget(self, partitions: Iterable[Partition]) -> None:
        """These partitions leave."""
        for partition in partitions:
            self.waiting.pop(partition, None)
