"""The quarantine at work: marks in committed offsets, and one record at a time (rules: `worker.core.quarantine`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from worker.core.offsets import Release
from worker.core.quarantine import Mark, begin, parse, render
from worker.errors import BrokerAway
from worker.kafka.consumer import Consumer
from worker.messages import Partition, Record

log = structlog.get_logger("worker.kafka")

# A transaction that a dead predecessor left open is aborted by the broker after ten seconds; until then committed
# offsets are not stable and the answer waits.
MARK_TIMEOUT_S: Final = 15.0


@dataclass(slots=True)
class Ward:
    """A quarantined partition. ``condemned``: its next record was in hand when the process died."""

    until: int
    condemned: bool
    record: Record | None = None  # read, not yet treated
    suspect_at: int | None = None  # the offset of the record that is marked, until it is answered


class Quarantine:
    """Counts starts without progress and reads quarantined partitions one record at a time. Kafka thread only.

    False while no partition is quarantined and every partition has made progress: the hot path asks nothing else.
    """

    def __init__(self, consumer: Consumer, window: int) -> None:
        self._consumer = consumer
        self._window = window
        self._starts: dict[Partition, tuple[int, Mark]] = {}  # no progress since assigned: offset and former mark
        self._wards: dict[Partition, Ward] = {}

    def __bool__(self) -> bool:
        return bool(self._starts or self._wards)

    def assigned(self, partitions: Sequence[Partition]) -> None:
        """Raise the count of starts, or begin a quarantine, before anything of the partitions is read."""
        marks: dict[Partition, tuple[int, Mark]] = {}
        try:
            known = self._consumer.committed(partitions, MARK_TIMEOUT_S)
            if unknown := sorted(set(partitions) - known.keys()):
                log.warning(
                    "starts_not_counted",
                    error="no stable offset is committed",
                    partitions=[str(partition) for partition in unknown],
                )
            for partition, (offset, metadata) in known.items():
                former = parse(metadata)
                mark = begin(former, offset, self._window)
                marks[partition] = offset, mark
                if mark.quarantined:
                    self._wards[partition] = Ward(mark.until, condemned=mark.suspect)
                    log.error("quarantined", partition=str(partition), offset=offset, mark=render(mark))
                else:
                    self._starts[partition] = offset, former
            self._commit(marks)
        except BrokerAway as error:
            # Not counted this time: a record that kills takes one more start to be found.
            log.warning("starts_not_counted", error=str(error))

    def hand_over(self, partitions: set[Partition]) -> None:
        """Take this start's marks back: a partition handed over in good order says nothing against its next record."""
        marks = {p: mark for p, mark in self._starts.items() if p in partitions}
        for partition in partitions & self._wards.keys():
            ward = self._wards[partition]
            if ward.suspect_at is not None:
                marks[partition] = ward.suspect_at, Mark(until=ward.until)
        try:
            self._commit(marks)
        except BrokerAway as error:
            log.warning("starts_not_taken_back", error=str(error))

    def forget(self, partition: Partition) -> None:
        """The partition is no longer ours."""
        self._starts.pop(partition, None)
        self._wards.pop(partition, None)

    def holds(self, partition: Partition) -> bool:
        """True for a quarantined partition."""
        return partition in self._wards

    def take(self, record: Record) -> None:
        """Take the next record of a quarantined partition in hand; no more is fetched until it is answered."""
        position = record.position
        self._consumer.hold(position.partition, position.offset + 1)
        self._wards[position.partition].record = record

    def waiting(self) -> Ward | None:
        """A quarantined partition whose record waits for its turn; while one is marked, no other."""
        marked = self._marked()
        wards = self._wards.values() if marked is None else [marked]
        return next((ward for ward in wards if ward.record is not None), None)

    @property
    def has_wards(self) -> bool:
        """True while any partition is quarantined."""
        return bool(self._wards)

    @property
    def has_suspect(self) -> bool:
        """True while the mark of a record stands: from before it is decoded until its answer is committed."""
        return self._marked() is not None

    def _marked(self) -> Ward | None:
        return next((ward for ward in self._wards.values() if ward.suspect_at is not None), None)

    def suspect(self, ward: Ward, record: Record) -> None:
        """Mark the record that is about to be decoded and computed. Raises BrokerAway."""
        position = record.position
        self._commit({position.partition: (position.offset, Mark(until=ward.until, suspect=True))})
        ward.suspect_at = position.offset

    def metadata(self, release: Release) -> dict[Partition, str]:
        """What to commit beside a release's offsets: a quarantine's end outlives the process until it is reached."""
        return {
            partition: render(Mark(until=ward.until))
            for partition, ward in self._wards.items()
            if release.offsets.get(partition, ward.until) < ward.until
        }

    def progressed(self, release: Release) -> None:
        """Progress resets the count of starts, lets the next quarantined record in, and lifts a quarantine."""
        for partition, behind in release.offsets.items():
            if release.epochs[partition] != self._consumer.assignment.get(partition):
                continue
            self._starts.pop(partition, None)
            ward = self._wards.get(partition)
            if ward is None:
                continue
            ward.suspect_at = None
            if behind >= ward.until:
                del self._wards[partition]
                log.info("quarantine_lifted", partition=str(partition), offset=behind)
            self._consumer.unhold(partition)

    def _commit(self, marks: Mapping[Partition, tuple[int, Mark]]) -> None:
        """Commit unchanged offsets with new metadata."""
        if marks:
            self._consumer.commit(
                {partition: offset for partition, (offset, _) in marks.items()},
                wait=True,
                metadata={partition: render(mark) for partition, (_, mark) in marks.items()},
            )
