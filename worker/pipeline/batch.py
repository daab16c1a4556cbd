"""When a batch is full, and what goes into it.

Jobs wait in one line. A batch is a prefix of that line, so the order of admission is the order of computing, and the
age of a batch is the age of its own first job: an idle spell never ends in a batch of one for the record after next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from worker.messages import Batch, Job, Partition, Trigger, value

# Batches' worth of work in hand before fetching pauses: one runs, one waits, four are finished, two wait for a batch.
BATCHES_IN_HAND: Final = 8


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """What closes a batch, whichever comes first. ``max_wait_s`` counts from the admission of its first job.

    Unless ``waits_for_more``, a batch is due as soon as the device has room for it, whatever it holds.
    """

    max_messages: int
    max_tokens: int
    max_wait_s: float
    waits_for_more: bool = True


@value
class _Waiting:
    job: Job
    since_s: float


class Batcher:
    """The line of jobs and the rule that cuts it.

    Invariant: ``tokens`` is the sum of the costs of the jobs in line; every job leaves exactly once, in order, by
    `take` or by `forget`.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._line: deque[_Waiting] = deque()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._line)

    @property
    def tokens(self) -> int:
        """Tokens of all jobs in line."""
        return self._tokens

    def add(self, job: Job, now_s: float) -> None:
        """Put a job at the end of the line."""
        self._line.append(_Waiting(job, now_s))
        self._tokens += job.encoded.tokens

    def due(self, now_s: float) -> Trigger | None:
        """What closes the batch at the head of the line by now, or None while it may still grow."""
        if not self._line:
            return None
        if len(self._line) >= self._policy.max_messages or _goes_alone(self._line[0].job):
            return Trigger.MESSAGES
        if self._tokens >= self._policy.max_tokens:
            return Trigger.TOKENS
        if not self._policy.waits_for_more:
            return Trigger.IDLE
        return Trigger.WAIT if now_s >= self.deadline_s else None

    @property
    def deadline_s(self) -> float:
        """When the head of the line has waited long enough; infinity with nobody in line."""
        if not self._line:
            return float("inf")
        return self._line[0].since_s + (self._policy.max_wait_s if self._policy.waits_for_more else 0.0)

    def take(self, trigger: Trigger) -> Batch:
        """Cut a batch off the head: as many as fit both bounds, and at least one, even if it alone is over the budget.

        A job that has failed before, alone, goes alone again: in company it would fail them all once more.

        Raises:
            IndexError: nobody is in line.
        """
        first = self._line.popleft()
        self._tokens -= first.job.encoded.tokens
        batch = self.fill(Batch((first.job,), first.job.encoded.tokens, first.since_s, trigger))
        if trigger is Trigger.MESSAGES and self._is_cut_by_tokens(batch):
            return replace(batch, trigger=Trigger.TOKENS)
        return batch

    def _is_cut_by_tokens(self, batch: Batch) -> bool:
        """Whether enough messages wait for a full batch, and their tokens are too many for one."""
        if len(batch.jobs) >= self._policy.max_messages or not self._line:
            return False
        return not (_goes_alone(batch.jobs[0]) or _goes_alone(self._line[0].job))

    def fill(self, batch: Batch) -> Batch:
        """The batch with as many jobs more, from the head of the line, as fit beside its own."""
        jobs, tokens = list(batch.jobs), batch.tokens
        while self._line and len(jobs) < self._policy.max_messages and not _goes_alone(jobs[0]):
            cost = self._line[0].job.encoded.tokens
            if tokens + cost > self._policy.max_tokens or _goes_alone(self._line[0].job):
                break
            jobs.append(self._line.popleft().job)
            tokens += cost
        self._tokens -= tokens - batch.tokens
        trigger = batch.trigger
        if trigger is Trigger.IDLE:
            # It filled up while it waited for the device.
            if len(jobs) >= self._policy.max_messages:
                trigger = Trigger.MESSAGES
            elif self._line and not _goes_alone(self._line[0].job):
                trigger = Trigger.TOKENS
        return replace(batch, jobs=tuple(jobs), tokens=tokens, trigger=trigger)

    def forget(self, partition: Partition) -> None:
        """Drop the jobs of a partition that is no longer ours; its next owner reads them again."""
        self._line = deque(w for w in self._line if w.job.record.position.partition != partition)
        self._tokens = sum(w.job.encoded.tokens for w in self._line)


def _goes_alone(job: Job) -> bool:
    """True for a job that has failed before: in company it would fail the others once more."""
    return job.record.attempt > 1
