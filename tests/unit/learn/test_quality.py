"""Figures against what a hand, or scikit-learn on dense labels, counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score

from worker.learn import quality
from worker.learn.quality import Answer, Confusion


def chosen(expected: str, predicted: str, score: float = 0.9, language: str | None = None) -> Answer:
    """Of a, b and c, one was chosen."""
    rest = (1 - score) / 2
    scores = tuple(score if label == predicted else rest for label in "abc")
    return Answer(("a", "b", "c"), scores, (predicted,), (expected,), is_apart=False, language=language)


def judged(expected: str, **scores: float) -> Answer:
    predicted = tuple(label for label, score in scores.items() if score >= 0.5)
    return Answer(tuple(scores), tuple(scores.values()), predicted, tuple(expected), is_apart=True)


_ANSWERS = st.lists(
    st.builds(chosen, st.sampled_from("abc"), st.sampled_from("abc"), st.floats(0.4, 1.0)), min_size=1, max_size=40
)


@settings(max_examples=20)  # each draws its thousand samples
@given(answers=_ANSWERS)
def test_labels_that_compete_are_counted_as_scikit_learn_counts_classes(answers: list[Answer]) -> None:
    truth = [answer.expected[0] for answer in answers]
    given_ = [answer.predicted[0] for answer in answers]
    found = quality.report(answers)
    assert found.macro_f1 == pytest.approx(f1_score(truth, given_, average="macro"))
    assert found.accuracy == pytest.approx(np.mean(np.equal(truth, given_)))
    matrix = confusion_matrix(truth, given_, labels=list("abc"))
    cells = {(cell.expected, cell.predicted): cell.count for cell in found.confusion}
    assert all(cells.get((e, p), 0) == matrix["abc".index(e), "abc".index(p)] for e in "abc" for p in "abc")


def test_labels_on_their_own_are_counted_by_hand() -> None:
    answers = [
        judged("a", a=0.9, b=0.8),
        judged("ab", a=0.7, b=0.2),
        judged("", a=0.1, b=0.3),
        judged("b", a=0.6, b=0.6),
    ]
    found = quality.report(answers)
    a, b = found.labels["a"], found.labels["b"]
    assert a.precision == pytest.approx(2 / 3)
    assert (a.recall, a.support, a.predicted) == (1.0, 2, 3)
    assert (b.precision, b.recall, b.support) == (0.5, 0.5, 2)
    assert found.macro_f1 == pytest.approx((0.8 + 0.5) / 2)
    assert (found.accuracy, found.abstained) == (0.25, 1)
    assert Confusion(None, None, 1) in found.confusion
    truth = [1, 0, 1, 1, 0, 0, 0, 1]
    scores = [0.9, 0.8, 0.7, 0.2, 0.1, 0.3, 0.6, 0.6]
    assert found.brier == pytest.approx(np.mean(np.subtract(truth, scores) ** 2))


def test_languages_have_figures_of_their_own() -> None:
    found = quality.report([chosen("a", "a", language="de"), chosen("a", "b", language="fr"), chosen("c", "c")])
    assert {code: (one.f1, one.support) for code, one in found.languages.items()} == {
        "de": (1.0, 1),
        "fr": (0.0, 1),
        "und": (1.0, 1),
    }


@pytest.mark.parametrize("right", [True, False])
def test_one_label_and_one_answer_have_figures(right: bool) -> None:
    found = quality.report([judged("a" if right else "", a=0.9)])
    assert found.labels["a"].precision == float(right)
    assert found.calibration_error.value == pytest.approx(0.1 if right else 0.9)
    assert found.brier == pytest.approx(0.01 if right else 0.81)
    assert quality.macro_f1([judged("a" if right else "", a=0.9)]) == float(right)


def test_the_calibration_error_is_that_of_bins_of_equal_mass() -> None:
    scores = np.asarray([0.1, 0.2, 0.3, 0.4, 0.9, 0.9])
    came_true = np.asarray([False, False, True, False, True, True])
    # three bins of two: |0.15 - 0|, |0.35 - 0.5|, |0.9 - 1|
    assert quality.calibration_error(scores, came_true, bins=3).value == pytest.approx((0.15 + 0.15 + 0.1) / 3)
    assert [(one.events, one.share) for one in quality.reliability(scores, came_true, bins=3)] == [
        (2, 0.0),
        (2, 0.5),
        (2, 1.0),
    ]


def test_the_interval_of_scores_that_are_probabilities_holds_no_error_and_that_of_others_does_not() -> None:
    rng = np.random.default_rng(5)
    scores = rng.uniform(size=3000)
    fair = quality.calibration_error(scores, rng.uniform(size=3000) < scores)
    sure = quality.calibration_error(scores, rng.uniform(size=3000) < scores**3)
    assert fair.low == 0.0
    assert fair.high < 0.05
    assert sure.low > 0.15
    assert sure.low < sure.value < sure.high


@settings(max_examples=20)  # each draws its thousand samples
@given(answers=_ANSWERS)
def test_whole_coverage_has_the_accuracy_of_all_and_less_begins_with_the_surest(answers: list[Answer]) -> None:
    curve = quality.coverage(answers)
    assert curve[-1].coverage == 1.0
    assert curve[-1].accuracy == pytest.approx(quality.report(answers).accuracy)
    scores = [point.score for point in curve]
    assert scores == sorted(scores, reverse=True)
    best = max(answers, key=lambda answer: max(answer.scores))
    assert curve[0].score == max(best.scores)
