"""Times of the pipeline as times of the wall clock."""

from __future__ import annotations

import time

from opentelemetry.sdk.trace import TracerProvider

from worker.telemetry.spans import Spans


def test_the_same_moment_is_the_same_time_however_often_it_is_told() -> None:
    spans = Spans(TracerProvider(), time.monotonic, time.time)
    moment_s = time.monotonic()
    assert len({spans.ns(moment_s) for _ in range(1000)}) == 1
    assert abs(spans.ns(moment_s) - time.time_ns()) < 10**9


def test_a_wall_clock_that_is_set_is_followed() -> None:
    wall_s = 1_000.0
    spans = Spans(TracerProvider(), lambda: 5.0, lambda: wall_s)
    assert spans.ns(5.0) == 1_000 * 10**9
    wall_s = 2_000.0
    assert spans.ns(5.0) == 2_000 * 10**9
