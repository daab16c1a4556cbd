"""Requests that name a label set which is not there yet: they wait for it, for a bounded time.

Whoever writes a set and whoever writes requests for it are two producers, and nothing orders their records. So a
request whose set is unknown waits here as data, while everything else goes on, and is read anew when its set arrives.
A set that was deleted is unknown too. The results of its partition wait in the ledger, so their order holds.

That order is why a name is waited for in vain only once a minute: else one producer that misspells a name in a hundred
requests would hold everything up, for what waits keeps its partition, and what is held in hand is bounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

from worker.errors import Rejection, UnknownLabelSet
from worker.messages import Record, value
from worker.pipeline.clocks import Clocks
from worker.telemetry.metrics import Metrics

# So long after a name was waited for in vain, others that name it do not wait. By then its producer has lost its race.
IN_VAIN_S: Final = 60.0
# Names that are remembered for that.
_NAMES: Final = 1_000


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
        self._in_vain: dict[str, float] = {}  # when a name was given up, the latest last

    def begin(self, record: Record, unknown: UnknownLabelSet) -> Rejection | None:
        """Let a request wait; or what to say of it, where its set was waited for in vain a moment ago."""
        now_s = self._clocks.monotonic_s()
        given_up_s = self._in_vain.get(unknown.label_set)
        if given_up_s is not None and now_s < given_up_s + IN_VAIN_S:
            ago_s = now_s - given_up_s
            return _refused(unknown, f"it was waited for in vain (label_sets.wait_s) until {ago_s:.1f} s ago")
        # Without its traceback, which would keep all that was decoded of the request.
        self._line.append(_Waiting(record, unknown.with_traceback(None), now_s))
        self._metrics.label_set_waited_for()
        return None

    def released(self) -> list[Record]:
        """Those whose sets have arrived, in their order; they wait no more. Also looks whether sets have."""
        self._sets.refresh()
        if self._seen == self._sets.changes:
            return []
        self._seen = self._sets.changes
        self._in_vain = {name: at_s for name, at_s in self._in_vain.items() if name not in self._sets}
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
            name = waiting.unknown.label_set
            self._in_vain.pop(name, None)
            self._in_vain[name] = now_s
            if len(self._in_vain) > _NAMES:
                del self._in_vain[next(iter(self._in_vain))]
            waited_s = now_s - waiting.since_s
            yield waiting.record, _refused(waiting.unknown, f"waited {waited_s:.1f} s for it (label_sets.wait_s)")

    @property
    def deadline_s(self) -> float:
        """When the oldest has waited long enough, by the monotonic clock; infinity if none waits."""
        return self._line[0].since_s + self._wait_s if self._line else float("inf")


def _refused(unknown: UnknownLabelSet, how: str) -> Rejection:
    refused = Rejection(unknown.reason, unknown.stage, f"{unknown}; {how}")
    refused.request_id = unknown.request_id
    return refused
