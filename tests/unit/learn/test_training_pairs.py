"""What is made of labelled texts: who is held out, which rivals are contradicted, and how much each pair counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.learn import training_pairs
from worker.learn.examples import Example
from worker.learn.scoring import Asked
from worker.learn.training_pairs import CONTRADICTED, ENTAILED, Judged, Pair
from worker.messages import Judgement, LongText, Pooling, Request, Row, Task

LABELS = ("a", "b", "c", "d")


def asked(number: int, expected: tuple[str, ...]) -> Asked:
    request = Request(
        id=str(number),
        task=Task.CLASSIFY,
        text=f"text {number}",
        labels=LABELS,
        hypotheses=LABELS,
        multi_label=True,
        language=None,
        top_k=None,
        threshold=None,
        long_text=LongText.TRUNCATE,
        pooling=Pooling.MEAN,
        normalize=True,
        attributes={},
    )
    return Asked(Example(str(number), request.text, LABELS, expected, multi_label=True), request)


def judged(entailments: list[float]) -> list[Judged]:
    return [
        Judged(Row(np.array([number], dtype=np.int32), 1), Judgement(f"h{number}", entailment, 0.0, 1 - entailment))
        for number, entailment in enumerate(entailments)
    ]


EXPECTED = st.lists(st.sampled_from(LABELS), max_size=2, unique=True).map(tuple)
PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(st.lists(EXPECTED, max_size=60), st.floats(0, 0.9), st.integers(0, 5))
def test_a_part_is_held_out_and_something_of_every_label_is_left_to_learn_from(
    expected: list[tuple[str, ...]], share: float, seed: int
) -> None:
    examples = [asked(number, labels) for number, labels in enumerate(expected)]
    taught, held_out = training_pairs.split(examples, share, seed)
    assert sorted([*taught, *held_out], key=lambda one: int(one.example.id)) == examples
    assert (taught, held_out) == training_pairs.split(examples, share, seed)
    rarest = min(LABELS, key=lambda label: (sum(label in labels for labels in expected), label))
    if any(rarest in labels for labels in expected):
        assert any(rarest in one.example.expected for one in taught)


def test_a_quarter_of_eight_is_two_of_each_label() -> None:
    examples = [asked(number, (LABELS[number % 4],)) for number in range(32)]
    _, held_out = training_pairs.split(examples, 0.25, 0)
    assert sorted(one.example.expected for one in held_out) == [(label,) for label in LABELS for _ in range(2)]


@given(PROBABILITIES, st.sets(st.integers(0, 11)), st.integers(1, 12))
def test_the_rivals_contradicted_are_those_that_the_model_believes_the_most(
    entailments: list[float], right: set[int], negatives: int
) -> None:
    pairs = training_pairs.labelled(judged(entailments), {f"h{number}" for number in right}, negatives)
    by_row = {int(pair.row.token_ids[0]): pair for pair in pairs}
    assert len(by_row) == len(pairs)
    held = {number for number, pair in by_row.items() if pair.target == ENTAILED}
    rivals = {number for number, pair in by_row.items() if pair.target == CONTRADICTED}
    assert held == right & set(range(len(entailments)))
    left_out = set(range(len(entailments))) - held - rivals
    assert len(rivals) == min(negatives, len(entailments) - len(held))
    assert all(entailments[rival] >= entailments[other] for rival in rivals for other in left_out)
    for side in (held, rivals):
        assert not side or math.isclose(sum(by_row[number].weight for number in side), 0.5)


@given(PROBABILITIES)
def test_what_is_rehearsed_keeps_its_probabilities(entailments: list[float]) -> None:
    pairs = training_pairs.kept(judged(entailments))
    assert [pair.target.entailment for pair in pairs] == entailments
    assert all(math.isclose(sum(pair.target), 1) for pair in pairs)
    assert math.isclose(sum(pair.weight for pair in pairs), 1)


@given(st.lists(st.floats(0.01, 10), max_size=20), st.lists(st.floats(0.01, 10), max_size=20), st.floats(0.05, 0.95))
def test_what_is_rehearsed_has_its_share_of_the_loss(learnt: list[float], kept: list[float], share: float) -> None:
    row = judged([1.0])[0].row
    pairs = training_pairs.together(
        [Pair(row, ENTAILED, weight) for weight in learnt], [Pair(row, CONTRADICTED, weight) for weight in kept], share
    )
    assert len(pairs) == len(learnt) + len(kept)
    total = sum(pair.weight for pair in pairs)
    assert total == pytest.approx(len(pairs))
    rehearsed = sum(pair.weight for pair in pairs if pair.target == CONTRADICTED)
    if learnt and kept:
        assert rehearsed == pytest.approx(share * total)
