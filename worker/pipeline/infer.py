"""Compute: batches come from one bounded queue, every job is answered, and the results go on another.

The inference thread owns the model and the device. Tests call `step` themselves instead of starting it.

Calls over HTTP join here, between two batches: they share the first forwards of the next batch, and are answered before
the rest of it is computed, or go alone where no batch waits. `worker.rules.device_share` says how many may.
"""

from __future__ import annotations

import math
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol

import structlog

from worker.errors import FatalError, TransientError
from worker.http.calls import Call, CallQueue
from worker.messages import Answered, Batch, BatchResult, Encoded, Failed, Fault, Job, Outcome, Request, Work
from worker.rules.device_share import DeviceShare
from worker.rules.retry import RetryPolicy, fault_of

log = structlog.get_logger("worker.inference")


class Runs(Protocol):
    """The part of `worker.inference.engine.Engine` that this thread uses."""

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        """Outcomes in the order of the requests. ``beat`` is called before each forward: slow is not hung."""


_BEAT_S: Final = 10.0
# A stream with a backlog offers its next batch sooner than this after the last one. Without one for longer it is idle.
_IDLE_S: Final = 0.01
_Found = Outcome | Fault
_NO_WORK = Work(rows=0, computed=0, tokens=0, slots=0, cache_hits=0, shrinks=0, forwards=0, seconds=0.0)


