"""Compute: batches come from one bounded queue, every job is answered, and the results go on another.

The inference thread owns the model and the device. Tests call `step` themselves instead of starting it.
Calls over HTTP join here, between two batches: see `worker.pipeline.callers`.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from worker.errors import TransientError
from worker.http.calls import Call, CallQueue
from worker.messages import Answered, Batch, BatchResult, Failed, Fault, Work
from worker.pipeline.callers import Callers
from worker.pipeline.computation import Computation, Runs
from worker.pipeline.served_model import ServedModel
from worker.pipeline.shadow import Shadow
from worker.rules.calibration import NONE
from worker.rules.device_share import DeviceShare
from worker.rules.retry import RetryPolicy

log = structlog.get_logger("worker.inference")

_BEAT_S: Final = 10.0
# While something else is waited for, calls over HTTP are looked at so often.
_CALLERS_POLL_S: Final = 0.01


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
        swapped: ``engine``, where it is exchanged between two batches; shadow: computes while nothing else does.
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
        swapped: ServedModel | None = None,
        shadow: Shadow | None = None,
    ) -> None:
        self._computation = Computation(engine, lambda: beat(clock()))
        self._policy = policy
        self._clock = clock
        self._beat = beat
        self._idle = idle
        self._swapped = swapped
        self.shadow = shadow
        self._callers: Callers | None = None
        if calls is not None and share is not None:
            renew = None if swapped is None else swapped.renew
            self._callers = Callers(calls, share, self._computation, clock, called, renew)
        self._batches: queue.Queue[Batch] = queue.Queue(maxsize=1)
        self._results: queue.Queue[BatchResult] = queue.Queue(maxsize=2)
        self._stopping = threading.Event()
        self._crash: BaseException | None = None
        self._thread: threading.Thread | None = None

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
        if self._callers is not None:
            self._callers.ring()

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
        if self._swapped is not None and not self._swapped.exchange(timeout_s):
            return False
        if self.shadow is not None and self._follow(self.shadow):
            timeout_s = 0.0
        if self._callers is None:
            batch = self._await_batch(timeout_s)
        else:
            batch, calls = self._callers.await_either(lambda: self._await_batch(0), timeout_s)
        if batch is None and not calls:
            return False
        if self._callers is not None and calls and (batch is None or not batch.takes_calls):
            self._callers.alone(calls)
        if batch is not None:
            if self._swapped is not None:
                batch = self._swapped.renewed(batch)
            result = self._answer(batch, calls)
            if self._callers is not None:
                self._callers.streamed(batch)
            if result is not None:
                self._hand_over(result)
        self._idle()
        return True

    def _follow(self, shadow: Shadow) -> bool:
        """Let the second model compute a request. False if the device is wanted, or nothing waits for it."""
        has_computed = shadow.step(self._is_free, lambda: self._beat(self._clock()))
        self._idle()
        return has_computed

    def _is_free(self) -> bool:
        return self._batches.empty() and (self._callers is None or self._callers.is_free)

    def _await_batch(self, timeout_s: float) -> Batch | None:
        with suppress(queue.Empty):
            return self._batches.get(timeout=timeout_s) if timeout_s else self._batches.get_nowait()
        return None

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.step(0.1)
        except BaseException as error:  # noqa: BLE001 (a crash of any kind is re-raised on the main thread by collect)
            self._crash = error

    def _hand_over(self, result: BatchResult) -> None:
        while not self._stopping.is_set():
            try:
                self._results.put(result, timeout=0.1 if self._callers is None else _CALLERS_POLL_S)
            except queue.Full:
                self._beat(self._clock())  # the Kafka thread is behind: the device is well
                if self._callers is not None:
                    self._callers.meanwhile()
            else:
                return

    def _answer(self, batch: Batch, calls: list[Call]) -> BatchResult | None:
        """Answer every job; wait and begin again while the device is away. None if told to stop meanwhile.

        ``calls`` are answered on the way, and as soon as the device is away.
        """
        began_s = self._clock()
        attempt = 0
        while not self._stopping.is_set():
            tally = self._computation.tally()  # a batch that fails as a whole tells no budget: the last told stands
            beside = tuple(call.headers for call in calls if call.headers)
            try:
                if calls and self._callers is not None:
                    found = self._callers.beside(calls, batch.jobs, tally)
                else:
                    found = self._computation.together(batch.jobs, tally)
            except TransientError as error:
                if self._callers is not None:
                    self._callers.refuse(error, calls)
                # An outage is not the messages' fault: no attempt is counted against them.
                attempt += 1
                delay_s = self._policy.delay_s(attempt, 1.0)
                log.warning("device_away", error=str(error), retry_in_s=delay_s)
                self._rest(delay_s, error)
                continue
            finished = tuple(
                Failed(job, one) if isinstance(one, Fault) else Answered(job, one)
                for job, one in zip(batch.jobs, found, strict=True)
            )
            if self.shadow is not None:
                self.shadow.sample(finished, NONE if self._swapped is None else self._swapped.calibrations)
            return BatchResult(batch, finished, tally.work, tally.splits, began_s, self._clock(), beside)
        return None

    def _rest(self, delay_s: float, away: TransientError) -> None:
        """Let time pass while the device is away: that is no hang, so it is reported as life."""
        most_s = _BEAT_S if self._callers is None else _CALLERS_POLL_S
        while delay_s > 0 and not self._stopping.wait(min(delay_s, most_s)):
            delay_s -= most_s
            self._beat(self._clock())
            if self._callers is not None:
                self._callers.refuse(away)
