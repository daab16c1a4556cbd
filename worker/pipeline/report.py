"""Report: metrics, the canonical log line of each batch (debug) and the summary, fed from one place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from worker.http.health import Health, LatestDeadLetter
from worker.kafka.consumer import Consumer
from worker.messages import BatchResult, Output, OutputKind, Partition, Record
from worker.pipeline.clocks import Clocks
from worker.pipeline.handoff import Handoff
from worker.pipeline.partition import Partitions
from worker.pipeline.resolve import Counts
from worker.pipeline.summary import Summary
from worker.rules.retry_headers import origin_of
from worker.telemetry.metrics import Metrics, Queue, Rebalance, Stage, TransactionResult

if TYPE_CHECKING:
    from worker.telemetry.traces import Traces

log = structlog.get_logger("worker.kafka")
_batch_log = structlog.stdlib.get_logger("worker.batch")

LAG_INTERVAL_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Collected:
    """A batch whose result was collected at ``at_s``, whose line is written when its results have gone out.

    ``ids`` are those of its trace, if there is one.
    """

    result: BatchResult
    counts: Counts
    at_s: float
    ids: Mapping[str, str] | None


class Report:
    """What the steps of the loop tell. Kafka thread only.

    The line of a batch is event ``batch``. Times are milliseconds: ``waited_ms`` from the first admission until the
    inference thread began, ``inference_ms`` the engine at work, ``queued_ms`` until the Kafka thread took the results,
    ``publish_ms`` from then to the acknowledgement of all they led to, ``oldest_ms`` end to end for the oldest record.
    ``tokens`` is the cost as the batcher counts it; ``pairs_failed`` were in passes that failed, which culprits cost
    their neighbours; ``revoked`` results were dropped because their partition had left; ``published`` and
    ``dead_lettered`` are of all that one commit answered, and stand in the first of its lines.
    """

    def __init__(
        self,
        *,
        partitions: Partitions,
        consumer: Consumer,
        handoff: Handoff,
        transactional: bool,
        metrics: Metrics,
        health: Health,
        clocks: Clocks,
        traces: Traces | None = None,
    ) -> None:
        self._traces = traces
        self._partitions = partitions
        self._consumer = consumer
        self._handoff = handoff
        self._transactional = transactional
        self._metrics = metrics
        self._health = health
        self._clocks = clocks
        self._collected: list[_Collected] = []
        self._lag_at_s = 0.0
        self._lag = 0
        self._summary = Summary(clocks.monotonic_s())

    def step(self) -> None:
        """What is measured once a step: queues, and every few seconds the lag."""
        now_s = self._clocks.monotonic_s()
        waiting, finished = self._handoff.depths
        self._metrics.queued(Queue.BATCHES, waiting)
        self._metrics.queued(Queue.RESULTS, finished)
        if now_s >= self._lag_at_s:
            self._lag_at_s = now_s + LAG_INTERVAL_S
            self._consumer.unreadable.watch(now_s, is_paused=self._consumer.paused)
            stalled, unseen = self._consumer.unreadable.stalled, self._consumer.subscription.problems
            self._metrics.stalled([*((p.topic, str(p.number)) for p in stalled), *((topic, "*") for topic in unseen)])
            self._health.stalled((*stalled.values(), *unseen.values()))
            accounts = self._partitions.accounts
            found = self._consumer.ends.lag({partition: held.committed_offset for partition, held in accounts.items()})
            self._lag = 0
            for partition, lag in found.items():
                waiting = lag.unread + len(accounts[partition].entries)
                self._lag += waiting
                self._metrics.lag(*partition, waiting)
                self._metrics.unstable(*partition, lag.unstable)
        self._summary.write(now_s, self._lag)

    def end(self) -> None:
        """The last summary, of what came since the one before."""
        self._summary.write(self._clocks.monotonic_s(), self._partitions.in_flight, is_due=True)

    # Reading ----------------------------------------------------------------------------------------------------------

    def paused(self, partitions: int) -> None:
        """How many partitions are paused."""
        self._metrics.paused(partitions)

    def polled(self, seconds: float) -> None:
        """One call of the consumer, its waiting included."""
        self._metrics.stage(Stage.POLL, seconds)

    def fetched(self, records: Sequence[Record]) -> None:
        """Records entered the ledger."""
        if self._consumer.skips:
            for skip in self._consumer.skips.take():
                self._metrics.skipped(skip.reason, skip.to_offset - skip.from_offset)
        for topic, count in Counter(record.position.partition.topic for record in records).items():
            self._metrics.consumed(topic, count)

    def rebalanced(self, kind: Rebalance, partitions: Sequence[Partition], held: int) -> None:
        """Partitions came or went, and ``held`` are held now."""
        self._metrics.rebalanced(kind, partitions, assigned=held)
        self._lag_at_s = 0.0  # every partition has its series from the assignment on
        self._health.assigned(held)
        log.info("rebalance", kind=kind.value, partitions=[f"{p.topic}-{p.number}" for p in partitions], held=held)

    # Computing --------------------------------------------------------------------------------------------------------

    def collected(self, result: BatchResult, counts: Counts, ids: Mapping[str, str] | None = None) -> None:
        """The result of a batch was collected and its jobs are decided on."""
        now_s = self._clocks.monotonic_s()
        self._metrics.batch(result.batch)
        self._metrics.stage(Stage.WAIT, result.began_s - result.batch.opened_at_s)
        self._metrics.stage(Stage.INFERENCE, now_s - result.began_s)
        self._metrics.token_budget(result.work.budget)
        self._metrics.inferred(result.work, result.splits)
        self._summary.collected(result)
        self._collected.append(_Collected(result, counts, now_s, ids))

    # Publishing -------------------------------------------------------------------------------------------------------

    def broker_error(self) -> None:
        """A commit batch did not go out."""
        self._metrics.broker_error()

    def aborted(self) -> None:
        """A transaction was aborted, if there was one."""
        if self._transactional:
            self._metrics.transaction(TransactionResult.ABORTED)

    def committed(self, acknowledged: Sequence[tuple[Record, Output | None]], seconds: float) -> None:
        """A commit batch is acknowledged, ``seconds`` after it was begun."""
        self._metrics.stage(Stage.PUBLISH, seconds)
        if self._traces is not None:
            self._traces.committed(seconds)
        if self._transactional:
            self._metrics.transaction(TransactionResult.COMMITTED)
        timestamps_ms: list[int] = []
        dead_lettered, retried = Counter[str](), 0
        for record, output in acknowledged:
            if output is None:
                continue
            if output.kind is OutputKind.RESULT:
                timestamps_ms.append(record.timestamp_ms)
            elif output.kind is OutputKind.DEAD_LETTER:
                self._metrics.dead_lettered(output.reason)
                (topic, number), offset = origin_of(record)  # as it was before any retry topic
                self._health.dead_lettered(
                    LatestDeadLetter(output.reason, topic, number, offset, self._clocks.wall_s())
                )
                dead_lettered[output.reason] += 1
            else:
                self._metrics.retried()
                retried += 1
        self._metrics.published(len(timestamps_ms))
        wall_ms = self._clocks.wall_s() * 1000
        self._metrics.answered(wall_ms, timestamps_ms)
        if acknowledged:
            known_ms = (timestamp_ms for timestamp_ms in timestamps_ms if timestamp_ms >= 0)
            oldest_ms = max(0.0, wall_ms - min(known_ms, default=wall_ms))
            self._summary.committed(len(timestamps_ms), retried, dead_lettered, oldest_ms)
            self._log_batches(len(timestamps_ms) + retried, dead_lettered.total())

    def _log_batches(self, published: int, dead_lettered: int) -> None:
        """The lines of the batches whose results have just gone out (or wait behind a retry)."""
        now_s, wall_ms = self._clocks.monotonic_s(), self._clocks.wall_s() * 1000
        for collected in self._collected:
            result, work, jobs = collected.result, collected.result.work, collected.result.batch.jobs
            known_ms = [job.record.timestamp_ms for job in jobs if job.record.timestamp_ms >= 0]
            oldest_ms = min(known_ms, default=wall_ms)
            _batch_log.debug(
                "batch",
                messages=len(jobs),
                tokens=result.batch.tokens,
                trigger=result.batch.trigger,
                pairs=work.rows,
                pairs_computed=work.computed,
                pairs_failed=work.failed,
                cache_hits=work.cache_hits,
                padding_tokens=work.slots - work.tokens,
                waited_ms=_ms(result.began_s - result.batch.opened_at_s),
                inference_ms=_ms(work.seconds),
                queued_ms=_ms(collected.at_s - result.ended_s),
                publish_ms=_ms(now_s - collected.at_s),
                oldest_ms=round(max(0.0, wall_ms - oldest_ms), 1),
                published=published,
                retried=collected.counts.retried,
                dead_lettered=dead_lettered,
                revoked=collected.counts.revoked,
                splits=result.splits,
                transaction="committed" if self._transactional else "none",
                **(collected.ids or {}),
            )
            published = dead_lettered = 0
        self._collected.clear()


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
