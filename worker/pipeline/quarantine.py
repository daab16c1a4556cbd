"""Records that kill the process, all of it: starts that are counted, marks, and one record at a time.

The rules, and why they are enough, are in `worker.rules.crash_count`. Here they meet Kafka: marks travel in the
metadata of committed offsets, and a quarantined partition's records are admitted alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import structlog

from worker.errors import BrokerAway, RegistryAway
from worker.http.calls import Gate
from worker.kafka.consumer import Consumer
from worker.messages import CommitBatch, Partition, Record
from worker.pipeline.admit import Admission
from worker.pipeline.clocks import Clocks
from worker.pipeline.handoff import Handoff
from worker.pipeline.partition import AssignedPartition, CountedStart, Partitions, Quarantined
from worker.pipeline.resolve import Resolver
from worker.rules.crash_count import Mark, begin
from worker.rules.offset_metadata import mark_of, render

log = structlog.get_logger("worker.kafka")

# How many batches beyond its committed offset a partition is read while a crash would be counted: enough to keep the
# device busy (one computed, one waiting), and as long as the quarantine in which a culprit among them is found.
WINDOW_BATCHES: Final = 2
# A transaction that a dead predecessor left open is aborted by the broker after ten seconds; until then committed
# offsets are not stable and the answer waits.
MARK_TIMEOUT_S: Final = 15.0
COMMIT_TIMEOUT_S: Final = 2.0
# A record that was marked when the process died is left alone for so long after a start. What kills from outside again
# and again, faster than this, comes before it is marked a second time, so it condemns nobody.
SUSPECT_DELAY_S: Final = 5.0


class Marks:
    """What is committed beside offsets about starts and deaths, and what we left there ourselves."""

    def __init__(self, consumer: Consumer) -> None:
        self._commits = consumer.commits
        # Of partitions that went while we live: the mark that is committed, and what it was before we marked it.
        self._left: dict[Partition, tuple[Mark, Mark]] = {}

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, str]]:
        """The committed offset of each partition, and the metadata that a predecessor left beside it.

        Where a broker is away or an offset is not stable, nothing is known: then a record that kills takes one more
        start to be found.
        """
        try:
            known = self._commits.committed(partitions, MARK_TIMEOUT_S)
        except BrokerAway as error:
            log.warning("starts_not_counted", error=str(error))
            return {}
        if unknown := sorted(set(partitions) - known.keys()):
            log.warning(
                "starts_not_counted",
                error="no stable offset is committed",
                partitions=[str(partition) for partition in unknown],
            )
        return known

    def former(self, partition: Partition, metadata: str) -> Mark:
        """The mark that a predecessor left."""
        found = mark_of(metadata)
        left, former = self._left.pop(partition, (Mark(), Mark()))
        # A mark that is as we left it tells of no death: the partition was lost, in an outage perhaps, not we.
        return former if found == left else found

    def leave(self, partition: Partition, mark: Mark, former: Mark) -> None:
        """A partition leaves with this mark beside its offset, and had that one before."""
        self._left[partition] = mark, former

    def commit(self, marks: Mapping[Partition, tuple[int, Mark]]) -> None:
        """Commit unchanged offsets with these marks. Raises BrokerAway."""
        if marks:
            # A commit that is waited for has no time-out: without its coordinator it takes librdkafka 45 s to fail.
            self._commits.committed(list(marks), COMMIT_TIMEOUT_S)
            self._commits.commit(
                {partition: offset for partition, (offset, _) in marks.items()},
                wait=True,
                metadata=self._commits.metadata(marks, {partition: mark for partition, (_, mark) in marks.items()}),
            )

    def try_to_commit(self, marks: Mapping[Partition, tuple[int, Mark]]) -> None:
        """As `commit`; where the broker is away a line in the log is all that comes of it."""
        try:
            self.commit(marks)
        except BrokerAway as error:
            log.warning("starts_not_committed", error=str(error), partitions=len(marks))


class Quarantine:
    """Counts starts without progress, and knows which partitions are quarantined. Kafka thread only.

    False while no partition is quarantined and every partition has made progress: the hot path asks nothing else.

    Args:
        consumer: where records come from and marks are committed.
        partitions: the assigned partitions.
        clocks: what time it is.
        window: how far beyond the committed offset a partition is read while a start counts, and how long a quarantine
            lasts: so the culprit of a start that dies lies in it.
        horizon: how far beyond it a worker may have read when it died of whose start nobody counts any more.
    """

    def __init__(
        self, consumer: Consumer, partitions: Partitions, clocks: Clocks, *, window: int, horizon: int
    ) -> None:
        self._consumer = consumer
        self._clocks = clocks
        self._partitions = partitions
        self._window = window
        self._horizon = horizon
        self._marks = Marks(consumer)
        self.committed = self._marks.committed
        self._watched = 0  # partitions with a counted start or a quarantine

    def __bool__(self) -> bool:
        return self._watched > 0

    # Rebalances -------------------------------------------------------------------------------------------------------

    def assigned(self, committed: Mapping[Partition, tuple[int, str]]) -> None:
        """Look at what a predecessor left beside the committed offsets, before anything of the partitions is read."""
        for partition, (offset, metadata) in committed.items():
            assigned = self._partitions.accounts[partition]
            assigned.committed_offset = offset
            self._begin(assigned, offset, self._marks.former(partition, metadata))

    def _begin(self, assigned: AssignedPartition, offset: int, former: Mark) -> None:
        mark = begin(former, offset, self._window)
        self._watched += 1
        if mark.quarantined:
            delay_s = SUSPECT_DELAY_S if mark.deaths and not mark.condemned else 0.0
            assigned.quarantined = Quarantined(mark.until, mark.deaths, self._clocks.monotonic_s() + delay_s)
            log.error("quarantined", partition=str(assigned.partition), offset=offset, mark=render(mark))
        else:
            until = offset + (self._window if mark.starts else self._horizon)
            assigned.counted_start = CountedStart(mark, offset, until)

    def hand_over(self, partitions: set[Partition]) -> None:
        """Take this start's marks back: a partition handed over in good order says nothing against its next record."""
        marks: dict[Partition, tuple[int, Mark]] = {}
        for partition in partitions & self._partitions.accounts.keys():
            assigned = self._partitions.accounts[partition]
            start, quarantined = assigned.counted_start, assigned.quarantined
            if start is not None and start.is_counted:
                marks[partition] = start.committed, Mark() if start.has_progress else start.former
            elif quarantined is not None and quarantined.marked_at is not None:
                marks[partition] = quarantined.marked_at, quarantined.unmarked
        self._marks.try_to_commit(marks)

    def forget(self, partition: Partition) -> None:
        """The partition is about to leave: remember the mark that it leaves with."""
        assigned = self._partitions.accounts.get(partition)
        if assigned is None:
            return
        if (start := assigned.counted_start) is not None:
            self._marks.leave(partition, start.mark, start.former)
            self._watched -= 1
        if (quarantined := assigned.quarantined) is not None:
            self._marks.leave(partition, quarantined.mark, quarantined.unmarked)
            self._watched -= 1

    # Reading ----------------------------------------------------------------------------------------------------------

    def count_starts(self, partitions: Iterable[Partition]) -> None:
        """Records of these partitions are about to be in hand: from now on this start counts."""
        marks: dict[Partition, tuple[int, Mark]] = {}
        for partition in partitions:
            start = self._partitions.accounts[partition].counted_start
            if start is not None and not start.is_counted:
                start.is_counted = True
                marks[partition] = start.committed, start.mark
        self._marks.try_to_commit(marks)

    def admits(self, assigned: AssignedPartition, record: Record) -> bool:
        """False for a record too far ahead of what is committed while this start counts: it is read again later.

        So a start that dies has its culprit within the window, where the quarantine to come finds it.
        """
        start = assigned.counted_start
        if start is None:
            return True
        partition, offset = assigned.partition, record.position.offset
        if start.read is None:
            # Nobody has read what was not there yet: the end, as the first fetch told it, is far enough.
            end = self._consumer.ends.end(partition)
            if end is not None:
                start.until = min(start.until, max(end, offset + 1))
        is_far = offset >= start.committed + self._window
        # Behind a gap in the offsets (compaction, aborted transactions) nothing may be in hand: then reading goes on.
        if is_far and (start.read or 0) > start.committed:
            start.held = True
            self._consumer.hold(partition, offset)
            return False
        start.read = offset + 1
        return True

    def take(self, quarantined: Quarantined, record: Record) -> None:
        """Take the next record of a quarantined partition in hand; no more is fetched until it is answered."""
        position = record.position
        # What killed a predecessor was there before it died.
        if (end := self._consumer.ends.end(position.partition)) is not None:
            quarantined.until = min(quarantined.until, max(end, position.offset + 1))
        self._consumer.hold(position.partition, position.offset + 1)
        quarantined.record = record

    def is_waiting(self, quarantined: Quarantined) -> bool:
        """True if the record of a quarantined partition is read and may be tried."""
        return quarantined.record is not None and self._clocks.monotonic_s() >= quarantined.not_before_s

    @property
    def deadline_s(self) -> float:
        """When the next quarantined record may be tried, or is looked after; infinity if none is in hand."""
        return min(
            (
                quarantined.not_before_s
                for quarantined in self.quarantines()
                if quarantined.record is not None or quarantined.marked_at is not None
            ),
            default=float("inf"),
        )

    def quarantines(self) -> Iterator[Quarantined]:
        """The quarantines of all assigned partitions."""
        for assigned in self._partitions.accounts.values():
            if assigned.quarantined is not None:
                yield assigned.quarantined

    def mark(self, quarantined: Quarantined, record: Record) -> None:
        """Mark the record that is about to be decoded and computed. Raises BrokerAway."""
        position = record.position
        mark = Mark(until=quarantined.until, deaths=quarantined.deaths + 1)
        self._marks.commit({position.partition: (position.offset, mark)})
        quarantined.marked_at = position.offset

    def withhold(self, *, is_ending: bool) -> None:
        """Keep back the answers of a start that follows a death until all of its first window can go at once.

        So a killer in that window lets no answer before it out, and this start leaves no progress: two such starts, and
        the quarantine looks at the window record by record. Otherwise each start could answer a few records more.
        ``is_ending``: the worker stops or the partition leaves, and no more is read.
        """
        for assigned in self._partitions.accounts.values():
            start = assigned.counted_start
            if start is None:
                continue
            is_first = start.former.starts > 0 and not start.has_progress and not is_ending
            is_whole = start.held or self._consumer.ends.reached(assigned.partition) is not None
            assigned.is_withheld = is_first and not (is_whole and all(entry.resolved for entry in assigned.entries))

    # Committing -------------------------------------------------------------------------------------------------------

    def marks(self, batch: CommitBatch) -> dict[Partition, Mark]:
        """What to commit beside the offsets: counts and quarantines outlive the process until they end."""
        marks: dict[Partition, Mark] = {}
        for partition, behind in batch.offsets.items():
            assigned = self._partitions.accounts[partition]
            start, quarantined = assigned.counted_start, assigned.quarantined
            if quarantined is not None and behind < quarantined.until:
                marks[partition] = Mark(until=quarantined.until)
            elif start is not None and behind < start.until:
                marks[partition] = Mark(starts=1)
        return marks

    def progressed(self, batch: CommitBatch) -> None:
        """A commit lets a partition read on, and ends its counted start or its quarantine."""
        for partition, behind in batch.offsets.items():
            assigned = self._partitions.accounts.get(partition)
            if assigned is None or assigned.generation != batch.generations[partition]:
                continue
            if (start := assigned.counted_start) is not None:
                self._advance(assigned, start, behind)
            if (quarantined := assigned.quarantined) is None:
                continue
            quarantined.marked_at, quarantined.deaths = None, 0
            if behind >= quarantined.until:
                assigned.quarantined = None
                self._watched -= 1
                log.info("quarantine_lifted", partition=str(partition), offset=behind)
            self._consumer.unhold(partition)

    def _advance(self, assigned: AssignedPartition, start: CountedStart, behind: int) -> None:
        start.committed, start.has_progress = behind, True
        if start.held:
            start.held = False
            self._consumer.unhold(assigned.partition)
        if behind >= start.until:
            assigned.counted_start = None
            self._watched -= 1


