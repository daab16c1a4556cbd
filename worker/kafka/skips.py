"""Records that nobody will read, and why: what lies between where reading should have gone on and where it did."""

from __future__ import annotations

from typing import NamedTuple

import structlog
from confluent_kafka import Consumer as Client
from confluent_kafka import TopicPartition

from worker.kafka.assignment import FetchState
from worker.messages import Partition

log = structlog.get_logger("worker.kafka")


class Skip(NamedTuple):
    """Offsets passed over: from one to before another. ``reason`` is a label of the metric."""

    partition: Partition
    from_offset: int
    to_offset: int
    reason: str


class Skips:
    """What was passed over and is not counted yet. Each is one line of the log.

    Where an offset is out of range librdkafka goes on by itself as auto.offset.reset says, and tells its log alone.

    Args:
        client: The member of the group.
        from_end: Its reset goes to the end (auto.offset.reset).
    """

    def __init__(self, client: Client, *, from_end: bool) -> None:
        self._client = client
        self._from_end = from_end
        self._found: list[Skip] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, partition: Partition, from_offset: int, to_offset: int, reason: str) -> None:
        """Offsets of a partition are passed over for good."""
        self._found.append(Skip(partition, from_offset, to_offset, reason))
        log.error(
            "records_skipped",
            partition=f"{partition.topic}-{partition.number}",
            from_offset=from_offset,
            to_offset=to_offset,
            records=to_offset - from_offset,
            reason=reason,
        )

    def jumped(self, assigned: FetchState, offset: int) -> bool:
        """Reading went on at an offset that is not the next one, as it does behind markers of transactions too.

        True if it went back.
        """
        at = assigned.next_offset
        if at is None or at == offset:
            return False
        partition = assigned.partition
        low, high = self._client.get_watermark_offsets(TopicPartition(*partition), cached=True)
        if at < low <= offset:
            self.add(partition, at, offset if self._from_end else low, "retention")
        elif offset < at and high >= 0:
            # Everything from here on is read again. What the group had read beyond the end is not there any more.
            log.error(
                "offset_reset",
                partition=f"{partition.topic}-{partition.number}",
                from_offset=at,
                to_offset=offset,
                records=high - offset,
                why="the offset lies beyond the end: the topic was cut off or made again; its records are read again",
            )
            self._found.append(Skip(partition, high, max(high, at), "reset"))
        return offset < at

    def take(self) -> list[Skip]:
        """What came since the last call."""
        found, self._found = self._found, []
        return found
