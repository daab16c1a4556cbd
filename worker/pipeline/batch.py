"""When a batch is full, and what goes into it.

Jobs wait in one line. A batch is a prefix of that line, so the order of admission is the order of computing, and the
age of a batch is the age of its own first job: an idle spell never ends in a batch of one for the record after next.

A batch sees one version of a label set. Where a newer one waits in line, the batch ends before it, and at once: behind
the older one it can grow no more.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from worker.messages import Batch, Job, LabelSetVersion, Partition, Trigger, value

# Batches' worth of work in hand before fetching pauses: one runs, one waits, four are finished, two wait for a batch.
BATCHES_IN_HAND: Final = 8


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """What closes a batch, whichever comes first. ``max_wait_s`` counts from the admission of its first job."""

    max_messages: int
    max_tokens: int
    max_wait_s: float


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
        self._versions = _Versions()

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
        if job.request.label_set is not None:
            self._versions.add(job.request.label_set)

    def due(self, now_s: float) -> Trigger | None:
        """What closes the batch at the head of the line by now, or None while it may still grow."""
        if not self._line:
            return None
        if len(self._line) >= self._policy.max_messages or _goes_alone(self._line[0].job):
            return Trigger.MESSAGES
        if self._tokens >= self._policy.max_tokens:
            return Trigger.TOKENS
        if self._versions.differ:
            return Trigger.LABEL_SET
        return Trigger.WAIT if now_s >= self.deadline_s else None

    @property
    def deadline_s(self) -> float:
        """When the head of the line has waited long enough; infinity with nobody in line."""
        return self._line[0].since_s + self._policy.max_wait_s if self._line else float("inf")

    def take(self, trigger: Trigger) -> Batch:
        """Cut a batch off the head: as many as fit both bounds, and at least one, even if it alone is over the budget.

        A job that has failed before, alone, goes alone again: in company it would fail them all once more.

        Raises:
            IndexError: nobody is in line.
        """
        first = self._line.popleft()
        self._tokens -= first.job.encoded.tokens
        self._versions.left(first.job)
        batch = self.fill(Batch((first.job,), first.job.encoded.tokens, first.since_s, trigger))
        if trigger is Trigger.MESSAGES and (cut := self._cut(batch)) is not None:
            return replace(batch, trigger=cut)
        return batch

    def _cut(self, batch: Batch) -> Trigger | None:
        """What has cut a batch, although enough messages wait for a full one."""
        if len(batch.jobs) >= self._policy.max_messages or not self._line:
            return None
        following = self._line[0].job
        if _goes_alone(batch.jobs[0]) or _goes_alone(following):
            return None
        return Trigger.LABEL_SET if _differs(following, _versions_of(batch.jobs)) else Trigger.TOKENS

    def fill(self, batch: Batch) -> Batch:
        """The batch with as many jobs more, from the head of the line, as fit beside its own."""
        jobs, tokens = list(batch.jobs), batch.tokens
        versions: dict[str, str] | None = None  # of the label sets in it, once they are asked for
        while self._line and len(jobs) < self._policy.max_messages and not _goes_alone(jobs[0]):
            job = self._line[0].job
            cost = job.encoded.tokens
            if tokens + cost > self._policy.max_tokens or _goes_alone(job):
                break
            if (label_set := job.request.label_set) is not None:
                versions = _versions_of(jobs) if versions is None else versions
                if _differs(job, versions):
                    break
                versions[label_set.name] = label_set.version
                self._versions.left(job)
            jobs.append(job)
            self._line.popleft()
            tokens += cost
        self._tokens -= tokens - batch.tokens
        return replace(batch, jobs=tuple(jobs), tokens=tokens)

    def forget(self, partition: Partition) -> None:
        """Drop the jobs of a partition that is no longer ours; its next owner reads them again."""
        self._line = deque(w for w in self._line if w.job.record.position.partition != partition)
        self._tokens = sum(w.job.encoded.tokens for w in self._line)
        self._versions = _Versions()
        for waiting in self._line:
            if waiting.job.request.label_set is not None:
                self._versions.add(waiting.job.request.label_set)


class _Versions:
    """The versions of label sets in line. ``differ``: of some set there is more than one."""

    def __init__(self) -> None:
        self._jobs: Counter[LabelSetVersion] = Counter()
        self._of_name: Counter[str] = Counter()
        self._mixed = 0  # sets of which there is more than one version

    @property
    def differ(self) -> bool:
        return self._mixed > 0

    def add(self, version: LabelSetVersion) -> None:
        self._jobs[version] += 1
        if self._jobs[version] == 1:
            self._of_name[version.name] += 1
            self._mixed += self._of_name[version.name] == 2

    def left(self, job: Job) -> None:
        """A job has left the line."""
        version = job.request.label_set
        if version is None:
            return
        self._jobs[version] -= 1
        if not self._jobs[version]:
            del self._jobs[version]
            self._of_name[version.name] -= 1
            self._mixed -= self._of_name[version.name] == 1
            if not self._of_name[version.name]:
                del self._of_name[version.name]


def _versions_of(jobs: Iterable[Job]) -> dict[str, str]:
    found = (job.request.label_set for job in jobs)
    return {label_set.name: label_set.version for label_set in found if label_set is not None}


def _differs(job: Job, versions: Mapping[str, str]) -> bool:
    """Whether a job's label set has another version among these."""
    label_set = job.request.label_set
    return label_set is not None and versions.get(label_set.name, label_set.version) != label_set.version


def _goes_alone(job: Job) -> bool:
    """True for a job that has failed before: in company it would fail the others once more."""
    return job.record.attempt > 1
