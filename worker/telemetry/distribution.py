"""A histogram for what every message counts in."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector


class Distribution(Collector):
    """A histogram that takes many observations at once: one by one, with a lock for each, a message would feel them."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._lock = threading.Lock()
        self._state = np.zeros(len(bounds) + 1, dtype=np.int64), 0.0

    def observe(self, values: npt.NDArray[np.float64]) -> None:
        """Count each value in the first bucket whose bound is not below it."""
        slots = np.bincount(np.searchsorted(self._bounds, values, side="left"), minlength=len(self._bounds) + 1)
        with self._lock:
            counts, total = self._state
            self._state = counts + slots, total + float(values.sum())

    def collect(self) -> Iterable[Metric]:
        """Buckets as Prometheus has them: each holds those below it too."""
        counts, total = self._state  # replaced whole, so that both belong together
        edges = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(edges, np.cumsum(counts).tolist(), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets=buckets, sum_value=total)
