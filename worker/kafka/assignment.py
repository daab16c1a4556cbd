"""The partitions that are assigned to a consumer, and what it knows of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from confluent_kafka import TopicPartition

from worker.messages import Partition
from worker.rules.offset_metadata import TopicId


@dataclass(slots=True)
class FetchState:
    """What the consumer knows of one partition while it is assigned. It is forgotten whole when the partition leaves.

    ``next_offset`` is where reading goes on, None before the first record: the client's own position is unknown after a
    seek, and passes over what is held back. ``end_offset`` is where the partition ended when that was last seen, behind
    transaction markers and aborted records, which take offsets too. ``asked_offset`` is the last one whose commit was
    asked for without waiting, ``failed_offset`` the one to commit again because such a commit failed. ``asked_end`` is
    the end of a partition that was never fetched from. ``topic_id`` is of the topic that all these offsets belong to,
    None where that is not known.

    ``bad_offset`` names a batch that cannot be read, ``bad_times`` how often that was met in a row, ``bad_error`` why;
    while ``is_passing`` no record is taken. Since ``quiet_since_s`` nothing came at ``quiet_offset``. ``stalled``
    says why it cannot be read until somebody mends something; it is empty as a rule.
    """

    partition: Partition
    generation: int
    held: bool = False
    next_offset: int | None = None
    end_offset: int | None = None
    asked_offset: int | None = None
    failed_offset: int | None = None
    asked_end: int | None = None
    topic_id: TopicId | None = None
    bad_offset: int | None = None
    bad_times: int = 0
    bad_error: str = ""
    is_passing: bool = False
    stalled: str = ""
    quiet_offset: int | None = None
    quiet_since_s: float = 0.0


class Assignment(Mapping[Partition, int]):
    """Assigned partitions and their generations, each of which is given once: a former assignment has another.

    ``known`` holds the partitions themselves. A message's topic and number find them there as they are.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[str | None, int | None], FetchState] = {}
        self._last_generation = 0

    def __getitem__(self, partition: Partition) -> int:
        return self.known[partition].generation

    def __iter__(self) -> Iterator[Partition]:
        return (assigned.partition for assigned in self.known.values())

    def __len__(self) -> int:
        return len(self.known)

    def next_offsets(self) -> dict[Partition, int]:
        """Where reading goes on in each partition, as far as it has begun."""
        return {each.partition: each.next_offset for each in self.known.values() if each.next_offset is not None}

    def add(self, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """Take partitions in, each under a generation of its own. Returns these generations."""
        fresh: dict[Partition, int] = {}
        for partition in partitions:
            self._last_generation += 1
            fresh[partition] = self._last_generation
            self.known[partition] = FetchState(partition, self._last_generation)
        return fresh

    def forget(self, partitions: Iterable[Partition]) -> None:
        """Drop partitions and everything known of them."""
        for partition in partitions:
            self.known.pop(partition, None)


def positions_of(partitions: Iterable[Partition]) -> list[TopicPartition]:
    """Partitions in the client's type."""
    return [TopicPartition(partition.topic, partition.number) for partition in partitions]


def partitions_of(positions: Iterable[TopicPartition]) -> list[Partition]:
    """The client's positions as partitions, without their offsets."""
    return [Partition(position.topic, position.partition) for position in positions]
