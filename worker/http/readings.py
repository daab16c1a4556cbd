"""The worker's own metrics, read every few seconds and kept for some minutes: what the page draws.

A reading is what /metrics would have said at that time. Rates are differences of two readings.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry

EVERY_S: Final = 5.0
# Ten minutes.
KEPT: Final = 120
# Over how many readings a rate is taken that is shown as a number.
_RECENT: Final = 6
_PREFIX: Final = "xnli_worker_"

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """Every sample at a time, by name (without prefix) and labels."""

    at_s: float
    samples: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str, **labels: str) -> float:
        """The sum of a metric over all its series that have these labels."""
        wanted = set(labels.items())
        return sum(value for found, value in self.samples.get(name, {}).items() if wanted <= set(found))

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric by one of its labels."""
        found: dict[str, float] = {}
        for labels, value in self.samples.get(name, {}).items():
            key = dict(labels).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found


class Readings:
    """The last minutes. HTTP thread only.

    Args:
        registry: What is read.
        clock: Monotonic seconds.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float]) -> None:
        self._registry = registry
        self._clock = clock
        self._kept: deque[Reading] = deque(maxlen=KEPT)

    async def go_on(self) -> None:
        """Read again and again."""
        while True:
            self._kept.append(self.now())
            await asyncio.sleep(EVERY_S)

    def now(self) -> Reading:
        """What the metrics say now."""
        samples: dict[str, dict[Labels, float]] = {}
        for metric in self._registry.collect():
            for sample in metric.samples:
                name = sample.name.removeprefix(_PREFIX)
                samples.setdefault(name, {})[tuple(sorted(sample.labels.items()))] = sample.value
        return Reading(self._clock(), samples)

    def rates(self, name: str, now: Reading) -> list[float]:
        """A counter's rates a second, oldest first, the last one up to ``now``."""
        return [rate(a, b, name) for a, b in self._pairs(now)]

    def values(self, name: str, now: Reading) -> list[float]:
        """A gauge's values, oldest first."""
        return [reading.total(name) for reading in [*self._kept, now]]

    def padding(self, now: Reading) -> list[float]:
        """The share of padding in what went through the model, oldest first."""
        shares = []
        for a, b in self._pairs(now):
            padding = b.total("padding_tokens_total") - a.total("padding_tokens_total")
            computed = b.total("computed_tokens_total") - a.total("computed_tokens_total")
            shares.append(padding / (padding + computed) if padding + computed > 0 else 0.0)
        return shares

    def quantiles(self, name: str, wanted: float, now: Reading) -> list[float]:
        """A quantile of what a histogram saw between two readings, oldest first; 0 where it saw nothing."""
        return [quantile(a, b, name, wanted) for a, b in self._pairs(now)]

    def recent(self, now: Reading) -> Reading:
        """The reading that numbers of the present are compared with."""
        return self._kept[-min(_RECENT, len(self._kept))] if self._kept else now

    def _pairs(self, now: Reading) -> list[tuple[Reading, Reading]]:
        readings = [*self._kept, now]
        return list(itertools.pairwise(readings))


def rate(before: Reading, now: Reading, name: str) -> float:
    """A counter's rate a second between two readings."""
    seconds = now.at_s - before.at_s
    return (now.total(name) - before.total(name)) / seconds if seconds > 0 else 0.0


def quantile(before: Reading, now: Reading, name: str, wanted: float) -> float:
    """A quantile of what a histogram saw between two readings; 0 where it saw nothing.

    As Prometheus' histogram_quantile: linear within a bucket, and the last finite bound beyond it.
    """
    buckets = sorted(
        (float(bound), value - before.by(f"{name}_bucket", "le").get(bound, 0.0))
        for bound, value in now.by(f"{name}_bucket", "le").items()
    )
    if not buckets or buckets[-1][1] <= 0:
        return 0.0
    rank, lower, below = wanted * buckets[-1][1], 0.0, 0.0
    for bound, cumulated in buckets:
        if cumulated >= rank:
            if bound == float("inf"):
                return lower
            inside = cumulated - below
            return lower + (bound - lower) * ((rank - below) / inside if inside else 1.0)
        lower, below = bound, cumulated
    return lower
