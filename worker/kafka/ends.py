"""Where assigned partitions end, and what waits before that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaException, TopicPartition

from worker.kafka.assignment import Assignment
from worker.messages import Partition

# A partition that was never fetched from tells no end, so its leader is asked: of a few partitions each time that lag
# is, for a moment, and of no more once a leader does not answer. An answer takes a millisecond.
_ASKED: Final = 10
_TIMEOUT_S: Final = 0.1


class Lag(NamedTuple):
    """What waits in a partition: ``unread`` are the records up to its end, those of open transactions included.

    ``unstable`` are those of them that lie behind the last stable offset: a transaction of their producer is open, and
    until it ends nobody may read them. They are known once reading has come that far.
    """

    unread: int
    unstable: int


class Ends:
    """What the fetches of a consumer told of the ends of its partitions."""

    def __init__(self, client: Client, assignment: Assignment) -> None:
        self._client = client
        self._assignment = assignment

    def end(self, partition: Partition) -> int | None:
        """The offset behind the last record of a partition, as the last fetch told it; None before the first."""
        _, high = self._client.get_watermark_offsets(TopicPartition(partition.topic, partition.number), cached=True)
        return int(high) if high >= 0 else None

    def reached(self, partition: Partition) -> int | None:
        """The end of a partition of which all there is has been read, as far as is known; else None.

        It lies behind the markers of transactions and behind aborted records, which no client sees.
        """
        assigned = self._assignment.known.get(partition)
        return assigned.end_offset if assigned is not None and assigned.next_offset == assigned.end_offset else None

    def lag(self, begins: Mapping[Partition, int | None]) -> dict[Partition, Lag]:
        """What waits in each assigned partition.

        ``begins`` has the offsets at which reading begins, as far as they are known. A partition of which that or the
        end is not known has no lag yet.
        """
        found: dict[Partition, Lag] = {}
        asked = 0
        for assigned in self._assignment.known.values():
            partition = assigned.partition
            end = self.end(partition)
            if end is None and asked < _ASKED:
                asked += 1
                try:
                    position = TopicPartition(partition.topic, partition.number)
                    assigned.asked_end = int(self._client.get_watermark_offsets(position, timeout=_TIMEOUT_S)[1])
                except KafkaException:
                    asked = _ASKED  # the next time
            end = assigned.asked_end if end is None else end
            next_offset = begins.get(partition) if assigned.next_offset is None else assigned.next_offset
            unread = 0 if end is None or next_offset is None else max(0, end - next_offset)
            found[partition] = Lag(unread, 0 if self.reached(partition) is None else unread)
        return found
