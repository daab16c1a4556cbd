"""Scores become probabilities: rising curves, one temperature, and thresholds that stand behind all others."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import builders
from worker.inference.scores import LabelOrder, score, softmax
from worker.messages import Classification, ModelIdentity, Request, Taxonomy
from worker.rules.calibration import Calibration, Curve, Isotonic, KnownLabel, Platt, Temperature, margin

MODEL = ModelIdentity("some/model", "abc")
SCORES = st.floats(0, 1)


@st.composite
def isotonic(draw: st.DrawFn) -> Isotonic:
    margins = sorted(draw(st.sets(st.floats(-25, 25), min_size=1, max_size=8)))
    probabilities = sorted(draw(st.lists(SCORES, min_size=len(margins), max_size=len(margins))))
    return Isotonic(tuple(margins), tuple(probabilities))


CURVES = st.builds(Platt, st.floats(1e-3, 1000), st.floats(-1000, 1000)) | isotonic()


def known(label: str, curve: Curve | None = None, threshold: float | None = None) -> KnownLabel:
    return KnownLabel(label, (f"It is {label}.", f"Es ist {label}."), curve, threshold)


def apart(*labels: KnownLabel) -> Calibration:
    return Calibration("c", MODEL, labels)


def competing(*labels: str, temperature: float = 2.0, threshold: float | None = None) -> Calibration:
    return Calibration("c", MODEL, tuple(known(label, threshold=threshold) for label in labels), temperature)


def request(*labels: str, template: str = "It is {}.", **fields: Any) -> Request:
    return builders.classify("text", *labels, template=template, **fields)


def calibrated(made: Request, *scores: float) -> list[float | None] | None:
    return None if made.calibrator is None else made.calibrator(range(len(scores)), scores)


@given(curve=CURVES, one=SCORES, other=SCORES)
def test_curves_stay_in_bounds_and_never_fall(curve: Curve, one: float, other: float) -> None:
    low, high = curve(min(one, other)), curve(max(one, other))
    assert 0 <= low <= high <= 1


@given(st.floats(1e-6, 1 - 1e-6))
def test_a_line_of_slope_one_through_zero_changes_nothing(one: float) -> None:
    assert Platt(1.0, 0.0)(one) == pytest.approx(one)
    assert Isotonic((-21.0, margin(one), 21.0), (0.0, one, 1.0))(one) == pytest.approx(one)


@given(logits=st.lists(st.floats(-60, 60), min_size=2, max_size=9), temperature=st.floats(0.01, 100))
def test_a_temperature_of_scores_is_that_of_their_logits_and_keeps_their_order(
    logits: list[float], temperature: float
) -> None:
    scores = softmax(np.asarray(logits)).tolist()
    found = Temperature(temperature)(range(len(scores)), scores)
    assert found == pytest.approx(softmax(np.asarray(logits) / temperature).tolist(), abs=1e-9)
    values = [one for one in found if one is not None]
    assert math.fsum(values) == pytest.approx(1)
    ordered = sorted(range(len(scores)), key=scores.__getitem__)
    assert all(values[a] <= values[b] for a, b in pairwise(ordered))


def test_labels_that_it_does_not_know_stay_raw() -> None:
    made = apart(known("a", Platt(2.0, 0.0))).applied(request("b", "a", multi_label=True))
    unknown, found = calibrated(made, 0.9, 0.9) or []
    assert unknown is None
    assert found == pytest.approx(81 / 82)  # odds of 9 to 1, squared


@pytest.mark.parametrize(
    "asked",
    [
        request("a", "b"),  # they compete
        request("a", template="That is {}.", multi_label=True),  # another sentence
        request("c", "d", multi_label=True),
    ],
)
def test_curves_are_for_their_sentences_judged_apart(asked: Request) -> None:
    assert apart(known("a", Platt(2.0, 0.0)), known("b", Platt(2.0, 0.0))).applied(asked) is asked


def test_one_label_alone_is_judged_apart() -> None:
    (found,) = calibrated(apart(known("a", Platt(1.0, 0.0))).applied(request("a")), 0.25) or [None]
    assert found == pytest.approx(0.25)


def test_a_temperature_is_for_the_whole_set_of_labels_in_any_order_and_language() -> None:
    of = competing("a", "b", "c")
    assert of.applied(request("c", "a", "b")).calibrator == Temperature(2.0)
    assert of.applied(request("b", "a", "c", template="Es ist {}.")).calibrator == Temperature(2.0)
    for asked in (
        request("a", "b"),
        request("a", "b", "c", "d"),
        request("a", "b", "c", multi_label=True),
        request("a", "b", "b"),
        request("a", "b", "c", taxonomy=Taxonomy((-1, 0, 0), 1)),
    ):
        assert of.applied(asked) is asked


@pytest.mark.parametrize(
    ("fields", "thresholds"),
    [
        ({}, (0.8, None)),
        ({"threshold": 0.3}, ()),
        ({"thresholds": (0.5, None)}, (0.5, None)),
        ({"thresholds": (None, 0.4)}, (0.8, 0.4)),
    ],
)
def test_its_thresholds_hold_where_nobody_says_another(
    fields: dict[str, Any], thresholds: tuple[float | None, ...]
) -> None:
    of = apart(known("a", Platt(1.0, 0.0), threshold=0.8), known("b", Platt(1.0, 0.0)))
    assert of.applied(request("a", "b", multi_label=True, **fields)).thresholds == thresholds


def test_thresholds_are_compared_with_the_calibrated_score_and_the_order_is_that_of_the_raw_one() -> None:
    curve = Isotonic((-1.0, 1.0), (0.1, 0.6))
    of = apart(known("a", curve, threshold=0.5), known("b", Platt(1.0, 5.0)))
    made = of.applied(request("c", "b", "a", multi_label=True, threshold=None))
    # contradiction first, then neutral and entailment
    logits = np.asarray([[0, 0, 9], [9, 0, 0], [0, 0, 0.5]], dtype=np.float32)
    outcome = score(made, logits, 1, LabelOrder(2, 1, 0))
    assert isinstance(outcome, Classification)
    assert [(one.label, one.calibrated) for one in outcome.labels] == [
        ("c", None),
        ("b", pytest.approx(1 / (1 + math.exp(4)), rel=1e-3)),
    ]  # a's 0.475 is below its threshold, though its raw score of 0.62 is not
    kept = score(of.applied(request("a", multi_label=True, threshold=0.4)), logits[2:], 1, LabelOrder(2, 1, 0))
    assert isinstance(kept, Classification)
    assert kept.labels[0].calibrated == pytest.approx(0.475)
    assert kept.labels[0].score == pytest.approx(1 / (1 + math.exp(-0.5)))
