"""The Kafka stage: everything but the model, on one thread, in steps that a reader can follow.

::

    fetch    records of our partitions enter the ledger
    admit    bytes -> request -> tokens -> the batcher's line (or a dead letter)
    offer    a batch that is due goes to the inference stage
    collect  what comes back is resolved: a result, another attempt, a dead letter
    publish  the resolved prefix of every partition is produced and committed

No step waits for the model: patience is the time-out of the consumer's poll, so that librdkafka's callbacks run and the
group membership stays alive whatever is away.
"""

from __future__ import annotations

import heapq
import itertools
import random
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, Protocol

import structlog

from worker.errors import BrokerAway, FatalError, Reason, RegistryAway, Rejection
from worker.http.health import Health
from worker.kafka.consumer import Consumer
from worker.kafka.transactional import Publisher
from worker.messages import (
    Answered,
    Batch,
    Encoded,
    Fault,
    FaultKind,
    Job,
    Outcome,
    Outgoing,
    Partition,
    Record,
    Request,
    Trigger,
)
from worker.pipeline.batch import Batcher
from worker.pipeline.infer import InferenceStage
from worker.pipeline.policies import BATCHES_IN_HAND, BUSY_POLL_S, Clocks, Policies
from worker.pipeline.publish import Collected, Outbox
from worker.pipeline.quarantine import Quarantine, Ward
from worker.rules.crash_count import STARTS
from worker.rules.offsets import Ledger
from worker.rules.retry import DeadLetter, Retry, decide, fault_of
from worker.rules.retry_headers import come_back, detour_of, send_round
from worker.telemetry.metrics import Metrics, Queue, Rebalance, Stage

log = structlog.get_logger("worker.kafka")

# Full for a moment, as while a transaction is committed, the loop polls no more. Fetching is paused when that lasts, as
# the group and librdkafka's callbacks need their polls: a pause drops what librdkafka has fetched ahead.
PAUSE_AFTER_S: Final = 0.1
HELD_BYTES: Final = 64 * 1024 * 1024
# Within a revoke the group waits for us, so it is shorter than any rebalance time-out in use.
REVOKE_TIMEOUT_S: Final = 10.0
LAG_INTERVAL_S: Final = 5.0
CLOCK_SKEW_S: Final = 60.0  # between workers, as far as a record in a retry topic is believed
# How many batches beyond its committed offset a partition is read while a crash would be counted: enough to keep the
# device busy (one computed, one in line), and as long as the quarantine in which a culprit among them is found.
WINDOW_BATCHES: Final = 2
IDLE_POLL_S: Final = 0.1  # waiting for records alone, flags are seen this soon


class Codec(Protocol):
    """From a record to a request, and from an outcome to a record."""

    def read(self, record: Record) -> Request:
        """Raises Rejection (its own fault) or RegistryAway (nobody's)."""

    def write(self, job: Job, outcome: Outcome) -> Outgoing:
        """The result record of a job."""


Encode = Callable[[Request], Encoded]


