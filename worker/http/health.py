"""Is this worker alive, and does it serve?

`Health` is written by the threads that work and read by the HTTP server's. Each attribute has one writer and is
replaced whole, which the interpreter does atomically, so there is no lock. It knows no clock: times are monotonic
seconds, given as arguments.

A failing ``/healthz`` asks for a restart, so it fails only where a restart may help: a loop or a device that hangs.
A broker, a registry or a model that is away leaves the loop turning, and the worker healthy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

# Dead letters that a person sees on the page.
LATEST: Final = 8


class LatestDeadLetter(NamedTuple):
    """Where a dead letter's request lies, and why it is one: no content."""

    reason: str
    topic: str
    partition: int
    offset: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a probe. ``problems`` are sentences for the operator, empty when all is well.

    ``notes`` are what the operator should know all the same: no reason to call the worker unfit.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


class Health:
    """What the threads last reported, and what follows from it.

    Args:
        loop_limit_s: longest time between two steps of the Kafka loop. A step may drain, flush and commit for a revoked
            partition, so this must exceed the deadline of that.
        inference_limit_s: longest time the inference thread may spend between two reports while it has work. The
            slowest batch must fit: on a CPU, a full one of long texts takes many seconds.
        has_stream: whether it consumes; without a stream it needs no partitions to be ready.
    """

    def __init__(self, *, loop_limit_s: float, inference_limit_s: float, has_stream: bool = True) -> None:
        self._has_stream = has_stream
        self._loop_limit_s = loop_limit_s
        self._inference_limit_s = inference_limit_s
        self._loop_at_s: float | None = None  # None: the loop has not begun; loading a model may take minutes
        self._inference_at_s: float | None = None  # None: no work in hand; waiting for some is no stall
        self._model_loaded = False
        self._assigned = 0
        self._draining = False
        self._stalled: tuple[str, ...] = ()
        self._missing: tuple[str, ...] = ()
        self._inputs_missing: frozenset[str] = frozenset()
        self._broker_away = ""
        self._swap_failed = ""
        self.latest_dead_letters: deque[LatestDeadLetter] = deque(maxlen=LATEST)

    def dead_lettered(self, latest: LatestDeadLetter) -> None:
        """A dead letter was acknowledged."""
        self.latest_dead_letters.append(latest)

    def loop_beat(self, now_s: float) -> None:
        """The Kafka loop begins a step. Before the first beat the worker is starting and held to no limit."""
        self._loop_at_s = now_s

    def inference_beat(self, now_s: float) -> None:
        """The inference thread begins a batch, or goes on with one."""
        self._inference_at_s = now_s

    def inference_idle(self) -> None:
        """The inference thread has handed back its batch and waits for another."""
        self._inference_at_s = None

    def model_loaded(self) -> None:
        """The checkpoint is loaded and passed its self-test."""
        self._model_loaded = True

    def swap_failed(self, why: str) -> None:
        """Why another model does not serve in place of the one that does; empty once one does."""
        self._swap_failed = why

    def assigned(self, partitions: int) -> None:
        """How many partitions are held; told at each rebalance."""
        self._assigned = partitions

    def stalled(self, partitions: tuple[str, ...]) -> None:
        """A sentence for each partition held that cannot be read, and how to mend it."""
        self._stalled = partitions

    def topics_missing(self, topics: Sequence[str]) -> None:
        """Which topics that we write to are not there."""
        self._missing = tuple(topics)

    def inputs_missing(self, topics: frozenset[str]) -> None:
        """Which topics that we read are not there; told at each step."""
        self._inputs_missing = topics

    def broker_away(self, why: str) -> None:
        """Why no broker answers; empty once one does."""
        self._broker_away = why

    @property
    def has_missing(self) -> bool:
        """Whether topics or the broker are not there."""
        return bool(self._missing or self._inputs_missing or self._broker_away)

    def draining(self) -> None:
        """Shutdown has begun; there is no way back."""
        self._draining = True

    @property
    def is_draining(self) -> bool:
        """Whether shutdown has begun."""
        return self._draining

    def healthy(self, now_s: float) -> Verdict:
        """Whether loop and device make progress."""
        # Read once each: the threads go on writing while this runs.
        silences = (
            ("the Kafka loop", self._loop_at_s, self._loop_limit_s),
            ("the inference thread", self._inference_at_s, self._inference_limit_s),
        )
        return Verdict(
            tuple(
                f"{who} has made no progress for {now_s - at_s:.1f} s; the limit is {limit_s:g} s"
                for who, at_s, limit_s in silences
                if at_s is not None and now_s - at_s > limit_s
            )
        )

    def ready(self) -> Verdict:
        """Whether this worker takes part in the work: model, partitions and topics are there, no drain."""
        checks = (
            (self._model_loaded, "the model is not loaded yet"),
            (not self._broker_away, self._broker_away),
            (self._assigned > 0 or bool(self._broker_away) or not self._has_stream, "no partitions are assigned"),
            (not self._draining, "the worker is draining"),
        )
        missing = (
            f"topic {topic!r} is not there: create it (xnli-worker topics create) or correct the setting"
            for topic in (*sorted(self._inputs_missing), *self._missing)
        )
        notes = (self._swap_failed,) if self._swap_failed else ()
        return Verdict((*(problem for passed, problem in checks if not passed), *missing, *self._stalled), notes)
