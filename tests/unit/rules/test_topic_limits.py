"""What is certainly refused, and what only may be."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.builders import output
from worker.rules.topic_limits import CLOCK_SKEW_MS, TopicLimits

NOISE = random.Random(0).randbytes(3000)
NOW_MS = 1_700_000_000_000


@pytest.mark.parametrize(
    ("value", "is_compressed", "is_too_large"),
    [
        (b"x" * 1000, False, False),
        (b"x" * 1001, False, True),
        (b"x" * 100_000, True, False),  # compressed it is small
        (NOISE, True, True),  # and this no codec makes small
        (NOISE[:1020], True, False),  # who knows
        (NOISE.hex().encode()[:1900], True, False),
        (NOISE.hex().encode(), True, True),
    ],
)
def test_only_what_no_codec_makes_small_enough_is_too_large(
    value: bytes, is_compressed: bool, is_too_large: bool
) -> None:
    limits = TopicLimits(1000, is_compressed)
    assert limits.is_too_large(replace(output(value), key=None)) == is_too_large


def test_headers_and_key_count() -> None:
    asked = replace(output(b"x" * 600), key=b"x" * 200, headers=(("name", b"x" * 300), ("none", None)))
    assert TopicLimits(1000, is_compressed=False).is_too_large(asked)


@pytest.mark.parametrize(
    ("ahead_ms", "is_wrong"),
    [(0, False), (3_600_000, False), (3_600_000 + CLOCK_SKEW_MS + 1, True), (-5000, False), (-200_000, True)],
)
def test_a_timestamp_is_wrong_beyond_limit_and_skew(ahead_ms: int, is_wrong: bool) -> None:
    asked = replace(output(b"x"), timestamp_ms=NOW_MS + ahead_ms)
    limits = TopicLimits(1000, is_compressed=True, future_ms=3_600_000, past_ms=100_000)
    assert limits.has_wrong_time(asked, NOW_MS) == is_wrong
    assert not TopicLimits(1000, is_compressed=True).has_wrong_time(asked, NOW_MS), "the broker stamps it"
