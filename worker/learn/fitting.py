"""Calibrations are fitted here, on folds that are held out in turn; `worker.rules.calibration` applies them.

Whatever is chosen or told of a calibration (which curve, what threshold, how large the error is) rests on scores that
were calibrated by the other folds: a curve is not judged on what it was drawn from. What is written is then fitted on
all examples. A text that occurs several times lies in one fold.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from worker.errors import SettingsError
from worker.learn import extra
from worker.learn.quality import Booleans, Floats
from worker.rules.calibration import Curve, Isotonic, Platt, Temperature, margin

FOLDS: Final = 5
FEWEST: Final = 10
"""Of examples that expect a label, and of those that do not: below, the label is left uncalibrated."""
FEWEST_FOR_ISOTONIC: Final = 100
_POINTS: Final = 32
_FEWEST_PREDICTED: Final = 20  # a share of fewer decisions is no precision that one could rely on
_ROUNDED: Final = 6  # digits behind the point, of what a file holds

Integers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a threshold is chosen for: the least ``precision`` or ``recall``, or the best F1, where ``value`` is 0."""

    of: Literal["precision", "recall", "f1"]
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Reached:
    """A threshold, and what it reached on held-out folds. ``is_met``: as much as was wanted."""

    threshold: float
    precision: float
    recall: float
    is_met: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a label that is judged on its own.

    Attributes:
        scores: (examples,), raw.
        holds: (examples,), whether it is expected.
        groups: (examples,), a number for each text.
    """

    scores: Floats
    holds: Booleans
    groups: Integers


@dataclass(frozen=True, slots=True)
class FittedCurve:
    """A label's curve, and its scores calibrated on held-out folds, (examples,)."""

    curve: Curve
    held_out: Floats


@dataclass(frozen=True, slots=True)
class Competing:
    """What is known of labels that compete.

    Attributes:
        scores: (examples, labels), raw; each row adds up to 1.
        right: (examples,), the index of the label that holds.
        groups: (examples,), a number for each text.
    """

    scores: Floats
    right: Integers
    groups: Integers


@dataclass(frozen=True, slots=True)
class FittedTemperature:
    """A temperature, and the scores calibrated on held-out folds, (examples, labels)."""

    temperature: float
    held_out: Floats


def fit_curve(seen: Seen, *, folds: int = FOLDS, seed: int = 0) -> FittedCurve | str:
    """The curve of a label with the least log loss on held-out folds; or why there is none.

    Isotonic regression needs many examples on both sides; with fewer there is Platt's line alone. Scores that neither
    makes better stay as they are: by a line that changes nothing.

    Raises:
        SettingsError: the extra ``learn`` is not installed.
    """
    extra.require("scikit-learn")
    positives, negatives = int(seen.holds.sum()), int((~seen.holds).sum())
    if min(positives, negatives) < FEWEST:
        return f"{positives} of {len(seen.holds)} examples expect it, and it takes {FEWEST} that do and {FEWEST} not"
    tried: list[Callable[[Floats, Booleans], Curve | str]] = [_platt]
    if min(positives, negatives) >= FEWEST_FOR_ISOTONIC:
        tried.append(_isotonic)
    split = _folds(seen.holds, seen.groups, folds, seed)
    best = FittedCurve(Platt(1.0, 0.0), seen.scores)
    least = _log_loss(seen.scores, seen.holds)
    for fit in tried:
        curve = fit(seen.scores, seen.holds)
        if isinstance(curve, str):
            return curve
        held_out = np.empty_like(seen.scores)
        for learnt, tested in split:
            part = fit(seen.scores[learnt], seen.holds[learnt])
            if isinstance(part, str):
                return part
            held_out[tested] = _through(part, seen.scores[tested])
        loss = _log_loss(held_out, seen.holds)
        if loss < least:
            least, best = loss, FittedCurve(curve, held_out)
    return best


