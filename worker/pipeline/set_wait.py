"""Requests that name a label set which is not there yet: they wait for it, for a bounded time.

Whoever writes a set and whoever writes requests for it are two producers, and nothing orders their records. So a
request whose set is unknown waits here as data, while everything else goes on, and is read anew when its set arrives.
A set that was deleted is unknown too. The results of its partition wait in the ledger, so their order holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Protocol

from worker.errors import Rejection, UnknownLabelSet
from worker.messages import Record, value
from worker.pipeline.clocks import Clocks
from worker.telemetry.metrics import Metrics


class KnownSets(Protocol):
    """What is asked of `worker.label_sets.topic.FollowedSets`."""

    @property
    def changes(self) -> int:
        """A number that grows with each change."""

    def __contains__(self, name: str) -> bool: ...

    def refresh(self) -> None:
        """Take in what has arrived since, without waiting."""


@value
class _Waiting:
    record: Record
    unknown: UnknownLabelSet
    since_s: float


class SetWait:
    """The requests that wait, oldest first.

    Args:
        sets: The sets that are known.
        wait_s: How long each waits at most, by the monotonic clock.
        metrics: Count those that wait.
        clocks: Tell the time.
    """

    def __init__(self, sets: KnownSets, wait_s: float, metrics: Metrics, clocks: Clocks) -> None:
        self._sets = sets
        self._wait_s = wait_s
        self._metrics = metrics
        self._clocks = clocks
        self._line: deque[_Waiting] = deque()
        self._seen = sets.changes  # up to here the sets of those in line are known not to be there

    def begin(self, record: Record, unknown: UnknownLabelSet) -> None:
        """Let a request wait."""
        self._line.append(_Waiting(record, unknown, self._clocks.monotonic_s()))
        self._metrics.label_set_waited_for()

    def released(self) -> list[Record]:
        """Those whose sets have arrived, in their order; they wait no more. Also looks whether sets have."""
        self._sets.refresh()
        if self._seen == self._sets.changes:
            return []
        self._seen = self._sets.changes
        if not self._line:
            return []
        line, self._line = self._line, deque()
        found = []
        for waiting in line:
            if waiting.unknown.label_set in self._sets:
                found.append(waiting.record)
            else:
                self._line.append(waiting)
        return found

    def expired(self) -> Iterator[tuple[Record, Rejection]]:
        """Those that have waited in vain, and what to say of each; they wait no more."""
        now_s = self._clocks.monotonic_s()
        while self._line and self._line[0].since_s + self._wait_s <= now_s:
            waiting = self._line.popleft()
            unknown, waited_s = waiting.unknown, now_s - waiting.since_s
            refused = Rejection(
                unknown.reason, unknown.stage, f"{unknown}; waited {waited_s:.1f} s for it (label_sets.wait_s)"
            )
            refused.request_id = unknown.request_id
            yield waiting.record, refused

    @property
    def deadline_s(self) -> float:
        """When the oldest has waited long enough, by the monotonic clock; infinity if none waits."""
        return self._line[0].since_s + self._wait_s if self._line else float("inf")
