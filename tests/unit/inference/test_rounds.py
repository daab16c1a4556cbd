"""Requests that ask again, driven together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.builders import row
from worker.inference.rounds import Asking, Logits, Meter, in_lockstep
from worker.messages import Classification, Outcome, Row


def asking(name: int, rounds: int, rows: int = 1, length: int = 1) -> Asking[Outcome]:
    """Asks so many times for so many rows, each told apart by its first token, and checks what it is sent."""
    for number in range(rounds):
        logits = yield [row(name, number, i, *[0] * (length - 3)) for i in range(rows)]
        assert logits.tolist() == [[name, number, i] for i in range(rows)]
    return Classification((), multi_label=False, abstained=bool(name % 2))


class Computing:
    """Echoes the first three tokens of each row, and counts."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __call__(self, wanted: Sequence[Sequence[Row]]) -> list[Logits]:
        self.calls.append([int(rows[0].token_ids[0]) for rows in wanted])
        return [np.array([one.token_ids[:3] for one in rows], dtype=np.float32) for rows in wanted]


def test_a_round_of_all_is_one_call_and_nobody_waits_for_those_who_go_on() -> None:
    compute = Computing()
    outcomes = in_lockstep({i: asking(i, rounds) for i, rounds in enumerate([3, 1, 0, 2])}, compute)
    assert compute.calls == [[0, 1, 3], [0, 3], [0]]
    assert {i: isinstance(one, Classification) and one.abstained for i, one in outcomes.items()} == {
        0: False,
        1: True,
        2: False,
        3: True,
    }
    assert in_lockstep({}, compute) == {}


def test_many_rows_are_computed_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.inference.rounds._TOKENS_IN_HAND", 20)
    compute = Computing()
    outcomes = in_lockstep({i: asking(i, 2, rows=2, length=5) for i in range(5)}, compute)
    assert len(outcomes) == 5
    assert compute.calls == [[0, 1], [2, 3], [4, 0], [1, 2], [3, 4]]


def test_an_error_is_the_batchs() -> None:
    def failing() -> Asking[Outcome]:
        yield [row(1)]
        raise ValueError("no number")

    with pytest.raises(ValueError, match="no number"):
        in_lockstep(
            {0: failing(), 1: asking(1, 2, length=3)}, lambda wanted: [np.zeros((1, 3), np.float32)] * len(wanted)
        )


def test_a_meter_without_a_limit_allows_everything() -> None:
    meter = Meter(None, 5)
    meter.charge([row(1, 2)])
    assert meter.allows(10**12)
    meter = Meter(10, 5)
    assert meter.allows(5)
    meter.charge([row(1, 2)])
    assert meter.allows(3)
    assert not meter.allows(4)