def fit_temperature(seen: Competing, *, folds: int = FOLDS, seed: int = 0) -> FittedTemperature:
    """The temperature with the least log loss; 1, which changes nothing, where that has no more on held-out folds.

    Raises:
        SettingsError: the extra ``learn`` is not installed.
    """
    extra.require("scikit-learn")
    held_out = np.empty_like(seen.scores)
    for learnt, tested in _folds(seen.right, seen.groups, folds, seed):
        value = _temperature(seen.scores[learnt], seen.right[learnt])
        held_out[tested] = _warmed(seen.scores[tested], value)
    rows = np.arange(len(seen.right))
    raw, calibrated = (np.maximum(scores[rows, seen.right], 1e-300) for scores in (seen.scores, held_out))
    if np.log(calibrated).sum() <= np.log(raw).sum():
        return FittedTemperature(1.0, seen.scores)
    return FittedTemperature(_temperature(seen.scores, seen.right), held_out)


def within_label(scores: Floats, holds: Booleans) -> Floats:
    """How probable it is that a label that came first is right, (decisions,), by its own decisions alone.

    One temperature serves all labels that compete: on the whole it is right, of a single label it may say too little or
    too much. Platt's line tells how sure this label is; where scores say nothing about it, its share of right ones.

    Args:
        scores: (decisions,), of this label, where it came first.
        holds: (decisions,), whether it is right.
    """
    curve = _platt(scores, holds)
    if isinstance(curve, str):
        return np.full(len(scores), (float(holds.sum()) + 1) / (len(holds) + 2))
    return _through(curve, scores)


def threshold_for(
    wanted: Wanted, scores: Floats, holds: Booleans, *, positives: int, probable: Floats | None = None
) -> Reached | None:
    """The threshold for what is wanted: the lowest for a precision, the highest for a recall.

    For a precision two estimates have to agree: the share that was counted, and what the probabilities expect. The
    lowest threshold of one alone is the one that chance favours most, and disappoints on other texts.

    Args:
        wanted: What it is chosen for.
        scores: (decisions,), calibrated on held-out folds.
        holds: (decisions,), whether the label is right.
        positives: how many examples expect the label, those without a decision too.
        probable: (decisions,), how probable it is that each is right; None: as the scores say.

    Returns:
        None where too few examples expect the label, or it is predicted too rarely, to tell.
    """
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(holds[order])
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # equal scores pass together
    ends = ends[ends + 1 >= min(_FEWEST_PREDICTED, positives)]
    if not len(ends) or positives < FEWEST:
        return None
    precision, recall = hits[ends] / (ends + 1), hits[ends] / positives
    is_met = True
    match wanted.of:
        case "precision":
            expected = np.cumsum((scores if probable is None else probable)[order])[ends] / (ends + 1)
            enough = np.flatnonzero(np.minimum(precision, expected) >= wanted.value)
            is_met = len(enough) > 0
            at = int(enough[-1]) if is_met else int(precision.argmax())
        case "recall":
            enough = np.flatnonzero(recall >= wanted.value)
            is_met = len(enough) > 0
            at = int(enough[0]) if is_met else len(ends) - 1
        case "f1":
            at = int((2 * precision * recall / np.maximum(precision + recall, 1e-12)).argmax())
    if ends[at] + 1 == len(ordered):  # nothing has to be left out
        threshold = 0.0
    else:  # between this score and the next below it, so that the last digits of a score decide nothing
        threshold = _between(float(ordered[ends[at] + 1]), float(ordered[ends[at]]))
    return Reached(threshold, float(precision[at]), float(recall[at]), is_met)


def _between(low: float, high: float) -> float:
    middle = round((low + high) / 2, _ROUNDED)
    return middle if low < middle <= high else math.floor(high * 10**_ROUNDED) / 10**_ROUNDED


def _folds(strata: npt.NDArray[np.generic], groups: Integers, folds: int, seed: int) -> list[tuple[Integers, Integers]]:
    """Which examples are learnt from, and which are held out, in turn. Raises SettingsError where all have one text."""
    from sklearn.model_selection import StratifiedGroupKFold  # noqa: PLC0415 (an extra)

    _, counts = np.unique(strata, return_counts=True)
    if (texts := len(np.unique(groups))) < 2:
        raise SettingsError("all examples have the same text, so none can be held out; take others")
    count = max(2, min(folds, texts, int(counts.max())))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a label with fewer examples than folds: it is in some of them
        split = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(strata, strata, groups))
    return [(learnt.astype(np.intp), tested.astype(np.intp)) for learnt, tested in split]


