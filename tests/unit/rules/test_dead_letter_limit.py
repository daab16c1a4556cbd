from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import DeadLetterLimit, Reason
from worker.messages import Fault, FaultKind
from worker.rules.dead_letter_limit import LEAST, WINDOW, DeadLetterCount, DeadLetterLimits

FAULT = Fault(FaultKind.MESSAGE, Reason.INVALID, "decode", "Rejection", "labels = []")


def _halts_at(limits: DeadLetterLimits, dead: list[bool]) -> int | None:
    count = DeadLetterCount(limits)
    for index, is_dead in enumerate(dead):
        if not is_dead:
            count.answered()
            continue
        try:
            count.dead_lettered(FAULT)
        except DeadLetterLimit:
            return index
    return None


@given(st.lists(st.booleans(), max_size=300))
def test_without_limits_nothing_halts(dead: list[bool]) -> None:
    assert _halts_at(DeadLetterLimits(), dead) is None


@given(limit=st.integers(1, 5), dead=st.lists(st.booleans(), max_size=60))
def test_a_run_of_dead_letters_halts_at_the_first_beyond_the_limit(limit: int, dead: list[bool]) -> None:
    run, expected = 0, None
    for index, is_dead in enumerate(dead):
        run = run + 1 if is_dead else 0
        if run > limit:
            expected = index
            break
    assert _halts_at(DeadLetterLimits(max_consecutive=limit), dead) == expected


@pytest.mark.parametrize("seed", range(20))
def test_a_ratio_is_of_the_last_window_of_records(seed: int) -> None:
    draw = random.Random(seed)
    ratio = draw.uniform(0.01, 1.0)
    dead = [draw.random() < ratio for _ in range(3 * WINDOW // 2)]
    expected = None
    for index, is_dead in enumerate(dead):
        recent = dead[max(0, index + 1 - WINDOW) : index + 1]
        if is_dead and len(recent) >= LEAST and sum(recent) > ratio * len(recent):
            expected = index
            break
    assert _halts_at(DeadLetterLimits(max_ratio=ratio), dead) == expected


def test_the_message_names_the_limit_and_the_last_fault() -> None:
    count = DeadLetterCount(DeadLetterLimits(max_consecutive=1))
    count.dead_lettered(FAULT)
    with pytest.raises(DeadLetterLimit, match=r"dead_letter.max_consecutive is 1; the last for invalid: labels = \[\]"):
        count.dead_lettered(FAULT)
