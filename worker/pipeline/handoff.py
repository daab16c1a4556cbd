"""Hand over: jobs wait for a batch, batches go to the inference thread, and their results are collected.

This is the one place that knows the open batch, the queues to and from the inference thread, and what is being
computed. The batch that waits for the device stays open: newcomers join it until the device takes it, for behind it
they would wait for one batch more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import replace

from worker.messages import Batch, BatchResult, Job, Partition, Trigger
from worker.pipeline.batch import Batcher, BatchPolicy
from worker.pipeline.clocks import Clocks
from worker.pipeline.infer import InferenceThread


class Handoff:
    """Between the Kafka thread, which calls every method, and the inference thread."""

    def __init__(self, inference: InferenceThread, policy: BatchPolicy, clocks: Clocks) -> None:
        self._inference = inference
        self._batcher = Batcher(policy)
        self._clocks = clocks
        self._computing: deque[tuple[Job, ...]] = deque()  # the jobs of batches handed over, oldest first

    def add(self, job: Job) -> None:
        """Let a job wait for its batch."""
        self._batcher.add(job, self._clocks.monotonic_s())

    def add_alone(self, job: Job) -> None:
        """Hand a job of a quarantined partition over, in a batch of its own. Nothing else may be under way."""
        now_s = self._clocks.monotonic_s()
        self._hand_over(Batch((job,), job.encoded.tokens, now_s, Trigger.QUARANTINE, takes_calls=False))

    def offer(self, *, is_draining: bool, takes_calls: bool = True) -> None:
        """Hand over the batches that are due, as far as there is room; while draining, whatever waits is due.

        ``takes_calls``: calls over HTTP may share their forwards.
        """
        now_s = self._clocks.monotonic_s()
        self._top_up(takes_calls=takes_calls)
        while self._inference.has_room:
            trigger = self._batcher.due(now_s)
            if trigger is None and is_draining and len(self._batcher):
                trigger = Trigger.DRAIN
            if trigger is None:
                return
            batch = self._batcher.take(trigger)
            self._hand_over(batch if takes_calls else replace(batch, takes_calls=False))

    def _top_up(self, *, takes_calls: bool) -> None:
        if not len(self._batcher) or (waiting := self._inference.withdraw()) is None:
            return
        if waiting.trigger is not Trigger.QUARANTINE:
            waiting = self._batcher.fill(waiting)
            if not takes_calls:
                waiting = replace(waiting, takes_calls=False)
            self._computing[-1] = waiting.jobs
        self._inference.offer(waiting)

    def _hand_over(self, batch: Batch) -> None:
        self._computing.append(batch.jobs)
        self._inference.offer(batch)

    def collect(self) -> BatchResult | None:
        """The result of the oldest batch handed over, or None. Raises whatever crashed the inference thread."""
        result = self._inference.collect()
        if result is not None:
            self._computing.popleft()
        return result

    def forget(self, partition: Partition) -> None:
        """Drop the waiting jobs of a partition that is no longer ours."""
        self._batcher.forget(partition)

    @property
    def tokens(self) -> int:
        """Tokens of the jobs that wait for a batch."""
        return self._batcher.tokens

    @property
    def has_waiting(self) -> bool:
        """True while jobs wait for a batch. Any thread."""
        return bool(len(self._batcher))

    @property
    def deadline_s(self) -> float:
        """When the jobs that wait have waited long enough; infinity if none does."""
        return self._batcher.deadline_s

    @property
    def has_due(self) -> bool:
        """True if a batch could be handed over now."""
        return self._batcher.due(self._clocks.monotonic_s()) is not None

    @property
    def is_computing(self) -> bool:
        """True while batches are handed over whose results are not collected."""
        return bool(self._computing)

    def is_computing_for(self, partitions: Collection[Partition]) -> bool:
        """True while results of these partitions are to come."""
        return any(job.record.position.partition in partitions for jobs in self._computing for job in jobs)

    @property
    def depths(self) -> tuple[int, int]:
        """Batches waiting to be computed, and results waiting to be collected."""
        return self._inference.depths
