"""What must hold of scores whatever the logits are."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.builders import classify
from worker.inference.scores import LabelOrder, score
from worker.messages import Classification, LongText, Request

ORDERS = [LabelOrder(0, 1, 2), LabelOrder(1, 2, 0), LabelOrder(2, 1, 0), LabelOrder(1, None, 0)]
LOGITS = st.floats(-60, 60, width=32)
Logits = npt.NDArray[np.float32]
Case = tuple[Request, Logits, int, LabelOrder]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    order = draw(st.sampled_from(ORDERS))
    labels = tuple(draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12)))
    windows = draw(st.integers(1, 3))
    request = classify(
        "text",
        *labels,
        multi_label=draw(st.booleans()),
        top_k=draw(st.none() | st.integers(1, 13)),
        threshold=draw(st.none() | st.floats(0, 1)),
        abstain_on_neutral=draw(st.none() | st.floats(0, 1)),
        long_text=draw(st.sampled_from(LongText)),
    )
    classes = 2 if order.neutral is None else 3
    return request, draw(arrays(np.float32, (len(labels) * windows, classes), elements=LOGITS)), windows, order


def run(request: Request, logits: Logits, windows: int, order: LabelOrder) -> Classification:
    outcome = score(request, logits, windows, order)
    assert isinstance(outcome, Classification)
    return outcome


@given(cases())
def test_scores_are_probabilities_in_falling_order(case: Case) -> None:
    request, logits, windows, order = case
    outcome = run(request, logits, windows, order)
    scores = [label.score for label in outcome.labels]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= value <= 1 for value in scores)
    assert all(label.entailment + label.neutral + label.contradiction == pytest.approx(1) for label in outcome.labels)
    assert request.abstain_on_neutral is None or all(
        label.neutral < request.abstain_on_neutral for label in outcome.labels
    )
    if request.top_k is None and request.threshold is None and request.abstain_on_neutral is None:
        assert sorted(label.label for label in outcome.labels) == sorted(request.labels)
        if not request.multi_label and len(request.labels) > 1:
            assert sum(scores) == pytest.approx(1)
    assert outcome.abstained is (not outcome.labels)
    assert not (outcome.abstained and request.threshold is None and request.abstain_on_neutral is None)
    assert len(outcome.labels) <= (request.top_k or len(request.labels))
    assert all(request.threshold is None or value >= request.threshold for value in scores)


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_the_labels_does_not_change_their_scores(
    case: Case,
    shuffler: random.Random,
) -> None:
    request, logits, windows, order = case
    assume(request.top_k is None)  # among equals, top_k keeps the first
    shuffled = list(range(len(request.labels)))
    shuffler.shuffle(shuffled)
    labels = tuple(request.labels[i] for i in shuffled)
    other = replace(request, labels=labels, hypotheses=labels)
    rows = logits.reshape(len(labels), windows, -1)[shuffled].reshape(logits.shape)
    before = sorted((label.label, label.score) for label in run(request, logits, windows, order).labels)
    after = sorted((label.label, label.score) for label in run(other, rows, windows, order).labels)
    if (
        request.threshold is request.abstain_on_neutral is None
    ):  # a score on the threshold may fall on either side of it
        assert [label for label, _ in before] == [label for label, _ in after]
        assert [value for _, value in before] == pytest.approx([value for _, value in after], abs=1e-12)


@given(cases())
def test_windows_that_say_the_same_say_what_one_says(
    case: Case,
) -> None:
    request, logits, windows, order = case
    once = logits.reshape(len(request.labels), windows, -1)[:, 0]
    thrice = np.repeat(once[:, None], 3, axis=1).reshape(-1, logits.shape[1])
    one = run(request, once, 1, order).labels
    three = run(request, thrice, 3, order).labels
    if request.threshold is request.abstain_on_neutral is None:
        assert [label.score for label in three] == pytest.approx([label.score for label in one], abs=1e-12)


@given(cases(), st.integers(-40, 40))
def test_a_constant_on_all_logits_of_a_batch_says_nothing(case: Case, constant: int) -> None:
    request, logits, windows, order = case
    assume(request.threshold is request.abstain_on_neutral is None)
    plain = run(request, np.round(logits), windows, order).labels
    moved = run(request, np.round(logits) + np.float32(constant), windows, order).labels
    assert [label.score for label in moved] == pytest.approx([label.score for label in plain], abs=1e-12)
