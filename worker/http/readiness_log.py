"""What /readyz says, for those who watch the log."""

from __future__ import annotations

from typing import Final

import structlog

from worker.http.health import Health

INTERVAL_S: Final = 10.0

log = structlog.get_logger("worker")


class ReadinessLog:
    """Writes event ``not_ready`` every ten seconds while somebody has to mend something.

    That a group has more workers than partitions is no trouble, and is said once.

    Args:
        health: The state.
        now_s: The monotonic time it begins at.
    """

    def __init__(self, health: Health, now_s: float) -> None:
        self._health = health
        self._next_s = now_s + INTERVAL_S
        self._said: tuple[str, ...] = ()

    def step(self, now_s: float, inputs_missing: frozenset[str]) -> None:
        """Write the line if it is time. ``inputs_missing`` are topics that we read and that are not there."""
        self._health.inputs_missing(inputs_missing)
        if now_s < self._next_s:
            return
        self._next_s = now_s + INTERVAL_S
        problems = self._health.ready().problems
        if problems and (problems != self._said or self._health.has_missing):
            log.warning("not_ready", problems=problems)
        self._said = problems
