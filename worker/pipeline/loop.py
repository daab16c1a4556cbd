"""The loop of the Kafka thread: one step of the pipeline after the other, rebalances, and the end.

No step waits for the model. The only wait is the time-out of the consumer's poll, so that librdkafka's callbacks run
and the group membership stays alive, whatever is away.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from confluent_kafka import OFFSET_BEGINNING

from worker.http.calls import Gate
from worker.http.health import Health
from worker.kafka.consumer import Consumer
from worker.kafka.publisher import Publisher
from worker.messages import Partition
from worker.pipeline.admit import Admission
from worker.pipeline.clocks import BUSY_POLL_S, Clocks
from worker.pipeline.fetch import Fetcher
from worker.pipeline.handoff import Handoff
from worker.pipeline.partition import AssignedPartition, Partitions
from worker.pipeline.publish import Publication
from worker.pipeline.quarantine import OneAtATime, Quarantine
from worker.pipeline.report import Report
from worker.pipeline.resolve import Resolver
from worker.pipeline.topic_watch import TopicWatch
from worker.telemetry.metrics import Rebalance

if TYPE_CHECKING:
    from worker.telemetry.traces import Traces

# Within a revoke the group waits for us, so it is shorter than any rebalance time-out in use.
REVOKE_TIMEOUT_S: Final = 10.0


class Phase(Enum):
    """Where the loop is in its life. It only goes down this list."""

    RUNNING = auto()
    DRAINING = auto()  # nothing more is read; what is in hand is answered
    OVERDUE = auto()  # the drain ran out of time: what is left is the next owner's
    FAILED = auto()  # an error ends the worker, and a record in hand may be why
    HALTED = auto()  # a limit on dead letters ends it: nothing more is decided


@dataclass(slots=True, kw_only=True)
class Loop:
    """The steps and what they share, made by `worker.pipeline.wiring`. All runs on the thread that calls `step`."""

    consumer: Consumer
    publisher: Publisher
    partitions: Partitions
    fetcher: Fetcher
    admission: Admission
    quarantine: Quarantine
    one_at_a_time: OneAtATime
    handoff: Handoff
    resolver: Resolver
    publication: Publication
    report: Report
    health: Health
    clocks: Clocks
    gate: Gate
    traces: Traces | None = None
    topic_watch: TopicWatch | None = None
    phase: Phase = Phase.RUNNING

    def start(self, topics: Sequence[str]) -> None:
        """Join the group."""
        self.consumer.subscribe(topics, self)

    def step(self) -> None:
        """Every step of the pipeline once. Raises FatalError, or whatever crashed the inference thread."""
        is_draining = self.phase is Phase.DRAINING
        self.health.loop_beat(self.clocks.monotonic_s())
        self._begin_anew()
        self.fetcher.step(is_draining=is_draining, deadline_s=self._deadline_s())
        self.admission.step()
        is_watching = bool(self.quarantine)
        if not is_watching:
            self.gate.open()
        if not (is_watching and self.one_at_a_time.step(lambda: self.publication.is_done)):
            self.handoff.offer(is_draining=is_draining, takes_calls=not is_watching)
        self._collect()
        self.publication.step(is_draining=is_draining)
        self.report.step()

    def _begin_anew(self) -> None:
        """Partitions whose position is worth nothing any more are read from another, under new generations.

        Late results of what was read before are dropped.
        """
        if self.topic_watch is not None:
            self.topic_watch.step()
        has_changes = self.topic_watch is not None and self.topic_watch.has_changes
        # A commit that is under way may carry former positions: what is committed after it wins.
        if not (has_changes or self.consumer.rewinds.waiting) or self.publication.is_under_way:
            return
        made_again = self.topic_watch.take() if self.topic_watch is not None else {}
        begins = self.consumer.rewinds.waiting | dict.fromkeys(made_again, OFFSET_BEGINNING)
        for partition in begins:
            self.handoff.forget(partition)
        if begins:
            self.assigned(self.consumer.rewinds.begin(begins, made_again, is_paused=self.consumer.paused))

    def _collect(self) -> None:
        while (result := self.handoff.collect()) is not None:
            with nullcontext() if self.traces is None else self.traces.batch(result) as ids:
                self.report.collected(result, self.resolver.computed(result), ids)

    def _deadline_s(self) -> float:
        """When something is due that no record announces."""
        soon_s = self.clocks.monotonic_s() + BUSY_POLL_S
        if self.handoff.is_computing:
            return soon_s
        deadline_s = min(
            self.handoff.deadline_s, self.resolver.deadline_s, self.publication.deadline_s, self.admission.deadline_s
        )
        if self.quarantine:
            # A batch that is due may have to wait for a quarantined record.
            deadline_s = max(soon_s, min(deadline_s, self.quarantine.deadline_s))
        return deadline_s

    @property
    def in_flight(self) -> int:
        """Records read whose outputs are not acknowledged yet."""
        return self.partitions.in_flight

    # The end ----------------------------------------------------------------------------------------------------------

    def drain(self, timeout_s: float) -> bool:
        """Read nothing more, answer what is in hand, publish it. False if time ran out with something left.

        What is left is not committed; the next owner of its partition reads it again.
        """
        self.phase = Phase.DRAINING
        self.health.draining()
        deadline_s = self.clocks.monotonic_s() + timeout_s
        # A commit without an answer is seen through although its partitions may have left: readers wait for it.
        while (self.in_flight or self.publication.is_under_way) and self.clocks.monotonic_s() < deadline_s:
            self.step()
            self.clocks.wait(BUSY_POLL_S)
        if self.in_flight:
            self.phase = Phase.OVERDUE
        return self.phase is Phase.DRAINING

    def close(self) -> None:
        """Leave the group and disconnect. What was not published is the next owner's."""
        if self.resolver.is_halted:
            self.phase = Phase.HALTED
        elif self.phase is Phase.RUNNING:
            self.phase = Phase.FAILED
        try:
            self.consumer.close()
        finally:
            self.publisher.close()

    # Rebalances: called by the consumer, inside poll and close --------------------------------------------------------

    def assigned(self, generations: Mapping[Partition, int]) -> Collection[Partition]:
        """Open an account for each new partition.

        Returns those whose committed offset is one of a former topic of that name.
        """
        for partition, generation in generations.items():
            self.quarantine.forget(partition)
            self.partitions.assign(AssignedPartition(partition, generation))
        self.report.rebalanced(Rebalance.ASSIGNED, list(generations), len(self.consumer.assignment))
        if not generations:
            return ()
        if self.publication.is_under_way:
            # Of a partition that was lost and is back, its offsets would be waited for: now they are given up.
            self.publication.step(is_draining=False)
        committed = self.quarantine.committed(list(generations))
        anew = self.topic_watch.assigned(committed) if self.topic_watch is not None else ()
        self.quarantine.assigned(committed | dict.fromkeys(anew, (0, "")))
        return anew

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish what the device has begun, publish and commit what is resolved, forget the rest: all in one deadline.

        Jobs that wait for a batch are dropped at once: their next owner computes them, and the group need not wait.
        """
        has_time = self.phase is not Phase.OVERDUE and not self.resolver.is_halted
        deadline_s = self.clocks.monotonic_s() + (REVOKE_TIMEOUT_S if has_time else 0.0)
        gone = set(partitions)
        for partition in gone:
            self.handoff.forget(partition)
        while self.handoff.is_computing_for(gone) and self.clocks.monotonic_s() < deadline_s:
            self.clocks.wait(BUSY_POLL_S)
            self._collect()
            if self.publication.is_under_way:  # readers, and its own time-out, do not wait for the device
                self.publication.step(is_draining=False)
        self.publication.publish_until(deadline_s)
        if self.phase is not Phase.FAILED:
            # Save where a commit has no answer yet: an offset committed after it, outside the transaction, would win.
            self.quarantine.hand_over(gone.difference(self.publication.undecided))
        self._forget(Rebalance.REVOKED, partitions)

    def lost(self, partitions: Sequence[Partition]) -> None:
        """They are somebody else's already: forget them and commit nothing."""
        self._forget(Rebalance.LOST, partitions)

    def _forget(self, kind: Rebalance, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            self.quarantine.forget(partition)
            self.partitions.forget(partition)
            self.handoff.forget(partition)
        self.report.rebalanced(kind, partitions, len(self.consumer.assignment) - len(partitions))
