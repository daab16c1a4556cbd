"""Fetch: records of our partitions are read, as far as there is room, and enter the ledger.

Back-pressure that lasts is a pause, with polling going on: the group and librdkafka's callbacks need their polls. What
is not due yet (retry topics) or too early (a quarantine) is held by the consumer and read again later, so that waiting
costs no memory, and no place in the ledger that another partition could use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from worker.kafka.consumer import Consumer
from worker.messages import Partition, Record
from worker.pipeline.admit import Admission
from worker.pipeline.batch import BATCHES_IN_HAND, BatchPolicy
from worker.pipeline.clocks import BUSY_POLL_S, Clocks
from worker.pipeline.handoff import Handoff
from worker.pipeline.partition import AssignedPartition, Partitions, RetryWait
from worker.pipeline.quarantine import Quarantine
from worker.pipeline.report import Report
from worker.rules import retry_headers

# Full for a moment, as while a transaction is committed, the loop polls no more. Fetching is paused when that lasts: a
# pause drops what librdkafka has fetched ahead.
PAUSE_AFTER_S: Final = 0.1
HELD_BYTES: Final = 64 * 1024 * 1024
IDLE_POLL_S: Final = 0.1  # while it waits for records alone, the loop sees flags this soon
CLOCK_SKEW_S: Final = 60.0  # between workers, as far as a record in a retry topic is believed


class Fetcher:
    """Reads what there is room for."""

    def __init__(
        self,
        *,
        consumer: Consumer,
        partitions: Partitions,
        quarantine: Quarantine,
        handoff: Handoff,
        admission: Admission,
        batch: BatchPolicy,
        retry_topics: Sequence[tuple[float, str]],
        report: Report,
        clocks: Clocks,
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._quarantine = quarantine
        self._handoff = handoff
        self._admission = admission
        self._batch = batch
        self._report = report
        self._clocks = clocks
        self._full_since_s: float | None = None  # no more can be held, and since when
        self._retry_topics = frozenset(topic for _, topic in retry_topics)
        # A record that says to wait longer was stamped by a clock that is wrong: it must not hold up those behind it.
        self._longest_wait_ms = (max((delay_s for delay_s, _ in retry_topics), default=0.0) + CLOCK_SKEW_S) * 1000

    def step(self, *, is_draining: bool, deadline_s: float) -> None:
        """Poll once, until a record comes or ``deadline_s`` of the monotonic clock, at most `IDLE_POLL_S`."""
        began_s = self._clocks.monotonic_s()
        if not self._may_poll(began_s, is_draining=is_draining):
            self._clocks.wait(BUSY_POLL_S)
            return
        self._report.paused(len(self._consumer.assignment) if self._consumer.paused else 0)
        records = self._consumer.poll(self._batch.max_messages, self._patience_s(began_s, deadline_s))
        self._report.polled(self._clocks.monotonic_s() - began_s)
        if self._quarantine or self._retry_topics:
            records = self._set_aside(records)
        for record in records:
            self._partitions.track(record)
        self._report.fetched(records)
        self._admission.add(records)

    def _may_poll(self, now_s: float, *, is_draining: bool) -> bool:
        """Pause or resume by how much is held; False while it is full for a moment."""
        fullness = self._fullness()
        if fullness < 1.0:
            self._full_since_s = None
        elif self._full_since_s is None:
            self._full_since_s = now_s
        if is_draining or (self._full_since_s is not None and now_s >= self._full_since_s + PAUSE_AFTER_S):
            self._consumer.pause()
        elif fullness <= 0.5:  # half: so that fetching does not flutter
            self._consumer.resume()
        elif self._full_since_s is not None and not self._consumer.paused:
            return False
        return True

    def _fullness(self) -> float:
        """How much of what may be held is held: 1 and more is pressure."""
        return max(
            self._partitions.in_flight / (BATCHES_IN_HAND * self._batch.max_messages),
            self._handoff.tokens / (BATCHES_IN_HAND * self._batch.max_tokens),
            self._partitions.held_bytes / HELD_BYTES,
            1.0 if self._admission.has_undecoded else 0.0,
        )

    def _patience_s(self, now_s: float, deadline_s: float) -> float:
        if self._retry_topics:
            waits = [assigned.retry_wait for assigned in self._partitions.accounts.values()]
            due_s = (wait.due_s for wait in waits if wait is not None and not wait.is_over)
            deadline_s = min([deadline_s, *due_s])
        return min(IDLE_POLL_S, max(0.0, deadline_s - now_s))

    def _set_aside(self, records: Sequence[Record]) -> list[Record]:
        """Leave out what is not due yet (retry topics) and take one record at a time of quarantined partitions."""
        now_s = self._clocks.monotonic_s()
        for partition, assigned in self._partitions.accounts.items():
            wait = assigned.retry_wait
            if wait is not None and not wait.is_over and wait.due_s <= now_s:
                wait.is_over = True
                self._consumer.unhold(partition)
        kept: list[Record] = []
        held: set[Partition] = set()
        for read in records:
            partition = read.position.partition
            if partition in held:
                continue
            assigned = self._partitions.accounts[partition]
            record = self._from_retry_topic(assigned, read, now_s) if partition.topic in self._retry_topics else read
            if record is None:
                held.add(partition)
            elif assigned.quarantined is not None:
                held.add(partition)
                self._quarantine.take(assigned.quarantined, record)
                self._partitions.track(record)
            elif self._quarantine.admits(assigned, record):
                kept.append(record)
            else:
                held.add(partition)
        if self._quarantine:
            self._quarantine.count_starts({record.position.partition for record in kept})
        return kept

    def _from_retry_topic(self, assigned: AssignedPartition, record: Record, now_s: float) -> Record | None:
        """A record of a retry topic as it was first read; None if it is not due, and held until then."""
        headers = retry_headers.parse(record)
        if headers is None:
            return record
        offset, waited = record.position.offset, assigned.retry_wait
        if waited is not None and waited.offset == offset and waited.is_over:
            # The wall clock is not asked again: it may have been set meanwhile.
            return retry_headers.restored(record, headers)
        wait_ms = headers.not_before_ms - int(self._clocks.wall_s() * 1000)
        if 0 < wait_ms <= self._longest_wait_ms:
            self._consumer.hold(assigned.partition, offset)
            assigned.retry_wait = RetryWait(offset, now_s + wait_ms / 1000)
            return None
        return retry_headers.restored(record, headers)
