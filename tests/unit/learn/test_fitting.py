"""Fits of scores whose true probabilities are known, because they were drawn from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import SettingsError
from worker.inference.scores import softmax
from worker.learn import quality
from worker.learn.fitting import (
    Competing,
    Reached,
    Seen,
    Wanted,
    fit_curve,
    fit_temperature,
    threshold_for,
    within_label,
)
from worker.rules.calibration import Isotonic, Platt, margin

RNG_SEED = 7


def logistic(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-values)))


def seen(count: int, slope: float, intercept: float) -> Seen:
    """Scores of which ``slope * margin + intercept`` is the truth."""
    rng = np.random.default_rng(RNG_SEED)
    margins = rng.normal(0, 2, count)
    holds = rng.uniform(size=count) < logistic(slope * margins + intercept)
    return Seen(logistic(margins), holds, np.arange(count))


def test_a_line_is_found_again() -> None:
    fitted = fit_curve(seen(4000, 0.5, -1.0))
    assert not isinstance(fitted, str)
    curve = fitted.curve
    probabilities = np.asarray([curve(score) for score in (0.1, 0.5, 0.9)])
    truth = logistic(0.5 * np.asarray([margin(score) for score in (0.1, 0.5, 0.9)]) - 1)
    assert np.abs(probabilities - truth).max() < 0.05


def test_a_step_takes_isotonic_regression_and_few_positives_a_line() -> None:
    rng = np.random.default_rng(RNG_SEED)
    scores = rng.uniform(size=3000)
    holds = rng.uniform(size=3000) < np.where(scores > 0.9, 0.9, 0.05)
    many = fit_curve(Seen(scores, holds, np.arange(3000)))
    assert not isinstance(many, str)
    assert isinstance(many.curve, Isotonic)
    assert len(many.curve.margins) <= 64
    few = fit_curve(Seen(scores[:300], holds[:300], np.arange(300)))
    assert not isinstance(few, str)
    assert isinstance(few.curve, Platt)


def test_scores_are_better_calibrated_on_folds_that_were_held_out() -> None:
    given_ = seen(3000, 0.4, -1.5)
    fitted = fit_curve(given_)
    assert not isinstance(fitted, str)
    before = quality.calibration_error(given_.scores, given_.holds)
    after = quality.calibration_error(fitted.held_out, given_.holds)
    assert after.high < before.low / 2


@pytest.mark.parametrize(
    ("made", "word"),
    [
        (Seen(np.linspace(0, 1, 50), np.arange(50) < 3, np.arange(50)), "3 of 50 examples expect it"),
        (Seen(np.linspace(0, 1, 50), np.arange(50) >= 0, np.arange(50)), "50 of 50 examples expect it"),
        (Seen(np.linspace(0, 1, 50), np.arange(50) < 25, np.arange(50)), "no higher where it is expected"),
        (Seen(np.linspace(0, 1, 50), np.arange(50) >= 25, np.arange(50) // 25), "a fold has examples of one kind"),
    ],
)
def test_what_cannot_be_fitted_is_told(made: Seen, word: str) -> None:
    assert word in str(fit_curve(made))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_temperature_is_found_again(temperature: float) -> None:
    rng = np.random.default_rng(RNG_SEED)
    count = 1500
    logits = rng.normal(0, 2, (count, 5))
    truth = softmax(logits / temperature)
    right = np.asarray([rng.choice(5, p=row) for row in truth])
    fitted = fit_temperature(Competing(softmax(logits), right, np.arange(count)))
    assert fitted.temperature == pytest.approx(temperature, rel=0.15)
    assert np.allclose(fitted.held_out.sum(axis=1), 1)


def test_scores_that_are_probabilities_already_stay_as_they_are() -> None:
    rng = np.random.default_rng(RNG_SEED)
    scores = softmax(np.eye(4)[np.arange(80) % 4] * 6.0 + rng.normal(0, 0.1, (80, 4)))
    kept = fit_temperature(Competing(scores, np.arange(80) % 4, np.arange(80)))  # right 80 times, and sure of it
    before = -np.log(scores[np.arange(80), np.arange(80) % 4]).mean()
    after = -np.log(kept.held_out[np.arange(80), np.arange(80) % 4]).mean()
    assert after <= before
    fitted = fit_curve(seen(400, 1.0, 0.0))
    assert not isinstance(fitted, str)
    assert abs(fitted.curve(0.3) - 0.3) < 0.05


def test_labels_that_are_always_right_lead_to_no_certainty() -> None:
    logits = np.eye(4)[np.arange(200) % 4] * 2.0
    fitted = fit_temperature(Competing(softmax(logits), np.arange(200) % 4, np.arange(200)))
    assert 0.9 < fitted.held_out.max() < 1.0


def test_equal_texts_are_held_out_together() -> None:
    """Where the label is a property of the text alone, what was seen of the same text would tell it."""
    rng = np.random.default_rng(RNG_SEED)
    groups = np.arange(600) // 3
    holds = (rng.uniform(size=200) < 0.5)[groups]
    scores = rng.uniform(size=200)[groups]  # says nothing of it
    fitted = fit_curve(Seen(scores, holds, groups))
    if not isinstance(fitted, str):
        assert quality.calibration_error(fitted.held_out, holds).value < 0.2


@settings(max_examples=50)
@given(
    wanted=st.builds(Wanted, st.sampled_from(["precision", "recall", "f1"]), st.floats(0.05, 1.0)),
    seed=st.integers(0, 1000),
    digits=st.integers(1, 6),
)
def test_a_threshold_does_what_it_says_on_what_it_was_chosen_of(wanted: Wanted, seed: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.uniform(size=200), digits)
    holds = rng.uniform(size=200) < scores
    positives = int(holds.sum())
    found = threshold_for(wanted, scores, holds, positives=positives)
    assert found is not None
    passed = scores >= found.threshold
    assert found.precision == pytest.approx(holds[passed].mean())
    assert found.recall == pytest.approx(holds[passed].sum() / positives)
    if wanted.of != "f1" and found.is_met:
        assert getattr(found, wanted.of) >= wanted.value
    if wanted.of == "recall":
        assert found.is_met


def test_a_precision_out_of_reach_leaves_the_nearest() -> None:
    rng = np.random.default_rng(RNG_SEED)
    found = threshold_for(Wanted("precision", 0.99), rng.uniform(size=500), rng.uniform(size=500) < 0.3, positives=150)
    assert found is not None
    assert not found.is_met
    assert found.precision > 0.25


def test_one_text_alone_cannot_be_held_out() -> None:
    one = np.zeros(60, dtype=np.intp)
    with pytest.raises(SettingsError, match="the same text"):
        fit_curve(Seen(np.linspace(0, 1, 60), np.arange(60) > 30, one))


def test_where_nothing_has_to_be_left_out_nothing_is() -> None:
    scores = np.linspace(0.9, 1.0, 40)
    assert threshold_for(Wanted("precision", 0.9), scores, scores > 0.0, positives=40) == Reached(
        0.0, 1.0, 1.0, is_met=True
    )


def test_a_label_that_one_temperature_makes_too_modest_leaves_out_no_more_than_is_wanted() -> None:
    """Its scores promise half of what comes true: by them alone next to nothing could be said."""
    rng = np.random.default_rng(RNG_SEED)
    scores = rng.uniform(0.4, 0.9, size=400)
    modest = rng.uniform(size=400) < 0.99
    kept = threshold_for(
        Wanted("precision", 0.95), scores, modest, positives=400, probable=within_label(scores, modest)
    )
    assert kept is not None
    assert (kept.threshold, kept.is_met) == (0.0, True)
    alone = threshold_for(Wanted("precision", 0.95), scores, modest, positives=400)
    assert alone is not None
    assert not alone.is_met


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_label_that_is_always_right_or_never_is_not_certain_of_it(share: float) -> None:
    scores = np.linspace(0.2, 0.8, 48)
    probable = within_label(scores, np.full(48, share > 0))
    assert set(probable) == {(48 * share + 1) / 50}


def test_a_label_that_is_wrong_below_a_score_is_predicted_above_it() -> None:
    rng = np.random.default_rng(RNG_SEED)
    scores = rng.uniform(0.3, 1.0, size=2000)
    holds = rng.uniform(size=2000) < logistic(20 * (scores - 0.6))
    found = threshold_for(
        Wanted("precision", 0.95), scores, holds, positives=int(holds.sum()), probable=within_label(scores, holds)
    )
    assert found is not None
    assert found.is_met
    expected = logistic(20 * (np.linspace(found.threshold, 1.0, 1000) - 0.6)).mean()  # of texts that nobody has seen
    assert 0.94 < expected < 0.97


def test_no_decision_means_no_threshold() -> None:
    assert threshold_for(Wanted("f1"), np.zeros(0), np.zeros(0, dtype=np.bool_), positives=5) is None
