from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.messages import Classification, Embedding, Entailment, Judgement, LabelScore, Outcome, Pooling
from worker.rules.agreement import agreement, compare


def classification(*scores: tuple[str, float], multi_label: bool = False) -> Classification:
    labels = tuple(LabelScore(label, score, score, 0.0, 1 - score) for label, score in scores)
    return Classification(labels, multi_label=multi_label, abstained=not labels)


def judged(*probabilities: tuple[float, float, float]) -> Entailment:
    return Entailment(tuple(Judgement(f"h{i}", *three) for i, three in enumerate(probabilities)))


@pytest.mark.parametrize(
    ("one", "other", "agrees", "drift"),
    [
        (classification(("a", 0.9), ("b", 0.1)), classification(("a", 0.6), ("b", 0.4)), True, 0.3),
        (classification(("a", 0.6), ("b", 0.4)), classification(("b", 0.5), ("a", 0.5)), False, 0.1),
        (classification(), classification(), True, 0.0),
        (classification(), classification(("a", 0.5)), False, 0.0),
        # In multi-label the order says nothing, and what passes says all.
        (
            classification(("a", 0.9), ("b", 0.8), multi_label=True),
            classification(("b", 0.9), ("a", 0.8), multi_label=True),
            True,
            0.1,
        ),
        (
            classification(("a", 0.9), ("b", 0.8), multi_label=True),
            classification(("a", 0.9), multi_label=True),
            False,
            0.0,
        ),
        (judged((0.7, 0.2, 0.1)), judged((0.5, 0.3, 0.2)), True, 0.2),
        (judged((0.7, 0.2, 0.1), (0.1, 0.8, 0.1)), judged((0.7, 0.2, 0.1), (0.1, 0.1, 0.8)), False, 0.0),
    ],
)
def test_what_agrees_and_how_far_scores_drift(one: Outcome, other: Outcome, agrees: bool, drift: float) -> None:
    found = compare(one, other)
    assert found is not None
    assert found.agrees == agrees
    assert found.drift == pytest.approx(drift)


def test_vectors_of_two_models_are_not_compared() -> None:
    vector = Embedding(np.ones(3, np.float32), Pooling.MEAN, normalized=True)
    assert compare(vector, vector) is None
    assert agreement([vector], [vector]).share is None


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1))
def test_of_several_requests(scores: list[tuple[float, float]]) -> None:
    ones = [classification(("a", first)) for first, _ in scores]
    others = [classification(("a", second)) for _, second in scores]
    found = agreement(ones, others)
    assert (found.compared, found.share) == (len(scores), 1.0)
    assert found.largest_drift == max(abs(first - second) for first, second in scores)
    assert found.mean_drift <= found.largest_drift + 1e-12
    assert agreement(others, ones) == found


def test_lists_of_two_lengths_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="shorter"):
        agreement([classification()], [])