class KafkaStage:
    """Owns consumer, publisher, ledger, batcher and retries. Everything runs on the thread that calls `step`."""

    def __init__(
        self,
        *,
        consumer: Consumer,
        publisher: Publisher,
        inference: InferenceStage,
        codec: Codec,
        encode: Encode,
        policies: Policies,
        metrics: Metrics,
        health: Health,
        clocks: Clocks | None = None,
        seed: int | None = None,
    ) -> None:
        self._consumer = consumer
        self._publisher = publisher
        self._inference = inference
        self._codec = codec
        self._encode = encode
        self._policies = policies
        self._metrics = metrics
        self._health = health
        self._clocks = clocks or Clocks()
        self._random = random.Random(seed)  # noqa: S311 (jitter, not a secret)

        self._ledger = Ledger()
        self._batcher = Batcher(policies.batch)
        # Fetched, not yet decoded: more than one step's only while the registry is away.
        self._unread: deque[Record] = deque()
        self._full_since_s: float | None = None  # no more can be held, and since when
        self._admit_at_s = 0.0
        self._registry_attempts = 0
        self._later: list[tuple[float, int, Job]] = []  # a heap of jobs that wait for their next attempt
        self._ticket = itertools.count()
        self._computing: deque[tuple[Job, ...]] = deque()  # offered batches, oldest first
        self._lag_at_s = 0.0
        self._draining = False
        self._orderly = True
        self._is_in_time = True  # False: a drain used its time up
        # Retry topics: partitions whose next record is not due, and when it is, in wall-clock milliseconds.
        self._not_due_ms: dict[Partition, int] = {}
        self._retry_topics = frozenset(topic for _, topic in policies.retry_topics)
        # A record that says to wait longer was stamped by a clock that is wrong: it must not hold up those behind it.
        self._longest_wait_ms = (max((d for d, _ in policies.retry_topics), default=0.0) + CLOCK_SKEW_S) * 1000
        self._quarantine = Quarantine(
            consumer,
            window=WINDOW_BATCHES * policies.batch.max_messages,
            # What is held before fetching pauses, and a poll more.
            horizon=(BATCHES_IN_HAND + 1) * policies.batch.max_messages,
        )
        self._ward_had_turn = False
        self._outbox = Outbox(
            ledger=self._ledger,
            publisher=publisher,
            consumer=consumer,
            quarantine=self._quarantine,
            policies=policies,
            metrics=metrics,
            clocks=self._clocks,
            jitter=self._random,
        )

    # The life cycle ---------------------------------------------------------------------------------------------------

    def start(self, topics: Sequence[str]) -> None:
        """Join the group."""
        self._consumer.subscribe(topics, self)

    def step(self) -> None:
        """One turn. Raises FatalError, or whatever crashed the inference stage."""
        self._health.loop_beat(self._clocks.monotonic_s())
        self._fetch()
        self._admit()
        self._offer()
        self._collect()
        self._outbox.publish()
        self._report()

    @property
    def in_flight(self) -> int:
        """Records read whose outputs are not acknowledged yet."""
        return self._ledger.in_flight

    def drain(self, timeout_s: float) -> bool:
        """Read nothing more, answer what is in hand, publish it. False if time ran out with something left.

        What is left is not committed; the next owner of its partition reads it again.
        """
        self._draining = self._outbox.is_draining = True
        self._health.draining()
        deadline_s = self._clocks.monotonic_s() + timeout_s
        # A commit without an answer is seen through although its partitions may have left: readers wait for it.
        while (self._ledger.in_flight or self._outbox.is_under_way) and self._clocks.monotonic_s() < deadline_s:
            self.step()
            self._clocks.wait(BUSY_POLL_S)
        self._is_in_time = not self._ledger.in_flight
        return self._is_in_time

    def close(self) -> None:
        """Leave the group and disconnect. What was not published is the next owner's."""
        # Without a drain something failed, and a record in hand may be why: this start stays counted.
        self._orderly = self._draining or self._outbox.halted
        try:
            self._consumer.close()
        finally:
            self._publisher.close()

    # Rebalances: called by the consumer, inside poll and close --------------------------------------------------------

    def assigned(self, epochs: Mapping[Partition, int]) -> None:
        """Open an account for each new partition."""
        for partition, epoch in epochs.items():
            self._ledger.assign(partition, epoch)
        self._rebalanced(Rebalance.ASSIGNED, list(epochs), len(self._consumer.assignment))
        if epochs:
            if self._outbox.is_under_way:
                # Of a partition that was lost and is back, its offsets would be waited for: now they are given up.
                self._outbox.publish()
            self._quarantine.assigned(list(epochs))

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish what the device has begun, publish and commit what is resolved, forget the rest: all in one deadline.

        Records still in line are dropped at once: their next owner computes them, and the group need not wait for it.
        """
        # Halted by a limit, nothing more is decided: the next letter would be one too many again.
        has_time = self._is_in_time and not self._outbox.halted
        deadline_s = self._clocks.monotonic_s() + (REVOKE_TIMEOUT_S if has_time else 0.0)
        gone = set(partitions)
        for partition in gone:
            self._batcher.forget(partition)
        while self._is_computing(gone) and self._clocks.monotonic_s() < deadline_s:
            self._clocks.wait(BUSY_POLL_S)
            self._collect()
            if self._outbox.is_under_way:  # readers, and its own time-out, do not wait for the device
                self._outbox.publish()
        self._outbox.publish_until(deadline_s)
        if self._orderly:
            # Save where a commit has no answer yet: an offset committed after it, outside the transaction, would win.
            self._quarantine.hand_over(gone.difference(self._outbox.undecided))
        self._forget(Rebalance.REVOKED, partitions)

    def lost(self, partitions: Sequence[Partition]) -> None:
        """They are somebody else's already: forget them and commit nothing."""
        self._forget(Rebalance.LOST, partitions)

    def _forget(self, kind: Rebalance, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self._ledger.forget(partition)
            self._batcher.forget(partition)
            self._quarantine.forget(partition)
            self._not_due_ms.pop(partition, None)
        self._rebalanced(kind, partitions, len(self._consumer.assignment) - len(partitions))

    def _rebalanced(self, kind: Rebalance, partitions: Sequence[Partition], held: int) -> None:
        self._metrics.rebalanced(kind, partitions, assigned=held)
        self._health.assigned(held)
        log.info("rebalance", kind=kind.value, partitions=[f"{p.topic}-{p.number}" for p in partitions], held=held)

    def _is_computing(self, partitions: set[Partition]) -> bool:
        return any(job.record.position.partition in partitions for jobs in self._computing for job in jobs)

    # Fetch and admit --------------------------------------------------------------------------------------------------

    def _fetch(self) -> None:
        began_s = self._clocks.monotonic_s()
        fullness = self._fullness()
        if fullness < 1.0:
            self._full_since_s = None
        elif self._full_since_s is None:
            self._full_since_s = began_s
        if self._draining or (self._full_since_s is not None and began_s >= self._full_since_s + PAUSE_AFTER_S):
            self._consumer.pause()
        elif fullness <= 0.5:  # half: so that fetching does not flutter
            self._consumer.resume()
        elif self._full_since_s is not None and not self._consumer.paused:
            self._clocks.wait(BUSY_POLL_S)
            return
        self._metrics.paused(len(self._consumer.assignment) if self._consumer.paused else 0)
        records = self._consumer.poll(self._policies.batch.max_messages, self._patience_s(began_s))
        self._metrics.stage(Stage.POLL, self._clocks.monotonic_s() - began_s)
        if self._quarantine or self._retry_topics:
            records = self._set_aside(records)
        for record in records:
            self._ledger.track(record)
        for topic, count in Counter(record.position.partition.topic for record in records).items():
            self._metrics.consumed(topic, count)
        self._unread.extend(records)

    def _set_aside(self, records: Sequence[Record]) -> list[Record]:
        """Leave out what is not due yet (retry topics) and take one record at a time of quarantined partitions.

        What is left out is held by the consumer and read again later: waiting costs no memory, and no place in the
        ledger that another partition could use.
        """
        now_ms = int(self._clocks.wall_s() * 1000)
        for partition in [p for p, due_ms in self._not_due_ms.items() if due_ms <= now_ms]:
            del self._not_due_ms[partition]
            self._consumer.unhold(partition)
        kept: list[Record] = []
        held: set[Partition] = set()
        for read in records:
            partition, offset = read.position.partition, read.position.offset
            if partition in held:
                continue
            record = come_back(read) if partition.topic in self._retry_topics else read
            detour = detour_of(record) if partition.topic in self._retry_topics else None
            if detour is not None and 0 < detour.not_before_ms - now_ms <= self._longest_wait_ms:
                held.add(partition)
                self._consumer.hold(partition, offset)
                self._not_due_ms[partition] = detour.not_before_ms
                continue
            if self._quarantine.holds(partition):
                held.add(partition)
                self._quarantine.take(record)
                self._ledger.track(record)
                continue
            if not self._quarantine.admits(record):
                held.add(partition)
                continue
            kept.append(record)
        return kept

    def _fullness(self) -> float:
        """How much of what may be held is held: 1 and more is pressure."""
        policy = self._policies.batch
        return max(
            self._ledger.in_flight / (BATCHES_IN_HAND * policy.max_messages),
            self._batcher.tokens / (BATCHES_IN_HAND * policy.max_tokens),
            self._ledger.held_bytes / HELD_BYTES,
            1.0 if self._unread else 0.0,
        )

    def _patience_s(self, now_s: float) -> float:
        if self._computing or self._quarantine.has_wards:  # with those a batch that is due may have to wait
            return BUSY_POLL_S
        moments = [self._batcher.deadline_s, self._outbox.deadline_s]
        if self._later:
            moments.append(self._later[0][0])
        if self._not_due_ms:
            moments.append(now_s + min(self._not_due_ms.values()) / 1000 - self._clocks.wall_s())
        return min(IDLE_POLL_S, max(0.0, min(moments) - now_s))

    def _admit(self) -> None:
        began_s = self._clocks.monotonic_s()
        while self._later and self._later[0][0] <= began_s:
            job = heapq.heappop(self._later)[2]
            if self._ledger.is_live(job.record.position):
                self._line_up(job)
        if not self._unread or began_s < self._admit_at_s:
            return
        # One poll may bring more work than may be held: the rest waits undecoded, and fetching pauses with it.
        most = BATCHES_IN_HAND * self._policies.batch.max_tokens
        while self._unread and self._batcher.tokens < most:
            record = self._unread[0]
            try:
                if self._ledger.is_live(record.position):
                    self._admit_one(record)
            except RegistryAway as error:
                # An outage is not poison: keep the record, read nothing behind it, try again later.
                self._registry_attempts += 1
                self._admit_at_s = began_s + self._policies.retry.delay_s(
                    self._registry_attempts, self._random.random()
                )
                log.warning("registry_away", error=str(error), waiting=len(self._unread))
                break
            self._unread.popleft()
            self._registry_attempts = 0
        self._metrics.stage(Stage.DECODE, self._clocks.monotonic_s() - began_s)

    def _admit_one(self, record: Record) -> None:
        if record.value is None:
            self._metrics.tombstones()
            self._ledger.resolve(record.position, None)
            return
        detour = detour_of(record) if record.position.partition.topic in self._retry_topics else None
        attempt = detour.attempt if detour is not None else 1
        try:
            self._check_age(record)
            request = self._codec.read(record)
            encoded = self._encode(request)
        except (RegistryAway, FatalError):
            raise
        except Exception as error:  # whatever else reading a record raises concerns that record only
            if not isinstance(error, Rejection):
                log.exception("admission_failed", topic=record.position.partition.topic, offset=record.position.offset)
            self._outbox.bury(record, fault_of(error, "decode"), attempt)
            return
        self._line_up(Job(record, request, encoded, attempt))

    def _check_age(self, record: Record) -> None:
        limit_s = self._policies.max_age_s
        if limit_s is None or record.timestamp_ms < 0:
            return
        age_s = self._clocks.wall_s() - record.timestamp_ms / 1000
        if age_s > limit_s:
            raise Rejection(Reason.EXPIRED, "decode", f"{age_s:.1f} s old; limits.max_age_s is {limit_s:g}")

    def _line_up(self, job: Job) -> None:
        if self._quarantine and self._quarantine.holds(job.record.position.partition):
            self._hand_to_inference(Batch((job,), job.encoded.tokens, self._clocks.monotonic_s(), Trigger.QUARANTINE))
        else:
            self._batcher.add(job, self._clocks.monotonic_s())

    # Offer and collect ------------------------------------------------------------------------------------------------

    def _offer(self) -> None:
        now_s = self._clocks.monotonic_s()
        if self._quarantine and self._is_turn_of_ward(now_s):
            return
        self._top_up()
        while self._inference.has_room:
            trigger = self._batcher.due(now_s)
            if trigger is None and self._draining and len(self._batcher):
                trigger = Trigger.DRAIN
            if trigger is None:
                return
            batch = self._batcher.take(trigger)
            self._hand_to_inference(batch)

    def _top_up(self) -> None:
        """Let newcomers into the batch that waits for the device: behind it they would wait for one batch more."""
        if not len(self._batcher) or (waiting := self._inference.withdraw()) is None:
            return
        if waiting.trigger is not Trigger.QUARANTINE:
            waiting = self._batcher.fill(waiting)
            self._computing[-1] = waiting.jobs
        self._inference.offer(waiting)

    def _hand_to_inference(self, batch: Batch) -> None:
        self._computing.append(batch.jobs)
        self._inference.offer(batch)

    def _is_turn_of_ward(self, now_s: float) -> bool:
        """Quarantined records and ordinary batches take turns; True while nothing else may be offered."""
        ward = self._quarantine.waiting()
        if self._quarantine.has_suspect:
            # It is computed, or waits for its next attempt or its commit: no neighbour's crash may be laid to it.
            if ward is not None:
                self._treat(ward)
            return True
        if ward is None or (self._ward_had_turn and self._batcher.due(now_s) is not None):
            self._ward_had_turn = False
            return False
        # Nothing else may be under way when it is marked, for the same reason.
        if not self._computing and self._outbox.is_empty:
            self._ward_had_turn = True
            self._treat(ward)
        return True

    def _treat(self, ward: Ward) -> None:
        """Steps 2 and 3 of worker.rules.crash_count, for one record."""
        record = ward.record
        if record is None or self._clocks.monotonic_s() < self._admit_at_s:
            return
        if ward.condemned:
            ward.record, ward.condemned = None, False
            fault = Fault(
                FaultKind.MESSAGE,
                Reason.CRASH,
                "quarantine",
                "ProcessDied",
                "the process died with this record in hand",
            )
            self._outbox.bury(record, fault, attempts=STARTS + 1)
            return
        try:
            if ward.suspect_at is None:
                self._quarantine.suspect(ward, record)
            self._admit_one(record)
            self._registry_attempts = 0
        except (BrokerAway, RegistryAway) as error:
            self._registry_attempts += 1
            self._admit_at_s = self._clocks.monotonic_s() + self._policies.retry.delay_s(
                self._registry_attempts, self._random.random()
            )
            log.warning("quarantine_waits", error=str(error))  # the record stays where it is
            return
        ward.record = None

    def _collect(self) -> None:
        while (done := self._inference.collect()) is not None:
            self._computing.popleft()
            self._metrics.batch(done.batch)
            self._metrics.stage(Stage.WAIT, done.began_s - done.batch.opened_at_s)
            now_s = self._clocks.monotonic_s()
            retried = revoked = 0
            for finished in done.finished:
                if not self._ledger.is_live(finished.job.record.position):
                    revoked += 1  # a late result of a former assignment: the partition's new owner answers it
                elif isinstance(finished, Answered):
                    retried += self._answer(finished, now_s)
                else:
                    retried += self._decide(finished.job, finished.fault, now_s)
            work = done.work
            self._metrics.token_budget(work.budget)
            self._metrics.stage(Stage.INFERENCE, now_s - done.began_s)
            self._metrics.inferred(work, done.bisections)
            self._outbox.collected(Collected(done, now_s, retried, revoked))

    def _answer(self, answered: Answered, now_s: float) -> bool:
        """Resolve a job by its result. True if that could not be written and the job is tried again."""
        job = answered.job
        try:
            output = self._codec.write(job, answered.outcome)
        except Exception as error:  # whatever cannot be written of one result concerns that message only
            log.exception("result_not_written", offset=job.record.position.offset)
            return self._decide(job, fault_of(error, "encode", traceback.format_exc()), now_s)
        self._outbox.answer(job.record.position, output)
        return False

    def _decide(self, job: Job, fault: Fault, now_s: float) -> bool:
        """Retry or bury a job that failed alone. True if it is tried again."""
        match decide(self._policies.retry, fault, job.attempt, now_s, self._random.random()):
            case Retry(not_before_s):
                log.warning("retry", attempt=job.attempt, error=fault.error, message=fault.message)
                if self._policies.retry_topics:
                    self._send_round(job)
                else:
                    again = replace(job, attempt=job.attempt + 1)
                    heapq.heappush(self._later, (not_before_s, next(self._ticket), again))
                    self._metrics.retried()
                return True
            case DeadLetter(reason):
                self._outbox.bury(job.record, replace(fault, reason=reason), job.attempt)
                return False

    def _send_round(self, job: Job) -> None:
        """Resolve a record by its next attempt, a copy in the retry topic of its delay: its partition goes on."""
        topics = self._policies.retry_topics
        delay_s, topic = topics[min(job.attempt, len(topics)) - 1]
        not_before_ms = int((self._clocks.wall_s() + delay_s) * 1000)
        self._ledger.resolve(job.record.position, send_round(job.record, topic, job.attempt + 1, not_before_ms))

    def _report(self) -> None:
        now_s = self._clocks.monotonic_s()
        waiting, finished = self._inference.depths
        self._metrics.queued(Queue.BATCHES, waiting)
        self._metrics.queued(Queue.RESULTS, finished)
        if now_s >= self._lag_at_s:
            self._lag_at_s = now_s + LAG_INTERVAL_S
            for partition, unread in self._consumer.lag().items():
                self._metrics.lag(partition.topic, partition.number, unread + self._ledger.owed(partition))
