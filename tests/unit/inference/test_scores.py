from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests import builders
from worker.errors import Reason, Rejection
from worker.inference.scores import LabelOrder, embed, score
from worker.messages import Classification, Entailment, LongText, Request, Span

THREE = LabelOrder(entailment=2, neutral=1, contradiction=0)
TWO = LabelOrder(entailment=0, neutral=None, contradiction=1)


def request(*labels: str, **fields: Any) -> Request:
    return builders.classify("text", *labels, **fields)


def classify(made: Request, logits: list[list[float]], windows: int = 1, order: LabelOrder = THREE) -> Classification:
    outcome = score(made, np.array(logits, dtype=np.float32), windows, order)
    assert isinstance(outcome, Classification)
    return outcome


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_single_label_is_the_softmax_of_the_entailment_logits_over_the_labels() -> None:
    outcome = classify(request("a", "b"), [[9.0, 9.0, 1.0], [0.0, 0.0, 3.0]])
    assert [label.label for label in outcome.labels] == ["b", "a"]
    assert outcome.labels[0].score == pytest.approx(sigmoid(2.0))
    assert outcome.labels[1].score == pytest.approx(sigmoid(-2.0))
    assert not outcome.abstained


@pytest.mark.parametrize("labels", [("a", "b"), ("a",)])
def test_multi_label_or_one_label_alone_weighs_entailment_against_contradiction(labels: tuple[str, ...]) -> None:
    made = request(*labels, multi_label=len(labels) > 1)
    outcome = classify(made, [[0.0, 100.0, 1.5], [4.0, 0.0, 1.0]][: len(labels)])
    assert {label.label: label.score for label in outcome.labels} == pytest.approx(
        {"a": sigmoid(1.5), "b": sigmoid(-3.0)} if len(labels) > 1 else {"a": sigmoid(1.5)}
    )
    assert outcome.multi_label is (len(labels) > 1)


@pytest.mark.parametrize(
    "order", [LabelOrder(0, 1, 2), LabelOrder(0, 2, 1), LabelOrder(1, 0, 2), LabelOrder(2, 0, 1), LabelOrder(2, 1, 0)]
)
def test_classes_are_found_wherever_the_checkpoint_has_them(order: LabelOrder) -> None:
    logits = [0.0, 0.0, 0.0]
    logits[order.entailment], logits[order.contradiction] = 2.0, -1.0
    assert order.neutral is not None
    logits[order.neutral] = 0.5
    (label,) = classify(request("a"), [logits], order=order).labels
    whole = math.exp(2) + math.exp(0.5) + math.exp(-1)
    assert label.score == pytest.approx(sigmoid(3.0))
    assert (label.entailment, label.neutral, label.contradiction) == pytest.approx(
        (math.exp(2) / whole, math.exp(0.5) / whole, math.exp(-1) / whole)
    )


def test_two_classes_have_no_neutral() -> None:
    (label,) = classify(request("a"), [[2.0, -1.0]], order=TWO).labels
    assert (label.score, label.entailment, label.contradiction) == pytest.approx((sigmoid(3), sigmoid(3), sigmoid(-3)))
    assert label.neutral == 0.0


def test_logits_past_the_range_of_exp_are_scored() -> None:
    outcome = classify(request("a", "b", "c"), [[0, 0, 1e4], [0, 0, -1e4], [0, 0, 1e4 - 1]])
    assert [label.score for label in outcome.labels] == pytest.approx([sigmoid(1), sigmoid(-1), 0.0])


def test_equal_scores_keep_the_order_of_the_request() -> None:
    outcome = classify(request("d", "b", "c", "a", "b"), [[0, 0, 1], [0, 0, 2], [0, 0, 1], [0, 0, 1], [0, 0, 2]])
    assert [label.label for label in outcome.labels] == ["b", "b", "d", "c", "a"]


def test_top_k_and_threshold_cut_the_tail_and_leave_the_scores() -> None:
    logits = [[0.0, 0.0, 1.0], [0.0, 0.0, 3.0], [0.0, 0.0, 2.0]]
    whole = classify(request("a", "b", "c"), logits).labels
    assert classify(request("a", "b", "c", top_k=2), logits).labels == whole[:2]
    assert classify(request("a", "b", "c", top_k=9), logits).labels == whole
    assert classify(request("a", "b", "c", threshold=whole[1].score), logits).labels == whole[:2]
    assert classify(request("a", "b", "c", threshold=whole[1].score, top_k=1), logits).labels == whole[:1]


def test_no_label_over_the_threshold_is_to_abstain() -> None:
    outcome = classify(request("a", "b", threshold=0.9), [[0.0, 0.0, 1.0], [0.0, 0.0, 1.5]])
    assert outcome.abstained
    assert outcome.labels == ()


def test_a_label_has_a_threshold_of_its_own_else_that_of_the_request() -> None:
    logits = [[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 3.0]]
    made = request("a", "b", "c", multi_label=True, thresholds=(0.5, 0.95, None))
    assert [label.label for label in classify(made, logits).labels] == ["c", "a"]
    assert [label.label for label in classify(replace(made, threshold=0.96), logits).labels] == ["a"]
    assert classify(replace(made, thresholds=(0.9, 0.9, None), threshold=0.96), logits).abstained


