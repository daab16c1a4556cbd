"""The quarantine at work: marks in committed offsets, and one record at a time (rules: `worker.rules.crash_count`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from worker.errors import BrokerAway
from worker.kafka.consumer import Consumer
from worker.messages import Partition, Record
from worker.rules.crash_count import Mark, begin, parse, render
from worker.rules.offsets import Release

log = structlog.get_logger("worker.kafka")

# A transaction that a dead predecessor left open is aborted by the broker after ten seconds; until then committed
# offsets are not stable and the answer waits.
MARK_TIMEOUT_S: Final = 15.0
COMMIT_TIMEOUT_S: Final = 2.0


@dataclass(slots=True)
class Ward:
    """A quarantined partition. ``condemned``: its next record was in hand when the process died."""

    until: int
    condemned: bool
    record: Record | None = None  # read, not yet treated
    suspect_at: int | None = None  # the offset of the record that is marked, until it is answered


@dataclass(slots=True)
class Probation:
    """A partition on which this start still counts, until the offset committed for it reaches ``until``.

    By then everything is answered that a predecessor can have had in hand.
    """

    former: Mark  # before this start was counted
    mark: Mark
    committed: int
    until: int
    read: int | None = None  # the offset behind the last record read
    has_progress: bool = False
    held: bool = False


class Quarantine:
    """Counts starts without progress and reads quarantined partitions one record at a time. Kafka thread only.

    False while no partition is quarantined and every partition has made progress: the hot path asks nothing else.

    Args:
        consumer: where records come from and marks are committed.
        window: how far beyond the committed offset a partition is read while a start counts, and how long a quarantine
            lasts: so the culprit of a start that dies lies in it.
        horizon: how far beyond it a worker may have read when it died of whose start nobody counts any more.
    """

    def __init__(self, consumer: Consumer, window: int, horizon: int) -> None:
        self._consumer = consumer
        self._window = window
        self._horizon = horizon
        self._left: dict[Partition, Mark] = {}  # what our marks were when partitions went: nobody died
        self._probations: dict[Partition, Probation] = {}
        self._wards: dict[Partition, Ward] = {}

    def __bool__(self) -> bool:
        return bool(self._probations or self._wards)

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
                # A mark that is as we left it tells of no death: the partition was lost, in an outage perhaps, not us.
                is_ours = self._left.pop(partition, Mark()) == former != Mark()
                mark = replace(former, suspect=False) if is_ours else begin(former, offset, self._window)
                marks[partition] = offset, mark
                if mark.quarantined:
                    self._wards[partition] = Ward(mark.until, condemned=mark.suspect)
                    log.error("quarantined", partition=str(partition), offset=offset, mark=render(mark))
                else:
                    before = replace(mark, starts=mark.starts - 1)
                    until = offset + (self._window if before.starts else self._horizon)
                    self._probations[partition] = Probation(before, mark, offset, until)
            self._commit(marks)
        except BrokerAway as error:
            # Not counted this time: a record that kills takes one more start to be found.
            log.warning("starts_not_counted", error=str(error))

    def hand_over(self, partitions: set[Partition]) -> None:
        """Take this start's marks back: a partition handed over in good order says nothing against its next record."""
        marks = {
            partition: (probation.committed, Mark() if probation.has_progress else probation.former)
            for partition, probation in self._probations.items()
            if partition in partitions
        }
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
        if (probation := self._probations.pop(partition, None)) is not None:
            self._left[partition] = probation.mark
        if (ward := self._wards.pop(partition, None)) is not None:
            self._left[partition] = Mark(until=ward.until, suspect=ward.suspect_at is not None)

    def holds(self, partition: Partition) -> bool:
        """True for a quarantined partition."""
        return partition in self._wards

    def admits(self, record: Record) -> bool:
        """False for a record too far ahead of what is committed while this start counts: it is read again later.

        So a start that dies has its culprit within the window, where the quarantine to come finds it.
        """
        partition, offset = record.position.partition, record.position.offset
        probation = self._probations.get(partition)
        if probation is None:
            return True
        if probation.read is None:
            # Nobody has read what was not there yet: the end, as the first fetch told it, is far enough.
            end = self._consumer.end(partition)
            if end is not None:
                probation.until = min(probation.until, max(end, offset + 1))
        is_far = offset >= probation.committed + self._window
        # Behind a gap in the offsets (compaction, aborted transactions) nothing may be in hand: then reading goes on.
        if is_far and (probation.read or 0) > probation.committed:
            probation.held = True
            self._consumer.hold(partition, offset)
            return False
        probation.read = offset + 1
        return True

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
        """What to commit beside a release's offsets: counts and quarantines outlive the process until they end."""
        marks: dict[Partition, str] = {}
        for partition, behind in release.offsets.items():
            ward, probation = self._wards.get(partition), self._probations.get(partition)
            if ward is not None and behind < ward.until:
                marks[partition] = render(Mark(until=ward.until))
            elif probation is not None and behind < probation.until:
                marks[partition] = render(probation.mark)
        return marks

    def progressed(self, release: Release) -> None:
        """Progress ends probations and lets them read on, lets the next quarantined record in, lifts a quarantine."""
        for partition, behind in release.offsets.items():
            if release.epochs[partition] != self._consumer.assignment.get(partition):
                continue
            if (probation := self._probations.get(partition)) is not None:
                self._advance(partition, probation, behind)
            ward = self._wards.get(partition)
            if ward is None:
                continue
            ward.suspect_at = None
            if behind >= ward.until:
                del self._wards[partition]
                log.info("quarantine_lifted", partition=str(partition), offset=behind)
            self._consumer.unhold(partition)

    def _advance(self, partition: Partition, probation: Probation, behind: int) -> None:
        probation.committed, probation.has_progress = behind, True
        if probation.held:
            probation.held = False
            self._consumer.unhold(partition)
        if behind >= probation.until:
            del self._probations[partition]

    def _commit(self, marks: Mapping[Partition, tuple[int, Mark]]) -> None:
        """Commit unchanged offsets with new metadata."""
        if marks:
            # A commit that is waited for has no time-out: without its coordinator it takes librdkafka 45 s to fail.
            self._consumer.committed(list(marks), COMMIT_TIMEOUT_S)
            self._consumer.commit(
                {partition: offset for partition, (offset, _) in marks.items()},
                wait=True,
                metadata={partition: render(mark) for partition, (_, mark) in marks.items()},
            )
