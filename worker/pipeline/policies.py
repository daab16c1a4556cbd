"""What the Kafka stage decides by: the operator's policies, its clocks, and how much it holds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from worker.pipeline.batch import BatchPolicy
from worker.rules.dead_letter import LetterLimits, Obituary
from worker.rules.retry import RetryPolicy

# Batches' worth of work in hand before fetching pauses: one runs, one waits, four are finished, two are in line.
BATCHES_IN_HAND: Final = 8
# While batches are under way their results are looked for every 2 ms.
BUSY_POLL_S: Final = 0.002

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Policies:
    """What the loop decides by. ``max_age_s`` None: requests do not expire."""

    batch: BatchPolicy
    retry: RetryPolicy
    obituary: Obituary
    max_age_s: float | None
    letters: LetterLimits = field(default_factory=LetterLimits)
    retry_topics: tuple[tuple[float, str], ...] = ()  # delay in seconds and topic, shortest first; empty: in place


@dataclass(frozen=True, slots=True)
class Clocks:
    """Time as the loop sees it: monotonic and wall-clock seconds, and how to let ``wait`` seconds pass."""

    monotonic_s: Clock = time.monotonic
    wall_s: Clock = time.time
    wait: Callable[[float], None] = time.sleep
