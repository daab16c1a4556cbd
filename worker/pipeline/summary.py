"""One line every ten seconds that says what the worker did, in place of one for each batch.

The event is ``summary``. ``published`` are results and retries that went out, ``dead_lettered`` counts by reason,
``lag`` is what waits in the topics and in hand, ``oldest_ms`` the age of the oldest message that was answered. An idle
worker writes none.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import structlog

from worker.messages import BatchResult

INTERVAL_S: Final = 10.0

log = structlog.get_logger("worker")


class Summary:
    """What happened since the last line. Kafka thread only.

    Args:
        now_s: The monotonic time it begins at.
    """

    def __init__(self, now_s: float) -> None:
        self._begin(now_s)

    def _begin(self, now_s: float) -> None:
        self._since_s = now_s
        self._published = self._retried = self._batches = self._messages = self._pairs = self._tokens = 0
        self._inference_s = self._oldest_ms = 0.0
        self._dead_lettered = Counter[str]()

    def collected(self, result: BatchResult) -> None:
        """The result of a batch was collected."""
        self._batches += 1
        self._messages += len(result.batch.jobs)
        self._pairs += result.work.rows
        self._tokens += result.work.tokens
        self._inference_s += result.work.seconds

    def committed(self, published: int, retried: int, dead_lettered: Counter[str], oldest_ms: float) -> None:
        """Records were acknowledged: results, copies for a retry, dead letters by reason."""
        self._published += published
        self._retried += retried
        self._dead_lettered += dead_lettered
        self._oldest_ms = max(self._oldest_ms, oldest_ms)

    def write(self, now_s: float, lag: int, *, is_due: bool = False) -> None:
        """Write the line if it is time, or ``is_due`` all the same, and begin anew."""
        seconds = now_s - self._since_s
        if seconds < INTERVAL_S and not is_due:
            return
        if self._batches or self._published or self._retried or self._dead_lettered:
            log.info(
                "summary",
                seconds=round(seconds, 1),
                published=self._published,
                dead_lettered={str(reason): count for reason, count in self._dead_lettered.items()},
                retried=self._retried,
                lag=lag,
                oldest_ms=round(self._oldest_ms, 1),
                messages=self._messages,
                batches=self._batches,
                pairs=self._pairs,
                tokens=self._tokens,
                messages_per_s=round(self._messages / seconds, 1) if seconds > 0 else 0.0,
                pairs_per_s=round(self._pairs / seconds, 1) if seconds > 0 else 0.0,
                inference_share=round(self._inference_s / seconds, 3) if seconds > 0 else 0.0,
            )
        self._begin(now_s)
