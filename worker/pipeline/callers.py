"""Calls over HTTP, as the inference thread sees them: how many may go now, with whom, and what they are told.

They join between two batches: they share the first forwards of the next batch, and are answered before the rest of it
is computed, or go alone where no batch waits. `worker.rules.device_share` says how many may.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from worker.errors import TransientError
from worker.http.calls import Call, CallQueue
from worker.messages import Batch, Job, Work
from worker.pipeline.computation import Computation, Found, Tally
from worker.rules.device_share import DeviceShare
from worker.rules.retry import fault_of

log = structlog.get_logger("worker.inference")

# A stream with a backlog offers its next batch sooner than this after the last one. Without one for longer it is idle.
_IDLE_S: Final = 0.01


class Callers:
    """Takes calls, computes them and answers. Inference thread only.

    Args:
        queue: where they wait.
        share: what of the device they may have while the stream has a backlog.
        computation: what computes.
        clock: monotonic seconds.
        called: told what calls cost that were computed alone.
        renew: tokenises anew what another model has tokenised; None: the model stays.
    """

    def __init__(
        self,
        queue: CallQueue,
        share: DeviceShare,
        computation: Computation,
        clock: Callable[[], float],
        called: Callable[[Work, int], None],
        renew: Callable[[Sequence[Call]], None] | None = None,
    ) -> None:
        self._queue = queue
        self._share = share
        self._computation = computation
        self._clock = clock
        self._called = called
        self._renew = renew
        self._streamed_at_s = -math.inf  # when the last batch was done

    @property
    def is_free(self) -> bool:
        """True if no call waits."""
        return not len(self._queue)

    def ring(self) -> None:
        """A batch waits: any thread."""
        self._queue.bell.set()

    def await_either(self, next_batch: Callable[[], Batch | None], timeout_s: float) -> tuple[Batch | None, list[Call]]:
        """The batch that waits, and the calls that may go now, as soon as there is one or the other."""
        deadline_s = self._clock() + timeout_s
        while True:
            self._queue.bell.clear()  # before both are looked at: what comes behind that rings again
            batch = next_batch()
            idle_in_s = self._streamed_at_s + _IDLE_S - self._clock()
            if batch is None and idle_in_s <= 0:
                self._share.stream_is_idle()
            taken = self._take()
            left_s = deadline_s - self._clock()
            if batch is not None or taken or left_s <= 0:
                return batch, taken
            # Calls that have had their share wait for a batch, or until none has come.
            self._queue.bell.wait(min(left_s, idle_in_s) if len(self._queue) and idle_in_s > 0 else left_s)

    def _take(self) -> list[Call]:
        taken = self._queue.take(self._share.allowance)
        if self._renew is not None:
            self._renew(taken)
        self._share.called(sum(call.encoded.tokens for call in taken))
        return taken

    def streamed(self, batch: Batch) -> None:
        """A batch was computed."""
        self._share.streamed(batch.tokens)
        self._streamed_at_s = self._clock()

    def beside(self, calls: list[Call], jobs: Sequence[Job], tally: Tally) -> list[Found]:
        """What is found for jobs. Calls go with as many of them as fill a forward, and are answered before the rest.

        All of it takes a number of forwards by the token budget, and the first part is one of that many equal ones: a
        forward for what is left over would be a small one. ``calls`` is empty after that.
        """
        called = sum(call.encoded.tokens for call in calls)
        total = called + sum(job.encoded.tokens for job in jobs)
        room = total / math.ceil(total / (self._computation.budget or total)) - called
        first = 0
        began_s = self._clock()
        while first < len(jobs) and room >= jobs[first].encoded.tokens:
            room -= jobs[first].encoded.tokens
            first += 1
        found = self._computation.together([*calls, *jobs[:first]], tally)
        beside = found[len(calls) :]
        self._give_back(calls, found[: len(calls)], began_s)
        return beside + self._computation.together(jobs[first:], tally) if first < len(jobs) else beside

    def alone(self, calls: list[Call]) -> None:
        """Compute and answer calls where no batch waits, or none that may share a forward."""
        tally = self._computation.tally()
        began_s = self._clock()
        try:
            self._give_back(calls, self._computation.together(calls, tally), began_s)
        except TransientError as error:
            log.warning("device_away", error=str(error))
            self.refuse(error, calls)
        self._called(tally.work, tally.splits)

    def meanwhile(self) -> None:
        """Answer calls while the Kafka thread takes no results, in an outage of the broker perhaps."""
        self._share.stream_is_idle()
        if calls := self._take():
            self.alone(calls)

    def refuse(self, error: TransientError, calls: list[Call] | None = None) -> None:
        """These calls, or those that wait, need not wait for a device that is away: their callers may ask another."""
        if calls is None:
            calls = self._queue.take(sys.maxsize)
        self._give_back(calls, [fault_of(error, "inference", "")] * len(calls))

    def _give_back(self, calls: list[Call], found: Sequence[Found], began_s: float | None = None) -> None:
        """Tell callers; ``began_s`` is when the model got their calls, if it did."""
        for call in calls:
            if call.headers and began_s is not None:
                call.computed_s = began_s, self._clock()
        if calls:
            self._queue.answer(calls.copy(), found)
            calls.clear()
