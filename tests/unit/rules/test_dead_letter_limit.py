from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import DeadLetterLimit, Reason
from worker.messages import Fault, FaultKind
from worker.rules.dead_letter import LEAST, WINDOW, LetterGauge, LetterLimits

FAULT = Fault(FaultKind.MESSAGE, Reason.INVALID, "decode", "Rejection", "labels = []")


def _halts_at(limits: LetterLimits, letters: list[bool]) -> int | None:
    gauge = LetterGauge(limits)
    for index, letter in enumerate(letters):
        if not letter:
            gauge.answered()
            continue
        try:
            gauge.buried(FAULT)
        except DeadLetterLimit:
            return index
    return None


@given(st.lists(st.booleans(), max_size=300))
def test_without_limits_nothing_halts(letters: list[bool]) -> None:
    assert _halts_at(LetterLimits(), letters) is None


@given(limit=st.integers(1, 5), letters=st.lists(st.booleans(), max_size=60))
def test_a_run_of_letters_halts_at_the_first_beyond_the_limit(limit: int, letters: list[bool]) -> None:
    run, expected = 0, None
    for index, letter in enumerate(letters):
        run = run + 1 if letter else 0
        if run > limit:
            expected = index
            break
    assert _halts_at(LetterLimits(max_consecutive=limit), letters) == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_ratio_is_of_the_last_window_of_records(seed: int) -> None:
    draw = random.Random(seed)
    ratio = draw.uniform(0.01, 1.0)
    letters = [draw.random() < ratio for _ in range(3 * WINDOW // 2)]
    expected = None
    for index, letter in enumerate(letters):
        recent = letters[max(0, index + 1 - WINDOW) : index + 1]
        if letter and len(recent) >= LEAST and sum(recent) > ratio * len(recent):
            expected = index
            break
    assert _halts_at(LetterLimits(max_ratio=ratio), letters) == expected


def test_the_message_names_the_limit_and_the_last_fault() -> None:
    gauge = LetterGauge(LetterLimits(max_consecutive=1))
    gauge.buried(FAULT)
    with pytest.raises(DeadLetterLimit, match=r"dead_letter.max_consecutive is 1; the last for invalid: labels = \[\]"):
        gauge.buried(FAULT)
