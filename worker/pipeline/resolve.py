"""Resolve: the only place that decides what a record leads to. A result, another attempt, a dead letter, or nothing.

Whatever fails at whatever step arrives here as an exception or a fault and meets one rule, `worker.rules.retry.decide`:
what cannot be read, what the model fails on, a result that cannot be written, an output that the broker refuses, a
record that kills the process.
"""

from __future__ import annotations

import heapq
import itertools
import random
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import structlog
from confluent_kafka import KafkaError

from worker.avro.codec import Codecs
from worker.avro.framing import SCHEMA_ID_HEADER
from worker.avro.result import result as result_datum
from worker.errors import DeadLetterLimit, FatalError, Reason, Rejection, Unpublishable
from worker.messages import (
    Answered,
    BatchResult,
    Fault,
    FaultKind,
    Job,
    ModelIdentity,
    Outcome,
    Output,
    OutputKind,
    Position,
    Record,
)
from worker.pipeline.clocks import Clocks
from worker.pipeline.dead_letter_log import DeadLetterLog
from worker.pipeline.partition import Partitions
from worker.rules import retry_headers
from worker.rules.crash_count import DEATHS
from worker.rules.dead_letter import DeadLetterSource, dead_letter, foreign, is_truncated, truncated
from worker.rules.dead_letter_limit import DeadLetterCount, DeadLetterLimits
from worker.rules.retry import DeadLetter, Retry, RetryPolicy, decide, fault_of
from worker.telemetry.metrics import Metrics

log = structlog.get_logger("worker.kafka")

WriteResult = Callable[[Job, Outcome], Output]
# A dead letter, with what else it is to carry.
Continue = Callable[[Record, Output, Fault], Output]
# What the broker would say to an output that it will certainly refuse; None for what may be sent.
Refusal = Callable[[Position, Output], Unpublishable | None]

_PROCESS_DIED: Final = Fault(
    FaultKind.MESSAGE, Reason.CRASH, "quarantine", "ProcessDied", "the process died with this record in hand"
)


@dataclass(frozen=True, slots=True)
class ResultWriter:
    """Outcomes to result records, by the shipped schema and the settings.

    ``model`` is what results name, save those of requests that know whose tokens they have.
    """

    codecs: Codecs
    topic: str
    model: ModelIdentity

    def __call__(self, job: Job, outcome: Outcome) -> Output:
        """The result of a job: the request's key and headers, without those that speak of the request's own way."""
        record = job.record
        value, headers = self.codecs.encode_result(result_datum(job, outcome, job.encoded.model or self.model))
        if record.headers:  # most records have none
            kept = [h for h in foreign(retry_headers.without(record.headers)) if h[0] != SCHEMA_ID_HEADER]
            headers = (*kept, *headers)
        return Output(OutputKind.RESULT, self.topic, record.key, value, headers, attempts=record.attempt)


@dataclass(frozen=True, slots=True)
class Policy:
    """What decides. ``retry_topics`` holds delays in seconds and topics, shortest first; empty means in place."""

    retry: RetryPolicy
    source: DeadLetterSource
    limits: DeadLetterLimits
    retry_topics: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one batch's jobs: how many are tried again, and how many lost their partition meanwhile."""

    retried: int
    revoked: int


