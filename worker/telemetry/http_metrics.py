"""Metrics of what is asked over HTTP, beside those of `worker.telemetry.metrics`."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# 1 ms (a short text on an idle device) to 10 s (the device is busy).
_SECONDS: Final = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HttpMetrics:
    """Requests for inference, and texts that wait. HTTP thread only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answered = Counter(
            "xnli_worker_http_requests_total",
            "Requests for inference over HTTP, by path and status.",
            ("path", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "xnli_worker_http_seconds",
            "From a request's head to the end of its answer.",
            ("path",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._waiting = Gauge(
            "xnli_worker_http_waiting", "Texts that came over HTTP and wait for the device.", registry=registry
        )

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request was answered; ``path`` is one of ours, which bounds the label. 499: its client went away."""
        self._answered.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def waiting(self, texts: int) -> None:
        """How many texts wait now."""
        self._waiting.set(texts)