def test_a_label_of_which_the_text_says_nothing_does_not_pass() -> None:
    logits = [[0.0, 0.0, 1.0], [0.0, 5.0, 2.0]]
    made = request("a", "b", abstain_on_neutral=0.8)
    assert [label.label for label in classify(made, logits).labels] == ["a"]
    assert classify(made, logits).labels == classify(request("a", "b"), logits).labels[1:]
    neutral = classify(request("b"), logits[1:]).labels[0].neutral
    assert classify(request("b", abstain_on_neutral=neutral), logits[1:]).abstained, "it reaches it"
    assert not classify(request("a", abstain_on_neutral=1e-9), [[2.0, -1.0]], order=TWO).abstained


def test_the_window_that_decided_is_named_for_each_label() -> None:
    logits = [[0.0, 0.0, 4.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 3.0]]
    spans = (Span(0, 10), Span(7, 15))
    for made, expected in (
        (request("a", "b", long_text=LongText.WINDOW_MAX), {"a": spans[0], "b": spans[1]}),
        (request("a", "b", long_text=LongText.WINDOW_MEAN), {"a": None, "b": None}),
    ):
        outcome = score(made, np.array(logits, dtype=np.float32), 2, THREE, spans)
        assert isinstance(outcome, Classification)
        assert {label.label: label.window for label in outcome.labels} == expected
    judged = score(
        builders.entail("text", "x", "y", long_text=LongText.WINDOW_MAX),
        np.array(logits, dtype=np.float32),
        2,
        THREE,
        spans,
    )
    assert isinstance(judged, Entailment)
    assert [one.window for one in judged.judgements] == list(spans)


def test_entailment_keeps_the_order_of_the_hypotheses() -> None:
    outcome = score(builders.entail("text", "x", "y"), np.array([[3, 0, 0], [0, 0, 3]], dtype=np.float32), 1, THREE)
    assert isinstance(outcome, Entailment)
    assert [judgement.hypothesis for judgement in outcome.judgements] == ["x", "y"]
    high, low = math.exp(3) / (math.exp(3) + 2), 1 / (math.exp(3) + 2)
    assert outcome.judgements[0].contradiction == pytest.approx(high)
    assert outcome.judgements[1].entailment == pytest.approx(high)
    assert outcome.judgements[1].neutral == pytest.approx(low)


def test_window_max_takes_each_hypothesis_from_the_window_that_supports_it_most() -> None:
    # "a" holds in the first window, "b" in the second, whose logits are all higher by a constant that says nothing.
    logits = [[0.0, 0.0, 4.0], [10.0, 10.0, 9.0], [0.0, 0.0, 0.0], [10.0, 10.0, 13.0]]
    multi = classify(request("a", "b", multi_label=True, long_text=LongText.WINDOW_MAX), logits, windows=2)
    assert {label.label: label.score for label in multi.labels} == pytest.approx({"a": sigmoid(4), "b": sigmoid(3)})
    single = classify(request("a", "b", long_text=LongText.WINDOW_MAX), logits, windows=2)
    assert {label.label: label.score for label in single.labels} == pytest.approx({"a": sigmoid(-9), "b": sigmoid(9)})


def test_window_mean_averages_the_evidence_of_the_windows() -> None:
    logits = [[0.0, 0.0, 4.0], [2.0, 0.0, 0.0]]
    (label,) = classify(request("a", long_text=LongText.WINDOW_MEAN), logits, windows=2).labels
    assert label.score == pytest.approx(sigmoid(2.0 - 1.0))


def test_an_embedding_is_the_mean_over_windows_weighted_by_tokens() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 4.0]], dtype=np.float32)
    lengths = np.array([3, 1])
    made = builders.embed(normalize=False, long_text=LongText.WINDOW_MEAN)
    assert embed(made, vectors, lengths).vector.tolist() == [0.75, 1.0]
    normal = embed(replace(made, normalize=True), vectors, lengths)
    assert normal.vector.tolist() == pytest.approx([0.6, 0.8])
    assert normal.vector.dtype == np.float32
    assert normal.normalized
    largest = embed(replace(made, long_text=LongText.WINDOW_MAX), vectors, lengths)
    assert largest.vector.tolist() == [1.0, 4.0]


def test_a_zero_vector_stays_zero_when_normalised() -> None:
    assert embed(builders.embed(), np.zeros((1, 3), np.float32), np.array([5])).vector.tolist() == [0, 0, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_no_result(bad: float) -> None:
    with pytest.raises(Rejection) as scored:
        classify(request("a", "b"), [[0.0, 0.0, 1.0], [0.0, bad, 0.0]])
    assert scored.value.reason is Reason.INFERENCE
    with pytest.raises(Rejection):
        embed(builders.embed(), np.array([[1.0, bad]], dtype=np.float32), np.array([5]))
