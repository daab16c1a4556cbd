"""What the page draws, from metrics: rates, quantiles, and lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worker.http.drawing import bar, spark, text
from worker.http.readings import KEPT, Readings, quantile, rate


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_rates_are_differences_of_two_readings() -> None:
    registry, clock = CollectorRegistry(), Clock()
    counter = Counter("xnli_worker_things_total", "Things.", ("kind",), registry=registry)
    readings = Readings(registry, clock)
    before = readings.now()
    counter.labels("a").inc(20)
    counter.labels("b").inc(10)
    clock.now_s += 10
    now = readings.now()
    assert rate(before, now, "things_total") == 3.0
    assert now.by("things_total", "kind") == {"a": 20.0, "b": 10.0}
    assert now.total("things_total", kind="a") == 20.0
    assert rate(now, now, "things_total") == 0.0


def test_quantiles_are_those_of_what_came_between() -> None:
    registry = CollectorRegistry()
    histogram = Histogram("xnli_worker_seconds", "Seconds.", buckets=(0.1, 0.2, 0.4), registry=registry)
    readings = Readings(registry, Clock())
    for _ in range(100):
        histogram.observe(0.35)
    before = readings.now()
    assert quantile(before, before, "seconds", 0.5) == 0.0
    for _ in range(10):
        histogram.observe(0.15)
    now = readings.now()
    assert quantile(before, now, "seconds", 0.5) == pytest.approx(0.15)
    histogram.observe(9.0)
    assert quantile(before, readings.now(), "seconds", 0.999) == 0.4  # more is not known


def test_some_minutes_are_kept_and_no_more() -> None:
    registry, clock = CollectorRegistry(), Clock()
    gauge = Gauge("xnli_worker_lag", "Lag.", registry=registry)
    readings = Readings(registry, clock)
    for number in range(2 * KEPT):
        gauge.set(number)
        readings._kept.append(readings.now())
    values = readings.values("lag", readings.now())
    assert len(values) == KEPT + 1
    assert values[:2] == [KEPT, KEPT + 1]


@given(st.lists(st.floats(0, 1e12), max_size=200))
def test_a_line_stays_within_its_picture(values: list[float]) -> None:
    drawn = spark(values)
    for point in drawn.partition('class="line" d="')[2].partition('"')[0].removeprefix("M").split(" L"):
        if point:
            x, y = map(float, point.split(","))
            assert 0 <= x <= 120
            assert 0 <= y <= 30


@pytest.mark.parametrize(("part", "width"), [(-1, "0.0"), (0.5, "50.0"), (7, "100.0")])
def test_a_bar_is_never_longer_than_its_place(part: float, width: str) -> None:
    assert f'class="part" width="{width}"' in bar(part)


def test_text_from_outside_is_no_markup() -> None:
    assert text("<b a='1' c=\"2\">&") == "&lt;b a=&#x27;1&#x27; c=&quot;2&quot;&gt;&amp;"
