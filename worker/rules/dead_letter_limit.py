"""How many dead letters are too many: limits that halt a worker before a broken deployment fills a topic with them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from worker.errors import DeadLetterLimit
from worker.messages import Fault


@dataclass(frozen=True, slots=True)
class DeadLetterLimits:
    """How many dead letters are too many: ``max_consecutive`` in a row, ``max_ratio`` of the last `WINDOW` records."""

    max_consecutive: int | None = None
    max_ratio: float | None = None


WINDOW: Final = 1000
# A ratio of fewer records than this says nothing: the first bad message of the day would be 100%.
LEAST: Final = 100


class DeadLetterCount:
    """Counts answers and dead letters, in the order they are decided, against the operator's limits."""

    def __init__(self, limits: DeadLetterLimits) -> None:
        self._limits = limits
        self._consecutive = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._recent_dead = 0

    def answered(self) -> None:
        """A record got its result."""
        self._consecutive = 0
        if self._limits.max_ratio is not None:
            self._enter(dead=False)

    def dead_lettered(self, fault: Fault) -> None:
        """A record is about to become a dead letter.

        Raises:
            DeadLetterLimit: it is one too many. It must not be written, nor its offset committed.
        """
        self._consecutive += 1
        limit = self._limits.max_consecutive
        if limit is not None and self._consecutive > limit:
            raise DeadLetterLimit(
                f"{self._consecutive} dead letters in a row, dead_letter.max_consecutive is {limit}; the last for "
                f"{fault.reason}: {fault.message}. Mend the cause, or raise the limit; nothing was lost"
            )
        if self._limits.max_ratio is not None:
            self._enter(dead=True)
            seen = len(self._recent)
            if seen >= LEAST and self._recent_dead > self._limits.max_ratio * seen:
                raise DeadLetterLimit(
                    f"{self._recent_dead} of the last {seen} records are dead letters, dead_letter.max_ratio is "
                    f"{self._limits.max_ratio:g}; the last for {fault.reason}: {fault.message}. Mend the cause, or "
                    "raise the limit; nothing was lost"
                )

    def _enter(self, *, dead: bool) -> None:
        if len(self._recent) == WINDOW:
            self._recent_dead -= self._recent[0]
        self._recent.append(dead)
        self._recent_dead += dead