def _margins(scores: Floats) -> Floats:
    return np.fromiter(map(margin, scores.tolist()), dtype=np.float64, count=len(scores))


def _through(curve: Curve, scores: Floats) -> Floats:
    return np.fromiter(map(curve, scores.tolist()), dtype=np.float64, count=len(scores))


def _platt(scores: Floats, holds: Booleans) -> Platt | str:
    """Platt's fit: what is seen once is not taken for certain (his targets), so that no slope is infinite."""
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 (an extra)

    positives, negatives = int(holds.sum()), int((~holds).sum())
    if not positives or not negatives:
        return "a fold has examples of one kind alone: it takes more that differ in their text"
    target = np.where(holds, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    points = _margins(scores)[:, None]
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(
        np.concatenate([points, points]),
        np.repeat([True, False], len(points)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, intercept = round(float(fitted.coef_[0, 0]), _ROUNDED), round(float(fitted.intercept_[0]), _ROUNDED)
    if not 0 < slope <= 1000 or abs(intercept) > 1000:
        return "its scores are no higher where it is expected than where it is not"
    return Platt(slope, intercept)


def _isotonic(scores: Floats, holds: Booleans) -> Isotonic | str:
    """Isotonic regression over bins of equal mass: as many points as a person may read, and none of one example."""
    from sklearn.isotonic import IsotonicRegression  # noqa: PLC0415 (an extra)

    order = np.argsort(scores, kind="stable")
    points, hits = _margins(scores[order]), holds[order].astype(np.float64)
    count = max(1, min(_POINTS, len(points) // FEWEST))
    middles: list[float] = []
    shares: list[float] = []
    sizes: list[int] = []
    for part, own in zip(np.array_split(points, count), np.array_split(hits, count), strict=True):
        middle = round(float(part.mean()), _ROUNDED)
        if middles and middle <= middles[-1]:  # equal scores over several bins
            shares[-1] = (shares[-1] * sizes[-1] + float(own.sum())) / (sizes[-1] + len(own))
            sizes[-1] += len(own)
            continue
        middles.append(middle)
        shares.append(float(own.mean()))
        sizes.append(len(own))
    least = 1 / (len(points) + 2)  # as Laplace: never seen is not impossible
    fitted = IsotonicRegression(y_min=least, y_max=1 - least).fit(middles, shares, sample_weight=sizes)
    probabilities = tuple(round(float(one), _ROUNDED) for one in fitted.predict(middles))
    return Isotonic(tuple(middles), probabilities)


def _temperature(scores: Floats, right: Integers) -> float:
    """The temperature of least log loss, with targets as Platt's: of labels that are always right none is infinite."""
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 (an extra brings it)

    doubt = 1 / (len(right) + 2)
    target = np.full(scores.shape, doubt / max(1, scores.shape[1] - 1))
    target[np.arange(len(right)), right] = 1 - doubt
    logs = np.log(np.maximum(scores, 5e-324))

    def loss(log_value: float) -> float:
        raised = logs / np.exp(log_value)
        raised -= raised.max(axis=1, keepdims=True)
        return float((target * (np.log(np.exp(raised).sum(axis=1, keepdims=True)) - raised)).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=(np.log(0.02), np.log(50.0)), method="bounded")
    return round(float(np.exp(found.x)), _ROUNDED)


def _warmed(scores: Floats, temperature: float) -> Floats:
    apply: Callable[..., list[float | None]] = Temperature(temperature)
    labels = range(scores.shape[1])
    return np.asarray([apply(labels, row) for row in scores.tolist()], dtype=np.float64)


def _log_loss(scores: Floats, holds: Booleans) -> float:
    from sklearn.metrics import log_loss  # noqa: PLC0415 (an extra)

    return float(log_loss(holds, np.clip(scores, 1e-12, 1 - 1e-12), labels=[False, True]))