class Resolver:
    """Sets what each record leads to, and keeps those that wait for their next attempt in place."""

    def __init__(
        self,
        *,
        partitions: Partitions,
        write: WriteResult,
        refusal: Refusal,
        policy: Policy,
        metrics: Metrics,
        clocks: Clocks,
        jitter: random.Random,
        continue_trace: Continue | None = None,
    ) -> None:
        self._partitions = partitions
        self._continue_trace = continue_trace
        self._write = write
        self._refusal = refusal
        self._policy = policy
        self._metrics = metrics
        self._clocks = clocks
        self._random = jitter
        self._dead_letters = DeadLetterCount(policy.limits)
        self._dead_letter_log = DeadLetterLog(clocks.monotonic_s)
        self._waiting: list[tuple[float, int, Job | Record]] = []  # a heap: when, and what is tried again
        self._ticket = itertools.count()
        self.is_halted = False  # by a limit on dead letters

    # What arrives -----------------------------------------------------------------------------------------------------

    def computed(self, result: BatchResult) -> Counts:
        """Decide on every job of a batch that was computed."""
        retried = revoked = 0
        for finished in result.finished:
            job = finished.job
            if not self._partitions.is_live(job.record.position):
                revoked += 1  # a late result of a former assignment: the partition's new owner answers it
            elif isinstance(finished, Answered):
                retried += self._answered(job, finished.outcome)
            else:
                retried += self._failed(job, finished.fault)
        return Counts(retried, revoked)

    def skipped(self, record: Record) -> None:
        """A tombstone leads to nothing."""
        self._metrics.tombstones()
        self._partitions.resolve(record.position, None)

    def unreadable(self, record: Record, error: Exception) -> None:
        """A record that no job could be made of. What is nobody's fault (`RegistryAway`) does not come here."""
        trace = ""
        if not isinstance(error, Rejection):
            partition, offset = record.position.partition, record.position.offset
            log.error("admission_failed", topic=partition.topic, offset=offset, exc_info=error)
            trace = "".join(traceback.format_exception(error))
        self._failed(record, fault_of(error, "decode", trace), getattr(error, "request_id", ""))

    def killed(self, record: Record) -> None:
        """A record that was in hand, marked and alone, when the process died."""
        self._failed(replace(record, attempt=DEATHS), _PROCESS_DIED)

    def refused(self, error: Unpublishable) -> None:
        """An output that the broker refuses, or certainly will, for what it is: something publishable takes its place.

        Raises:
            FatalError: the dead-letter topic takes not even a truncated dead letter.
        """
        output, position = error.output, error.position
        if not self._partitions.is_live(position):
            return  # its partition has left since: the new owner meets the same
        log.warning("unpublishable", topic=output.topic, offset=position.offset, error=str(error))
        if output.kind is not OutputKind.DEAD_LETTER:
            fault = Fault(FaultKind.MESSAGE, Reason.TOO_LARGE, "publish", "Unpublishable", f"{output.topic}: {error}")
            self._failed(replace(self._partitions.record(position), attempt=output.attempts), fault)
        elif error.code == KafkaError.INVALID_TIMESTAMP and output.timestamp_ms is not None:
            # Its request came from the future; when that was, the header xnli.dlq.timestamp still says.
            self._resolve(position, replace(output, timestamp_ms=None))
        elif is_truncated(output):
            raise FatalError(
                f"{output.topic} refuses even a truncated dead letter ({error}); raise its max.message.bytes"
            )
        else:
            self._resolve(position, truncated(output))

    # What is decided --------------------------------------------------------------------------------------------------

    def _answered(self, job: Job, outcome: Outcome) -> bool:
        """Resolve a job by its result. True if that could not be written and the job is tried again."""
        try:
            output = self._write(job, outcome)
        except Exception as error:  # whatever cannot be written of one result concerns that message only
            log.exception("result_not_written", offset=job.record.position.offset)
            return self._failed(job, fault_of(error, "encode", traceback.format_exc()))
        self._dead_letters.answered()
        self._resolve(job.record.position, output)
        return False

    def _resolve(self, position: Position, output: Output) -> None:
        """Resolve a record, unless its output need not be sent to be refused: it would take a transaction with it."""
        refused = self._refusal(position, output)
        # (Nothing can take the place of a truncated dead letter. The broker has the last word on it.)
        if refused is None or (refused.code != KafkaError.INVALID_TIMESTAMP and is_truncated(output)):
            self._partitions.resolve(position, output)
        else:
            self.refused(refused)

    def _failed(self, failed: Job | Record, fault: Fault, request_id: str = "") -> bool:
        """Another attempt or a dead letter, for a job or a record that failed alone. True if it is tried again."""
        record = failed.record if isinstance(failed, Job) else failed
        if isinstance(failed, Job):
            request_id = failed.request.id
        draw = self._random.random()
        match decide(self._policy.retry, fault, record.attempt, self._clocks.monotonic_s(), draw):
            case Retry(not_before_s):
                log.warning("retry", attempt=record.attempt, error=fault.error, message=fault.message)
                self._try_again(failed, record, not_before_s)
                return True
            case DeadLetter(reason):
                self._dead_letter(record, replace(fault, reason=reason), request_id)
                return False

    def _try_again(self, failed: Job | Record, record: Record, not_before_s: float) -> None:
        if self._policy.retry_topics:
            # The record is resolved by a copy in the retry topic of its delay, so its partition goes on.
            topics = self._policy.retry_topics
            delay_s, topic = topics[min(record.attempt, len(topics)) - 1]
            not_before_ms = int((self._clocks.wall_s() + delay_s) * 1000)
            copy = retry_headers.retry_copy(record, topic, record.attempt + 1, not_before_ms)
            self._resolve(record.position, copy)
            return
        again = replace(record, attempt=record.attempt + 1)
        waiting = replace(failed, record=again) if isinstance(failed, Job) else again
        heapq.heappush(self._waiting, (not_before_s, next(self._ticket), waiting))
        self._metrics.retried()

    def _dead_letter(self, record: Record, fault: Fault, request_id: str) -> None:
        """Give a record up.

        Raises:
            DeadLetterLimit: the operator lets no more dead letters out; this one stays unresolved.
        """
        try:
            self._dead_letters.dead_lettered(fault)
        except DeadLetterLimit:
            self.is_halted = True  # by the operator's limit: no record in hand is why the process ends
            raise
        self._dead_letter_log.write(record, fault, request_id)
        output = dead_letter(record, fault, record.attempt, self._policy.source)
        if self._continue_trace is not None:
            output = self._continue_trace(record, output, fault)
        self._resolve(record.position, output)

    # What waits -------------------------------------------------------------------------------------------------------

    def due(self) -> Iterator[Job | Record]:
        """What is tried again now. What has lost its partition is passed over: its new owner reads it again."""
        now_s = self._clocks.monotonic_s()
        while self._waiting and self._waiting[0][0] <= now_s:
            waiting = heapq.heappop(self._waiting)[2]
            if self._partitions.is_live(_position(waiting)):
                yield waiting

    @property
    def deadline_s(self) -> float:
        """When the next attempt is due, by the monotonic clock; infinity if none waits."""
        return self._waiting[0][0] if self._waiting else float("inf")


def _position(waiting: Job | Record) -> Position:
    return waiting.record.position if isinstance(waiting, Job) else waiting.position