class OneAtATime:
    """Quarantined records, each alone: marked, decoded and computed with nothing else under way.

    They alternate with ordinary batches, so other partitions go on meanwhile. Calls over HTTP wait behind ``gate`` from
    before a record is marked until its mark is gone: their crash would be laid to it.
    """

    def __init__(
        self, quarantine: Quarantine, admission: Admission, handoff: Handoff, resolver: Resolver, gate: Gate
    ) -> None:
        self._quarantine = quarantine
        self._admission = admission
        self._handoff = handoff
        self._resolver = resolver
        self._gate = gate
        self._was_last = False

    def step(self, is_published: Callable[[], bool]) -> bool:
        """Admit a quarantined record if that is next; True while nothing else may be handed to the device.

        ``is_published`` tells whether nothing is resolved that is not committed yet.
        """
        quarantines = list(self._quarantine.quarantines())
        marked = [quarantined for quarantined in quarantines if quarantined.marked_at is not None]
        # While a record is marked, only that one.
        waiting = next((q for q in marked or quarantines if self._quarantine.is_waiting(q)), None)
        if marked:
            # It is computed, or waits for its next attempt or its commit: no neighbour's crash may be laid to it.
            if waiting is not None:
                self._admit(waiting)
            return True
        if waiting is None or (self._was_last and self._handoff.has_due):
            self._was_last = False
            self._gate.open()
            return False
        # Nothing else may be under way when it is marked, for the same reason.
        self._gate.hold()
        if not self._handoff.is_computing and self._gate.is_quiet and is_published():
            self._was_last = True
            self._admit(waiting)
        return True

    def _admit(self, quarantined: Quarantined) -> None:
        record = quarantined.record
        if record is None or self._admission.is_waiting:
            return
        if quarantined.unmarked.condemned:
            quarantined.record = None
            self._resolver.killed(record)
            return
        try:
            if quarantined.marked_at is None:
                self._quarantine.mark(quarantined, record)
            self._admission.admit(record)
        except (BrokerAway, RegistryAway) as error:
            self._admission.wait()
            log.warning("quarantine_waits", error=str(error))  # the record stays where it is
            return
        quarantined.record = None