class InferenceThread:
    """One batch waits while one runs, and one finished batch waits to be collected; then this thread waits too.

    Args:
        engine: what computes.
        policy: how long to wait while the device is away.
        clock: monotonic seconds.
        beat: told that work began or went on (`worker.http.health.Health.inference_beat`).
        idle: told that no work is left in hand.
        calls: requests over HTTP, to be computed beside the batches; None: there are none, and they cost nothing.
        share: what of the device calls may have while the stream has a backlog; needed with ``calls``.
        called: told what calls cost that were computed alone.
    """

    def __init__(
        self,
        engine: Runs,
        policy: RetryPolicy,
        clock: Callable[[], float],
        beat: Callable[[float], None],
        idle: Callable[[], None],
        calls: CallQueue | None = None,
        share: DeviceShare | None = None,
        called: Callable[[Work, int], None] = lambda _work, _splits: None,
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._clock = clock
        self._beat = beat
        self._idle = idle
        self._calls = calls
        self._share = share or DeviceShare(0.5, 1)
        self._called = called
        self._streamed_at_s = -math.inf  # when the last batch was done
        self._batches: queue.Queue[Batch] = queue.Queue(maxsize=1)
        self._results: queue.Queue[BatchResult] = queue.Queue(maxsize=2)
        self._stopping = threading.Event()
        self._crash: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._budget = 0

    # The Kafka thread's side ------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """True if `offer` will take a batch."""
        return not self._batches.full()

    @property
    def depths(self) -> tuple[int, int]:
        """Batches waiting to be computed, and batches waiting to be collected."""
        return self._batches.qsize(), self._results.qsize()

    def offer(self, batch: Batch) -> None:
        """Hand over a batch. Raises queue.Full unless `has_room`; only one thread may offer."""
        self._batches.put_nowait(batch)
        if self._calls is not None:
            self._calls.bell.set()

    def withdraw(self) -> Batch | None:
        """Take back the batch that waits, or None if the inference thread has begun it. The caller offers it again."""
        with suppress(queue.Empty):
            return self._batches.get_nowait()
        return None

    def collect(self) -> BatchResult | None:
        """A finished batch, or None. Raises what crashed the thread, once everything finished before is collected."""
        crash = self._crash  # read first: by now, whatever was finished before it is in the queue
        with suppress(queue.Empty):
            return self._results.get_nowait()
        if crash is not None:
            raise crash
        return None

    def check(self) -> None:
        """Raise what crashed the thread, for who collects nothing."""
        if self._crash is not None:
            raise self._crash

    def start(self) -> None:
        """Run on a thread. Daemonic, because a device that hangs must not keep a process from exiting.

        `worker.process.end` knows the thread by its name.
        """
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Finish the batch in hand and end the thread. False if it did not end in time."""
        self._stopping.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # The inference thread's side --------------------------------------------------------------------------------------

    def step(self, timeout_s: float) -> bool:
        """Answer one batch, or what calls wait, if there is something within ``timeout_s``. False if there was not."""
        calls: list[Call] = []
        if self._calls is not None:
            batch, calls = self._await_either(self._calls, timeout_s)
        else:
            batch = self._await_batch(timeout_s)
        if batch is None and not calls:
            return False
        if calls and (batch is None or not batch.takes_calls):
            self._answer_alone(calls)
            calls = []
        if batch is not None:
            result = self._answer(batch, calls)
            self._share.streamed(batch.tokens)
            self._streamed_at_s = self._clock()
            if result is not None:
                self._hand_over(result)
        self._idle()
        return True

    def _await_batch(self, timeout_s: float) -> Batch | None:
        with suppress(queue.Empty):
            return self._batches.get(timeout=timeout_s) if timeout_s else self._batches.get_nowait()
        return None

    def _await_either(self, calls: CallQueue, timeout_s: float) -> tuple[Batch | None, list[Call]]:
        """The batch that waits, and the calls that may go now, as soon as there is one or the other."""
        deadline_s = self._clock() + timeout_s
        while True:
            calls.bell.clear()  # before both are looked at: what comes behind that rings again
            batch = self._await_batch(0)
            idle_in_s = self._streamed_at_s + _IDLE_S - self._clock()
            if batch is None and idle_in_s <= 0:
                self._share.stream_is_idle()
            taken = calls.take(self._share.allowance)
            left_s = deadline_s - self._clock()
            if batch is not None or taken or left_s <= 0:
                self._share.called(sum(call.encoded.tokens for call in taken))
                return batch, taken
            # Calls that have had their share wait for a batch, or until none has come.
            calls.bell.wait(min(left_s, idle_in_s) if len(calls) and idle_in_s > 0 else left_s)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.step(0.1)
        except BaseException as error:  # noqa: BLE001 (a crash of any kind is re-raised on the main thread by collect)
            self._crash = error

    def _hand_over(self, result: BatchResult) -> None:
        while not self._stopping.is_set():
            try:
                self._results.put(result, timeout=0.1)
            except queue.Full:
                self._beat(self._clock())  # the Kafka thread is behind: the device is well
            else:
                return

    def _answer(self, batch: Batch, calls: list[Call]) -> BatchResult | None:
        """Answer every job; wait and begin again while the device is away. None if told to stop meanwhile.

        ``calls`` are answered on the way, and as soon as the device is away.
        """
        began_s = self._clock()
        attempt = 0
        while not self._stopping.is_set():
            # A batch that fails as a whole tells no budget: the last one told stands.
            tally = _Tally(replace(_NO_WORK, budget=self._budget))
            try:
                found = self._compute_beside(calls, batch.jobs, tally) if calls else self._compute(batch.jobs, tally)
            except TransientError as error:
                self._refuse(calls, error)
                # An outage is not the messages' fault: no attempt is counted against them.
                attempt += 1
                delay_s = self._policy.delay_s(attempt, 1.0)
                log.warning("device_away", error=str(error), retry_in_s=delay_s)
                self._rest(delay_s)
                continue
            finished = tuple(
                Failed(job, one) if isinstance(one, Fault) else Answered(job, one)
                for job, one in zip(batch.jobs, found, strict=True)
            )
            return BatchResult(batch, finished, tally.work, tally.splits, began_s, self._clock())
        return None

    def _compute_beside(self, calls: list[Call], jobs: Sequence[Job], tally: _Tally) -> list[_Found]:
        """What is found for jobs. Calls go with as many of them as fill a forward, and are answered before the rest."""
        room = (self._budget or math.inf) - sum(call.encoded.tokens for call in calls)
        first = 0
        while first < len(jobs) and room >= jobs[first].encoded.tokens:
            room -= jobs[first].encoded.tokens
            first += 1
        found = self._compute([*calls, *jobs[:first]], tally)
        self._give_back(calls, found[: len(calls)])
        beside = found[len(calls) :]
        del calls[:]
        return beside + self._compute(jobs[first:], tally) if first < len(jobs) else beside

    def _answer_alone(self, calls: list[Call]) -> None:
        """Answer calls where no batch waits, or none that may share a forward."""
        tally = _Tally(replace(_NO_WORK, budget=self._budget))
        try:
            self._give_back(calls, self._compute(calls, tally))
        except TransientError as error:
            log.warning("device_away", error=str(error))
            self._refuse(calls, error)
        self._called(tally.work, tally.splits)

    def _refuse(self, calls: list[Call], error: TransientError) -> None:
        """Calls do not wait for a device that is away: their callers may ask somebody else."""
        self._give_back(calls, [fault_of(error, "inference", "")] * len(calls))
        del calls[:]

    def _give_back(self, calls: Sequence[Call], found: Sequence[_Found]) -> None:
        if self._calls is not None and calls:
            self._calls.answer(calls, found)

    def _rest(self, delay_s: float) -> None:
        """Let time pass while the device is away: that is no hang, so it is reported as life."""
        while delay_s > 0 and not self._stopping.wait(min(delay_s, _BEAT_S)):
            delay_s -= _BEAT_S
            self._beat(self._clock())

    def _goes_on(self) -> None:
        self._beat(self._clock())

    def _compute(self, jobs: Sequence[Job | Call], tally: _Tally, *, is_bad: bool = False) -> list[_Found]:
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
        self._beat(self._clock())
        try:
            outcomes, work = self._engine.run([(job.request, job.encoded) for job in jobs], self._goes_on)
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
        self._budget = work.budget
        return list(outcomes)

    def _split(self, jobs: Sequence[Job | Call], tally: _Tally) -> list[_Found]:
        """Answer jobs among which there is a culprit, a quarter at a time: in the last, if all before were clean."""
        tally.splits += 1
        found: list[_Found] = []
        size = math.ceil(len(jobs) / 4)
        for start in range(0, len(jobs), size):
            is_last = start + size >= len(jobs)
            is_clean = not any(isinstance(one, Fault) for one in found)
            found += self._compute(jobs[start : start + size], tally, is_bad=is_last and is_clean)
        return found


@dataclass(slots=True)
class _Tally:
    work: Work
    splits: int = 0


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
