"""A second model computes a share of the stream's requests, to be compared with the one that serves.

Nobody waits for it: it computes while nothing else does, a row at a time, gives way before the next row as soon as
there is work, and what finds no room in its queue is left out. Inference thread only.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, Protocol

import structlog

from worker.errors import FatalError
from worker.http.calls import Gate
from worker.messages import Answered, Finished, ModelIdentity, Outcome, Request, Task
from worker.pipeline.served_model import Model
from worker.rules.agreement import Comparison, compare
from worker.rules.calibration import NONE, Calibrations
from worker.telemetry.metrics import Shadowed

log = structlog.get_logger("worker.inference")

# Requests that wait to be computed once more. Each holds a text.
MOST_WAITING: Final = 64


class Told(Protocol):
    """Hears what became of a request: `worker.telemetry.metrics.Metrics.shadowed`."""

    def __call__(self, outcome: Shadowed, drift: float | None = None) -> None:
        """``drift``: how far its scores lie from those of the model that serves, where both are known."""


class _WorkWaits(Exception):  # noqa: N818 (no error: it ends a forward that nobody waits for)
    """The device is wanted."""


class Shadow:
    """The second model and the requests that wait for it.

    Args:
        model: What computes them. It must beat before each row: see `worker.pipeline.computation.Runs`.
        share: Of the answered requests, those that are computed again, from 0 to 1.
        told: Hears what became of them.
        seed: Of the draw; None: another each time.
    """

    def __init__(self, model: Model, share: float, told: Told, seed: int | None = None) -> None:
        self._model = model
        self._share = share
        self._told = told
        self._random = random.Random(seed)  # noqa: S311 (a sample, not a secret)
        self._waiting: deque[tuple[Request, Outcome]] = deque()
        self._gate: Gate | None = None
        self._is_wanted: Callable[[], bool] = lambda: False

    @property
    def identity(self) -> ModelIdentity:
        """The second model's."""
        return self._model.identity

    def attend(self, gate: Gate, is_wanted: Callable[[], bool]) -> None:
        """Begin to compute.

        Args:
            gate: Held while a record is marked, to which a crash would be laid.
            is_wanted: Whether jobs wait for a batch, so that the device will be wanted soon.
        """
        self._gate, self._is_wanted = gate, is_wanted

    def sample(self, finished: Iterable[Finished], calibrations: Calibrations = NONE) -> None:
        """Let a share of what was just answered wait. What finds no room is left out.

        ``calibrations`` are those of the model that serves, where requests come without: see
        `worker.pipeline.served_model`.
        """
        for one in finished:
            if self._random.random() >= self._share or not isinstance(one, Answered):
                continue
            request = calibrations.applied(one.job.request)
            if request.task is Task.EMBED:
                continue
            if len(self._waiting) >= MOST_WAITING:
                self._told(Shadowed.SHED)
            else:  # evidence costs many rows, and says nothing about agreement
                self._waiting.append((replace(request, evidence=0) if request.evidence else request, one.outcome))

    def step(self, is_free: Callable[[], bool], beat: Callable[[], None]) -> bool:
        """Compute one request if the device is free. False if there was none, or the device was wanted.

        Args:
            is_free: Whether neither a batch nor a call waits for the device.
            beat: Told that work goes on.

        Raises:
            FatalError: the device cannot be used any more.
        """
        if not self._waiting or self._gate is None or not self._may_go_on(is_free):
            return False
        if not self._gate.begin_computing():
            return False

        def give_way() -> None:
            beat()
            if not self._may_go_on(is_free):
                raise _WorkWaits

        request, outcome = self._waiting[0]
        try:
            found, _ = self._model.run([(request, self._model.encode(request))], give_way)
            self._compared(compare(outcome, found[0]))
        except _WorkWaits:
            self._waiting.rotate(-1)  # it is begun again behind the others: it may be too long for any pause
            return False
        except FatalError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever a second model fails on, nobody waits for it)
            log.debug("shadow_failed", error=f"{type(error).__name__}: {error}")
            self._told(Shadowed.FAILED)
        finally:
            self._gate.computing = False
        self._waiting.popleft()
        return True

    def _may_go_on(self, is_free: Callable[[], bool]) -> bool:
        return is_free() and not self._is_wanted()

    def _compared(self, comparison: Comparison | None) -> None:
        if comparison is not None:
            self._told(Shadowed.AGREES if comparison.agrees else Shadowed.DIFFERS, comparison.drift)
