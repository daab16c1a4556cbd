"""Publish: what is resolved is produced and its offsets are committed, one commit batch after the other.

One commit batch is under way at a time. What is resolved meanwhile waits in the ledger for the next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import structlog

from worker.errors import BrokerAway, TransactionAborted, Unpublishable
from worker.kafka.consumer import Consumer
from worker.kafka.publisher import Publisher
from worker.messages import CommitBatch, Partition
from worker.pipeline.batch import BATCHES_IN_HAND, BatchPolicy
from worker.pipeline.clocks import BUSY_POLL_S, Clocks
from worker.pipeline.partition import Partitions
from worker.pipeline.quarantine import Quarantine
from worker.pipeline.report import LAG_INTERVAL_S, Report
from worker.pipeline.resolve import Resolver
from worker.rules.retry import RetryPolicy

log = structlog.get_logger("worker.kafka")

# Under a backlog, as much as this is published together, but nothing waits longer than this for more.
PUBLISH_BATCHES: Final = 4
PUBLISH_INTERVAL_S: Final = 0.05
PUBLISH_TIMEOUT_S: Final = 5.0


class Publication:
    """The commit batch that is under way, if any, and when the next call for it is due."""

    def __init__(
        self,
        *,
        partitions: Partitions,
        publisher: Publisher,
        consumer: Consumer,
        quarantine: Quarantine,
        resolver: Resolver,
        batch: BatchPolicy,
        retry: RetryPolicy,
        report: Report,
        clocks: Clocks,
        jitter: random.Random,
    ) -> None:
        self._partitions = partitions
        self._publisher = publisher
        self._consumer = consumer
        self._quarantine = quarantine
        self._resolver = resolver
        self._batch_messages = batch.max_messages
        self._retry = retry
        self._report = report
        self._clocks = clocks
        self._random = jitter
        self._unfinished: CommitBatch | None = None  # given to the publisher, its fate unknown
        self._is_broker_away = False  # that is why it is unfinished
        self._retry_at_s = 0.0
        self._began_s = 0.0
        self._attempts = 0
        self._ends_at_s = 0.0

    @property
    def is_under_way(self) -> bool:
        """True while a commit batch has been given to the publisher and its fate is unknown."""
        return self._unfinished is not None

    @property
    def is_done(self) -> bool:
        """True if nothing is under way and nothing resolved waits."""
        return self._unfinished is None and not self._partitions.release()

    @property
    def undecided(self) -> Mapping[Partition, int]:
        """The offsets of the commit batch that is under way."""
        return self._unfinished.offsets if self._unfinished is not None else {}

    @property
    def deadline_s(self) -> float:
        """When to call `step` again for what is under way; infinity if that is nothing."""
        if self._unfinished is None:
            return float("inf")
        return self._retry_at_s if self._is_broker_away else self._clocks.monotonic_s() + BUSY_POLL_S

    def step(self, *, is_draining: bool) -> None:
        """Go on with what is under way, or begin with what is resolved."""
        now_s = self._clocks.monotonic_s()
        if now_s < self._retry_at_s:
            self._publisher.poll()
            return
        has_ends = now_s >= self._ends_at_s and not is_draining
        batch = self._unfinished or self._next(is_ending=is_draining, has_ends=has_ends)
        if not batch:
            if has_ends:
                self._ends_at_s = now_s + LAG_INTERVAL_S
            self._consumer.commits.recommit()
            self._publisher.poll()
        elif self._unfinished is not None:
            self._publish(batch)
        elif is_draining or not self._may_grow(batch, now_s):
            self._began_s = now_s
            if has_ends:
                self._ends_at_s = now_s + LAG_INTERVAL_S
            self._publish(batch)

    def publish_until(self, deadline_s: float) -> None:
        """Publish until nothing resolved is left, or time is up."""
        self._retry_at_s = 0.0  # a back-off that began before would use up the deadline
        while self._clocks.monotonic_s() < deadline_s:
            self.step(is_draining=True)
            if self.is_done:
                return
            self._clocks.wait(BUSY_POLL_S)

    def _next(self, *, is_ending: bool, has_ends: bool) -> CommitBatch:
        if self._quarantine:
            self._quarantine.withhold(is_ending=is_ending)
        most = None
        # (At least once, what was delivered stays so, and a smaller batch would forget the reports of the rest.)
        if self._attempts and self._publisher.transactional:
            # What was too much for its deadline would be aborted again and again: each failure halves what comes next.
            most = max(1, BATCHES_IN_HAND * self._batch_messages >> self._attempts)
        batch = self._partitions.release(most)
        if has_ends:
            batch = self._with_ends(batch)
        marks = self._quarantine.marks(batch) if self._quarantine else None
        return replace(batch, metadata=self._consumer.commits.metadata(batch.offsets, marks))

    def _with_ends(self, batch: CommitBatch) -> CommitBatch:
        """The batch, with the ends of partitions that are answered whole.

        Behind the last record lie markers of transactions and aborted records, which nobody answers: without this they
        were the group's lag for ever. Every few seconds is soon enough for that.
        """
        offsets, generations = dict(batch.offsets), dict(batch.generations)
        for partition, assigned in self._partitions.accounts.items():
            if assigned.entries:
                continue
            end = self._consumer.ends.reached(partition)
            if end is not None and end > (assigned.committed_offset or 0):
                assigned.reached(end)
                offsets[partition], generations[partition] = end, assigned.generation
        return replace(batch, offsets=offsets, generations=generations)

    def _may_grow(self, batch: CommitBatch, now_s: float) -> bool:
        """Under a backlog, gather a few batches to a publish: its round trips cost the same for one as for four.

        Without a backlog a result leaves at once, so this adds nothing to the latency of a worker that keeps up.
        """
        ready = len(batch.outputs)
        has_backlog = self._partitions.in_flight - ready >= self._batch_messages
        return (
            has_backlog
            and ready < PUBLISH_BATCHES * self._batch_messages
            and now_s < self._began_s + PUBLISH_INTERVAL_S
        )

    def _publish(self, batch: CommitBatch) -> None:
        try:
            if not self._publisher.publish(batch, PUBLISH_TIMEOUT_S):
                self._unfinished = batch
                return
        except BrokerAway as error:
            self._unfinished, self._is_broker_away = batch, True
            self._failed(error)
        except TransactionAborted as error:
            if self._is_broker_away:
                self._attempts = 0  # the broker answers again
            self._ended()
            self._report.aborted()
            self._failed(error)
        except Unpublishable as error:
            self._ended()
            self._attempts = 0  # the broker has answered, and what is refused does not come again
            self._report.aborted()
            for refused in (error, *error.others):
                self._resolver.refused(refused)
        else:
            self._committed(batch)

    def _committed(self, batch: CommitBatch) -> None:
        self._ended()
        self._attempts = 0
        acknowledged = self._partitions.acknowledge(batch)
        for partition, behind in batch.offsets.items():
            if (assigned := self._partitions.accounts.get(partition)) is not None:
                assigned.committed_offset = behind
        if self._quarantine:
            self._quarantine.progressed(batch)
        self._report.committed(acknowledged, self._clocks.monotonic_s() - self._began_s)

    def _ended(self) -> None:
        self._unfinished, self._is_broker_away = None, False

    def _failed(self, error: Exception) -> None:
        self._attempts += 1
        delay_s = self._retry.delay_s(self._attempts, self._random.random())
        self._retry_at_s = self._clocks.monotonic_s() + delay_s
        self._report.broker_error()
        log.warning("publish_failed", error=str(error), kind=type(error).__name__, retry_in_s=round(delay_s, 3))
