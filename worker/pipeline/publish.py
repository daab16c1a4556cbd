"""The way out: what is resolved leaves for the broker, in one release after another, and is forgotten once it is there.

One release is under way at a time. What is resolved meanwhile waits in the ledger for the next.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import structlog
from confluent_kafka import KafkaError

from worker.errors import BrokerAway, DeadLetterLimit, FatalError, Reason, TransactionAborted, Unpublishable
from worker.kafka.consumer import Consumer
from worker.kafka.publisher import Publisher
from worker.messages import Fault, FaultKind, Outgoing, Partition, Position, Record
from worker.pipeline.infer import Done
from worker.pipeline.policies import BATCHES_IN_HAND, BUSY_POLL_S, Clocks, Policies
from worker.pipeline.quarantine import Quarantine
from worker.rules.dead_letter import LetterGauge, dead_letter, is_truncated, truncated
from worker.rules.offsets import Ledger, Release
from worker.telemetry.log import BatchLine, batch_done
from worker.telemetry.metrics import Metrics, Stage, TransactionResult

log = structlog.get_logger("worker.kafka")

# Under a backlog, as much as this is published together, but nothing waits longer than this for more.
PUBLISH_BATCHES: Final = 4
PUBLISH_INTERVAL_S: Final = 0.05
PUBLISH_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Collected:
    """A batch that came back at ``at_s``: how many of its jobs are tried again, and how many lost their partition."""

    done: Done
    at_s: float
    retried: int
    revoked: int


class Outbox:
    """Publishes what the ledger releases, and decides what takes the place of what cannot be published."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        publisher: Publisher,
        consumer: Consumer,
        quarantine: Quarantine,
        policies: Policies,
        metrics: Metrics,
        clocks: Clocks,
        jitter: random.Random,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._consumer = consumer
        self._quarantine = quarantine
        self._policies = policies
        self._metrics = metrics
        self._clocks = clocks
        self._random = jitter
        self._retry_topics = frozenset(topic for _, topic in policies.retry_topics)
        self._letters = LetterGauge(policies.letters)
        self._unfinished: Release | None = None  # given to the publisher, its fate unknown
        self._is_broker_away = False  # that is why it is unfinished
        self._retry_at_s = 0.0
        self._began_s = 0.0
        self._attempts = 0
        self._unlogged: list[Collected] = []
        self.halted = False  # by a limit on dead letters
        self.is_draining = False

    @property
    def is_under_way(self) -> bool:
        """True while a release has been given to the publisher and its fate is unknown."""
        return self._unfinished is not None

    @property
    def is_empty(self) -> bool:
        """True if nothing is under way and nothing waits to leave."""
        return self._unfinished is None and not self._ledger.release()

    @property
    def undecided(self) -> Mapping[Partition, int]:
        """The offsets of the release that is under way."""
        return self._unfinished.offsets if self._unfinished is not None else {}

    @property
    def deadline_s(self) -> float:
        """When to call `publish` again for what is under way; infinity if that is nothing."""
        if self._unfinished is None:
            return float("inf")
        return self._retry_at_s if self._is_broker_away else self._clocks.monotonic_s() + BUSY_POLL_S

    # What a record leads to -------------------------------------------------------------------------------------------

    def answer(self, position: Position, output: Outgoing) -> None:
        """A record has its result."""
        self._letters.answered()
        self._ledger.resolve(position, output)

    def bury(self, record: Record, fault: Fault, attempts: int) -> None:
        """A record is given up.

        Raises:
            DeadLetterLimit: the operator lets no more dead letters out; this one stays unresolved.
        """
        try:
            self._letters.buried(fault)
        except DeadLetterLimit:
            self.halted = True  # by the operator's limit: no record in hand is why the process ends
            raise
        self._ledger.resolve(record.position, dead_letter(record, fault, attempts, self._policies.obituary))

    def collected(self, batch: Collected) -> None:
        """A batch came back; its canonical log line is written when its results have gone out."""
        self._unlogged.append(batch)

    # Publishing -------------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """One step: go on with what is under way, or begin with what is resolved."""
        now_s = self._clocks.monotonic_s()
        if now_s < self._retry_at_s:
            return
        release = self._unfinished or self._release()
        if not release:
            self._consumer.recommit()
        elif self._unfinished is not None:
            self._publish(release)
        elif not self._may_grow(release, now_s):
            self._began_s = now_s
            self._publish(release)

    def publish_until(self, deadline_s: float) -> None:
        """Publish until nothing resolved is left, or time is up."""
        self._retry_at_s = 0.0  # a back-off that began before would use up the deadline
        while self._clocks.monotonic_s() < deadline_s:
            self.publish()
            if self.is_empty:
                return
            self._clocks.wait(BUSY_POLL_S)

    def _publish(self, release: Release) -> None:
        try:
            if not self._publisher.publish(release, PUBLISH_TIMEOUT_S):
                self._unfinished = release
                return
        except BrokerAway as error:
            self._unfinished, self._is_broker_away = release, True
            self._failed(error)
        except TransactionAborted as error:
            self._aborted(error)
        except Unpublishable as error:
            self._unfinished, self._is_broker_away = None, False
            if self._publisher.transactional:
                self._metrics.transaction(TransactionResult.ABORTED)
            self._replace(error)
        else:
            self._unfinished, self._is_broker_away = None, False
            self._attempts = 0
            self._metrics.stage(Stage.PUBLISH, self._clocks.monotonic_s() - self._began_s)
            if self._publisher.transactional:
                self._metrics.transaction(TransactionResult.COMMITTED)
            self._acknowledged(release)

    def _may_grow(self, release: Release, now_s: float) -> bool:
        """Under a backlog, gather a few batches to a publish: its round trips cost the same for one as for four.

        Without a backlog a result leaves at once, so this adds nothing to the latency of a worker that keeps up.
        """
        batch = self._policies.batch.max_messages
        coming = self._ledger.in_flight - len(release.outputs)
        backlog = coming >= batch and not self.is_draining
        return backlog and len(release.outputs) < PUBLISH_BATCHES * batch and now_s < self._began_s + PUBLISH_INTERVAL_S

    def _release(self) -> Release:
        most = None
        # (At least once, what was delivered stays so, and a smaller release would forget the receipts of the rest.)
        if self._attempts and self._publisher.transactional:
            # What was too much for its deadline would be aborted again and again: each failure halves what comes next.
            most = max(1, BATCHES_IN_HAND * self._policies.batch.max_messages >> self._attempts)
        release = self._ledger.release(most)
        if not self._quarantine:
            return release
        return replace(release, metadata=self._quarantine.metadata(release))

    def _aborted(self, error: TransactionAborted) -> None:
        if self._is_broker_away:
            self._attempts = 0  # the broker answers again
        self._unfinished, self._is_broker_away = None, False
        self._metrics.transaction(TransactionResult.ABORTED)
        self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._attempts += 1
        delay_s = self._policies.retry.delay_s(self._attempts, self._random.random())
        self._retry_at_s = self._clocks.monotonic_s() + delay_s
        self._metrics.broker_error()
        log.warning("publish_failed", error=str(error), kind=type(error).__name__, retry_in_s=round(delay_s, 3))

    def _replace(self, error: Unpublishable) -> None:
        """Put something publishable in place of an output that the broker refuses, so that its partition goes on."""
        output, position = error.output, error.position
        if not self._ledger.is_live(position):
            return  # its partition has left since: the new owner meets the same
        log.warning("unpublishable", topic=output.topic, offset=position.offset, error=str(error))
        if output.topic != self._policies.obituary.topic:
            fault = Fault(FaultKind.MESSAGE, Reason.TOO_LARGE, "publish", "Unpublishable", f"{output.topic}: {error}")
            self.bury(self._ledger.record(position), fault, attempts=1)
        elif error.code == KafkaError.INVALID_TIMESTAMP and output.timestamp_ms is not None:
            # Its request came from the future; when that was, the header xnli.dlq.timestamp still says.
            self._ledger.resolve(position, replace(output, timestamp_ms=None))
        elif is_truncated(output):
            raise FatalError(
                f"{output.topic} refuses even a truncated dead letter ({error}); raise its max.message.bytes"
            )
        else:
            self._ledger.resolve(position, truncated(output))

    def _acknowledged(self, release: Release) -> None:
        timestamps_ms: list[int] = []
        buried = detours = 0
        for record, output in self._ledger.acknowledge(release):
            if output is None:
                continue
            if output.reason:
                self._metrics.dead_lettered(output.reason)
                buried += 1
            elif output.topic in self._retry_topics:
                self._metrics.retried()
                detours += 1
            else:
                timestamps_ms.append(record.timestamp_ms)
        if self._quarantine:
            self._quarantine.progressed(release)
        self._metrics.published(len(timestamps_ms))
        self._metrics.answered(self._clocks.wall_s() * 1000, timestamps_ms)
        self._log_batches(len(timestamps_ms) + detours, buried)

    def _log_batches(self, published: int, buried: int) -> None:
        """The canonical lines of the batches whose results have just gone out (or wait behind a retry)."""
        now_s, wall_ms = self._clocks.monotonic_s(), self._clocks.wall_s() * 1000
        for index, collected in enumerate(self._unlogged):
            done = collected.done
            work, jobs = done.work, done.batch.jobs
            known_ms = [job.record.timestamp_ms for job in jobs if job.record.timestamp_ms >= 0]
            oldest_ms = min(known_ms, default=wall_ms)
            batch_done(
                BatchLine(
                    messages=len(jobs),
                    tokens=done.batch.tokens,
                    trigger=done.batch.trigger,
                    pairs=work.rows,
                    pairs_computed=work.computed,
                    pairs_failed=work.failed,
                    cache_hits=work.cache_hits,
                    padding_tokens=work.slots - work.tokens,
                    waited_ms=_ms(done.began_s - done.batch.opened_at_s),
                    queued_ms=_ms(collected.at_s - done.ended_s),
                    inference_ms=_ms(work.seconds),
                    publish_ms=_ms(now_s - collected.at_s),
                    oldest_ms=round(max(0.0, wall_ms - oldest_ms), 1),
                    # Of the whole release, which may answer several batches: counted on the first.
                    published=published if index == 0 else 0,
                    retried=collected.retried,
                    dead_lettered=buried if index == 0 else 0,
                    revoked=collected.revoked,
                    bisections=done.bisections,
                    transaction="committed" if self._publisher.transactional else "none",
                )
            )
        self._unlogged.clear()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
