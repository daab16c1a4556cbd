"""Compute jobs, or calls, together; what fails is split until the culprit stands alone."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from worker.errors import FatalError, TransientError
from worker.http.calls import Call
from worker.messages import Encoded, Fault, Job, Outcome, Request, Work
from worker.rules.retry import fault_of

log = structlog.get_logger("worker.inference")

Found = Outcome | Fault
_NO_WORK: Final = Work(rows=0, computed=0, tokens=0, slots=0, cache_hits=0, shrinks=0, forwards=0, seconds=0.0)


class Runs(Protocol):
    """The part of `worker.inference.engine.Engine` that this thread uses."""

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        """Outcomes in the order of the requests. ``beat`` is called before each forward: slow is not hung."""


@dataclass(slots=True)
class Tally:
    """What a batch has cost so far."""

    work: Work
    splits: int = 0


class Computation:
    """Runs the engine. Inference thread only.

    Args:
        engine: What computes.
        beat: Told that work began or went on.
    """

    def __init__(self, engine: Runs, beat: Callable[[], None]) -> None:
        self._engine = engine
        self._beat = beat
        self.budget = 0  # token slots of a forward, as the engine told last

    def tally(self) -> Tally:
        """An empty one. A batch that fails as a whole tells no budget: the last one told stands."""
        return Tally(replace(_NO_WORK, budget=self.budget))

    def together(self, jobs: Sequence[Job | Call], tally: Tally, *, is_bad: bool = False) -> list[Found]:
        """Answer jobs together; if that fails, in quarters, until the culprit stands alone.

        ``is_bad``: a culprit must be among them, because their failed whole was clean otherwise; several such jobs are
        split without being tried. This is the splitting of group testing (Hwang 1972), in quarters where that has
        halves: a test that fails is paid with the neighbours in it, so it is better for being small. One culprit among
        n costs them the failed pass over n, and n/4, n/16, ... where no deduction spares it: one and a third batches
        more at most. Halves would cost two, in as many passes; eighths save a fifth of a batch and cost more passes.
        Every neighbour is computed at most log4(n), rounded up, times more than once.
        """
        if is_bad and len(jobs) > 1:
            return self._split(jobs, tally)
        self._beat()
        try:
            outcomes, work = self._engine.run([(job.request, job.encoded) for job in jobs], self._beat)
        except (FatalError, TransientError):
            raise
        except Exception as error:  # noqa: BLE001 (whatever a text provokes in the model, it ends that text only)
            rows = sum(len(job.encoded.rows) for job in jobs)
            tally.work = replace(tally.work, failed=tally.work.failed + rows)
            if len(jobs) == 1:
                return [fault_of(error, "inference", traceback.format_exc())]
            log.warning("batch_split", jobs=len(jobs), error=type(error).__name__)
            return self._split(jobs, tally)
        tally.work = _sum(tally.work, work)
        self.budget = work.budget
        return list(outcomes)

    def _split(self, jobs: Sequence[Job | Call], tally: Tally) -> list[Found]:
        """Answer jobs among which there is a culprit, a quarter at a time: in the last, if all before were clean."""
        tally.splits += 1
        found: list[Found] = []
        size = math.ceil(len(jobs) / 4)
        for start in range(0, len(jobs), size):
            is_last = start + size >= len(jobs)
            is_clean = not any(isinstance(one, Fault) for one in found)
            found += self.together(jobs[start : start + size], tally, is_bad=is_last and is_clean)
        return found


def _sum(a: Work, b: Work) -> Work:
    return replace(
        a,
        rows=a.rows + b.rows,
        computed=a.computed + b.computed,
        tokens=a.tokens + b.tokens,
        slots=a.slots + b.slots,
        cache_hits=a.cache_hits + b.cache_hits,
        shrinks=a.shrinks + b.shrinks,
        forwards=a.forwards + b.forwards,
        seconds=a.seconds + b.seconds,
        budget=b.budget,
        failed=a.failed + b.failed,
    )
