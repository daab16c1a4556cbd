"""The model that serves, and the exchange for another between two batches.

Requests are tokenised by the Kafka thread and the HTTP side's, and computed by the inference thread. A request under
way carries the model whose tokens it has. By the time it is computed another may serve: then it is tokenised anew, so a
request is answered by the model that tokenised it, and its result says which that was.

A calibration is of one revision's scores. So it comes and goes with its model, by the same reference, and makes
probabilities of scores where they are computed.

A worker whose model stays does without all this.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from worker.http.calls import Call
from worker.messages import Batch, Encoded, Job, ModelIdentity, Outcome, Pooling, Request, Work
from worker.pipeline.computation import Runs
from worker.rules.calibration import NONE, Calibrations


class Model(Runs, Protocol):
    """What the worker asks of `worker.inference.engine.Engine`."""

    @property
    def identity(self) -> ModelIdentity:
        """Name and revision, as results carry them."""

    @property
    def device(self) -> str:
        """Where it computes."""

    @property
    def precision(self) -> str:
        """What it computes in."""

    @property
    def pooling(self) -> Pooling:
        """How texts are embedded where the request does not say."""

    @property
    def encode(self) -> Callable[[Request], Encoded]:
        """Gives the tokens of a request; raises Rejection. It keeps no weights alive."""


class ServedModel:
    """Stands in the place of a `Model`. Each attribute is written by the inference thread alone and replaced whole.

    Args:
        model: What serves first.
        calibrations: Those of its revision.
    """

    def __init__(self, model: Model, calibrations: Calibrations = NONE) -> None:
        self._model: Model | None = model
        # What is known of the model that serves, or served last while none does.
        self._serving = (model.encode, model.identity, calibrations)
        self.device, self.precision, self.pooling = model.device, model.precision, model.pooling
        self._offered: deque[tuple[Model | None, Calibrations]] = deque()
        self._has_offer = threading.Event()
        self._left = queue.SimpleQueue[Model]()

    @property
    def identity(self) -> ModelIdentity:
        """The model whose tokens requests are given."""
        return self._serving[1]

    @property
    def calibrations(self) -> Calibrations:
        """Those of the model that serves. Any thread."""
        return self._serving[2]

    @property
    def encode(self) -> Callable[[Request], Encoded]:
        """Gives the tokens of a request, with the model whose they are; raises Rejection. Any thread."""
        return self._encode

    def _encode(self, request: Request) -> Encoded:
        encode, identity, _ = self._serving
        return replace(encode(request), model=identity)

    # The loader's side ------------------------------------------------------------------------------------------------

    def offer(self, model: Model | None, calibrations: Calibrations = NONE) -> None:
        """Let this model serve from the next batch on, with the calibrations of its revision.

        None: the one that serves stops, and batches wait.
        """
        self._offered.append((model, calibrations))
        self._has_offer.set()

    def left(self, timeout_s: float = 0.0) -> Model | None:
        """The model that was exchanged, once it has computed its last; None while it is at work."""
        with suppress(queue.Empty):
            return self._left.get(block=timeout_s > 0, timeout=timeout_s or None)
        return None

    # The inference thread's side --------------------------------------------------------------------------------------

    def exchange(self, timeout_s: float) -> bool:
        """Let the model serve that was offered last. False if there is none to compute by, for ``timeout_s``."""
        if self._offered:
            self._has_offer.clear()
            while self._offered:
                self._replace(*self._offered.popleft())
        if self._model is not None:
            return True
        self._has_offer.wait(timeout_s)
        return False

    def _replace(self, model: Model | None, calibrations: Calibrations) -> None:
        former, self._model = self._model, model
        if former is not None:
            self._left.put(former)  # first: whoever sees the new identity finds what left
        if model is not None:
            self.device, self.precision, self.pooling = model.device, model.precision, model.pooling
            self._serving = (model.encode, model.identity, calibrations)

    def run(self, requests: Sequence[tuple[Request, Encoded]], beat: Callable[[], None]) -> tuple[list[Outcome], Work]:
        """As the model that serves. Call `renewed` or `renew` before.

        Raises:
            Rejection: it cannot tokenise a request that another model could.
        """
        if self._model is None:
            raise TypeError("no model serves at the moment")
        encode, identity, calibrations = self._serving
        for request, encoded in requests:
            if encoded.model != identity:
                encode(request)  # refuses it once more, and the request is split off as any other that fails
                raise TypeError("a request is computed by another model than tokenised it")
        if calibrations is not NONE:
            requests = [(calibrations.applied(request), encoded) for request, encoded in requests]
        return self._model.run(requests, beat)

    def renewed(self, batch: Batch) -> Batch:
        """The batch, with tokens of the model that serves. What that cannot tokenise keeps its tokens, for `run`."""
        identity = self._serving[1]
        if all(job.encoded.model == identity for job in batch.jobs):
            return batch
        jobs = tuple(self._renewed_job(job, identity) for job in batch.jobs)
        return replace(batch, jobs=jobs, tokens=sum(job.encoded.tokens for job in jobs))

    def _renewed_job(self, job: Job, identity: ModelIdentity) -> Job:
        if job.encoded.model == identity:
            return job
        with suppress(Exception):  # `run` meets it again, and it ends this request only
            return replace(job, encoded=self._encode(job.request))
        return job

    def renew(self, calls: Iterable[Call]) -> None:
        """As `renewed`, of calls that were taken."""
        for call in calls:
            if call.encoded.model != self._serving[1]:
                with suppress(Exception):  # `run` meets it again, and it ends this request only
                    call.encoded = self._encode(call.request)
