"""Committed offsets: asking for them, committing, and committing again what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import structlog
from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from worker.errors import BrokerAway
from worker.kafka.assignment import Assignment, positions_of
from worker.messages import Partition
from worker.rules.crash_count import Mark
from worker.rules.offset_metadata import NO_MARK, render

log = structlog.get_logger("worker.kafka")

_WATERMARK_TIMEOUT_S: Final = 5.0


class OffsetCommits:
    """Commits the offsets of assigned partitions, and of no others.

    Args:
        client: The member of the group.
        assignment: What is assigned to it. The offset whose commit failed is kept with its partition.
        from_end: A partition without a committed offset is read from its end (auto.offset.reset).
    """

    def __init__(self, client: Client, assignment: Assignment, *, from_end: bool) -> None:
        self._client = client
        self._assignment = assignment
        self._from_end = from_end
        # False: no partition has a failed offset. Looking through all of them in every step of the loop would cost.
        self._has_failed = False

    def committed(self, partitions: Sequence[Partition], timeout_s: float) -> dict[Partition, tuple[int, str]]:
        """The group's offset and its metadata for each partition; where it has none, the offset reading begins at.

        Raises:
            BrokerAway: no answer in time.
        """
        try:
            answer = self._client.committed(positions_of(partitions), timeout=timeout_s)
            found = {
                Partition(p.topic, p.partition): (p.offset if p.offset >= 0 else self._beginning(p), p.metadata or "")
                for p in answer
                if p.error is None
            }
            for partition, (offset, _) in found.items():
                assigned = self._assignment.known.get(partition)
                if assigned is not None and assigned.next_offset is None:
                    assigned.next_offset = offset  # where reading begins
        except KafkaException as error:
            raise BrokerAway(
                f"committed offsets unknown: {error.args[0].str()}; a transaction that is open on them holds them "
                "back, and one that hangs for longer than transaction.timeout.ms is ended with kafka-transactions.sh"
            ) from error
        return found

    def _beginning(self, partition: TopicPartition) -> int:
        low, high = self._client.get_watermark_offsets(partition, timeout=_WATERMARK_TIMEOUT_S)
        return high if self._from_end else low

    def metadata(
        self, partitions: Iterable[Partition], marks: Mapping[Partition, Mark] | None = None
    ) -> dict[Partition, str]:
        """What to commit beside the offsets of assigned partitions: their topics' ids, and marks where there are."""
        found: dict[Partition, str] = {}
        last, ordinary = None, ""  # of one topic all partitions say the same, as a rule
        for partition in partitions:
            if (assigned := self._assignment.known.get(partition)) is None:
                continue
            if assigned.topic_id is not last:
                last, ordinary = assigned.topic_id, render(NO_MARK, assigned.topic_id)
            mark = marks.get(partition) if marks else None
            found[partition] = ordinary if mark is None else render(mark, assigned.topic_id)
        return found

    def commit(
        self, offsets: Mapping[Partition, int], *, wait: bool, metadata: Mapping[Partition, str] | None = None
    ) -> None:
        """Commit the offset behind the last resolved record of each partition, and those that failed.

        ``metadata`` is what `metadata` makes of no marks, where it is not given.
        Without ``wait`` the answer arrives in a later poll, and a commit that failed is sent again with the next one
        (without its mark: what comes later knows better).

        Raises:
            BrokerAway: the commit failed. With ``wait`` that is the end of it: what comes later may say more, and
                sending these offsets again could take it back.
        """
        known = self._assignment.known
        wanted = {partition: offset for partition, offset in offsets.items() if partition in known}
        if self._has_failed:
            wanted = self._failed() | wanted
        if not wanted:
            self._has_failed = False
            return
        if not wait:
            for partition, offset in wanted.items():
                known[partition].asked_offset = offset
        beside = self.metadata(wanted) | dict(metadata or {})
        positions = [TopicPartition(p.topic, p.number, offset, beside[p]) for p, offset in wanted.items()]
        try:
            if wait:
                self._client.commit(offsets=positions, asynchronous=False)
            else:
                self._client.commit(offsets=positions, asynchronous=True)
        except KafkaException as error:
            if not wait:
                self._note_failed(wanted)
            raise BrokerAway(f"offsets not committed: {error.args[0].str()}") from error
        for partition in wanted:
            known[partition].failed_offset = None
        self._has_failed = False

    def prove_membership(self, timeout_s: float) -> None:
        """Commit what is committed: the group takes that from its members only.

        Raises:
            BrokerAway: it was not taken. If another process took our place, the next poll says so.
        """
        found = self.committed(list(self._assignment), timeout_s)
        self.commit(
            {partition: offset for partition, (offset, _) in found.items()},
            wait=True,
            metadata={partition: metadata for partition, (_, metadata) in found.items()},
        )

    def recommit(self) -> None:
        """Send again what a commit without ``wait`` failed to commit, if anything."""
        if self._has_failed:
            try:
                self.commit({}, wait=False)
            except BrokerAway as error:
                log.warning("commit_failed", error=str(error), partitions=len(self._failed()))

    def answered(self, error: KafkaError | None, positions: Sequence[TopicPartition]) -> None:
        """What became of a commit that was not waited for: librdkafka's ``on_commit``."""
        failed = {Partition(p.topic, p.partition) for p in positions if error is not None or p.error is not None}
        if failed:
            log.warning("commit_failed", error=str(error), partitions=len(failed))
        # Not the offset that failed: one that was asked for after it may be committed by now.
        known = self._assignment.known
        asked = {p: known[p].asked_offset for p in failed if p in known}
        self._note_failed({p: offset for p, offset in asked.items() if offset is not None})

    def _note_failed(self, offsets: Mapping[Partition, int]) -> None:
        for partition, offset in offsets.items():
            self._assignment.known[partition].failed_offset = offset
            self._has_failed = True

    def _failed(self) -> dict[Partition, int]:
        found = {assigned.partition: assigned.failed_offset for assigned in self._assignment.known.values()}
        return {partition: offset for partition, offset in found.items() if offset is not None}
