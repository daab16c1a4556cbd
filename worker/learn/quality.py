"""What a model is worth on labelled examples: figures of answers that are known to be right or wrong.

A *decision* is a label that was predicted or not. Where labels compete, the label with the highest score is predicted
if it passes its threshold; where each is judged on its own, all are that pass. An *event* is one probability that
the model gave and whether it came true: the score of the best label where labels compete, of each label otherwise.

Figures come from scikit-learn where it has them. It has no calibration error; that is defined here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from worker.learn import extra

BINS: Final = 15
RESAMPLES: Final = 1000
_SEED: Final = 0
_CURVE_POINTS: Final = 20
UNKNOWN_LANGUAGE: Final = "und"
"""What the language of an example is called that has none (RFC 5646, section 2.2.1)."""

Floats = npt.NDArray[np.float64]
Booleans = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said of one example, and what is right.

    Attributes:
        labels: the candidates that have a score; of a taxonomy those that were reached.
        scores: one for each of ``labels``, in [0, 1].
        predicted: the labels that were decided for.
        expected: the labels that hold.
        is_apart: whether each label was judged on its own.
        language: of the example, or None.
        thresholds: of each of ``labels``, or nothing: then 0 where labels compete, and 0.5 where each is on its own.
        raw: the scores before they were calibrated, or nothing where none is.
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    predicted: tuple[str, ...]
    expected: tuple[str, ...]
    is_apart: bool
    language: str | None = None
    thresholds: tuple[float, ...] = ()
    raw: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Quality:
    """Precision, recall and F1 in [0, 1], 0 where they are not defined, and how many examples they rest on.

    Of a label ``support`` counts the examples that expect it, ``predicted`` those that it was predicted for. Of a
    language ``support`` counts its examples, and the figures are means over its labels.
    """

    precision: float
    recall: float
    f1: float
    support: int
    predicted: int = 0


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """The expected calibration error with its 95 % interval, over ``events`` in ``bins`` of equal mass."""

    value: float
    low: float
    high: float
    events: int
    bins: int


@dataclass(frozen=True, slots=True)
class Bin:
    """A bin of the reliability diagram: mean score, share that came true, and how many events."""

    score: float
    share: float
    events: int


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """If only the surest share ``coverage`` of decisions is made: the share of those that is right."""

    coverage: float
    accuracy: float
    score: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many examples expect one label and had another predicted that they do not expect, or the same.

    ``None`` stands for no label at all.
    """

    expected: str | None
    predicted: str | None
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """All figures of a run. ``accuracy`` is the share of examples whose predicted labels are exactly the expected.

    Where scores are calibrated, ``raw_calibration_error`` is that of the scores before.
    """

    examples: int
    accuracy: float
    macro_f1: float
    abstained: int
    calibration_error: CalibrationError
    brier: float
    raw_calibration_error: CalibrationError | None = None
    labels: dict[str, Quality] = field(default_factory=dict)
    languages: dict[str, Quality] = field(default_factory=dict)
    reliability: tuple[Bin, ...] = ()
    coverage: tuple[CoveragePoint, ...] = ()
    confusion: tuple[Confusion, ...] = ()


def report(answers: Sequence[Answer], *, seed: int = _SEED) -> Report:
    """Every figure of some answers, of which there is at least one. ``seed`` draws the interval's samples.

    Raises:
        SettingsError: the extra ``learn`` is not installed.
    """
    truth, given, labels = _indicators(answers)
    scores, came_true = events(answers)
    by_language: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        by_language.setdefault(answer.language or UNKNOWN_LANGUAGE, []).append(i)
    qualities = _qualities(truth, given)
    return Report(
        examples=len(answers),
        accuracy=float(np.mean([set(answer.predicted) == set(answer.expected) for answer in answers])),
        macro_f1=_mean(qualities, len(answers)).f1,
        abstained=sum(not answer.predicted for answer in answers),
        calibration_error=calibration_error(scores, came_true, seed=seed),
        brier=brier(scores, came_true),
        raw_calibration_error=_raw_error(answers, seed),
        labels=dict(zip(labels, qualities, strict=True)),
        languages={
            language: _mean(_qualities(truth[rows], given[rows]), len(rows))
            for language, rows in sorted(by_language.items())
        },
        reliability=reliability(scores, came_true),
        coverage=coverage(answers),
        confusion=_confusion(answers),
    )


def _raw_error(answers: Sequence[Answer], seed: int) -> CalibrationError | None:
    if not any(answer.raw for answer in answers):
        return None
    raw = [replace(answer, scores=answer.raw or answer.scores) for answer in answers]
    return calibration_error(*events(raw), seed=seed)


def macro_f1(answers: Sequence[Answer]) -> float:
    """The mean of the labels' F1, over labels that are expected or predicted anywhere.

    Raises:
        SettingsError: the extra ``learn`` is not installed.
    """
    truth, given, _ = _indicators(answers)
    return _mean(_qualities(truth, given), len(answers)).f1


def events(answers: Sequence[Answer]) -> tuple[Floats, Booleans]:
    """The scores that are to be probabilities, and whether what they are of came true; both (events,)."""
    scores: list[float] = []
    came_true: list[bool] = []
    for answer in answers:
        expected = set(answer.expected)
        if answer.is_apart:
            scores += answer.scores
            came_true += [label in expected for label in answer.labels]
        elif answer.scores:
            best = max(range(len(answer.scores)), key=answer.scores.__getitem__)
            scores.append(answer.scores[best])
            came_true.append(answer.labels[best] in expected)
    return np.asarray(scores, dtype=np.float64), np.asarray(came_true, dtype=np.bool_)


def calibration_error(scores: Floats, came_true: Booleans, *, bins: int = BINS, seed: int = _SEED) -> CalibrationError:
    """The expected calibration error: the mean over bins of |mean score - share that came true|.

    Bins have equal mass (Nixon et al., "Measuring Calibration in Deep Learning", 2019): of equal width, most events of
    a sure model would share one bin. The interval is the basic bootstrap's, which mirrors the resampled values at the
    estimate: chance makes an error larger, in the estimate as in the samples, and this takes the bias off again.

    Args:
        scores: (events,).
        came_true: (events,).
        bins: How many; there are no more than events.
        seed: Draws the samples.
    """
    if not len(scores):
        return CalibrationError(0.0, 0.0, 0.0, 0, 0)
    order = np.argsort(scores, kind="stable")
    ordered, hits = scores[order], came_true[order].astype(np.float64)
    count = min(bins, len(ordered))
    value = _error(ordered, hits, count)
    rng = np.random.default_rng(seed)
    everyone = np.arange(len(ordered))
    drawn = []
    for _ in range(RESAMPLES):
        # As often as each was drawn, in order: a sample that need not be sorted.
        times = np.bincount(rng.integers(len(ordered), size=len(ordered)), minlength=len(ordered))
        sample = np.repeat(everyone, times)
        drawn.append(_error(ordered[sample], hits[sample], count))
    few, many = np.quantile(drawn, [0.025, 0.975])
    return CalibrationError(
        value, float(np.clip(2 * value - many, 0, 1)), float(np.clip(2 * value - few, 0, 1)), len(ordered), count
    )


def _error(scores: Floats, hits: Floats, bins: int) -> float:
    """Of events in the order of their scores."""
    edges = _edges(len(scores), bins)
    return float(np.abs(np.add.reduceat(scores - hits, edges)).sum() / len(scores))


def _edges(events_: int, bins: int) -> npt.NDArray[np.intp]:
    """Where each bin begins among so many ordered events."""
    return np.arange(bins, dtype=np.intp) * events_ // bins


def reliability(scores: Floats, came_true: Booleans, *, bins: int = BINS) -> tuple[Bin, ...]:
    """The bins of `calibration_error`, by rising score."""
    order = np.argsort(scores, kind="stable")
    edges = _edges(len(order), min(bins, len(order)))[1:]
    if not len(order):
        return ()
    parts = zip(np.split(scores[order], edges), np.split(came_true[order], edges), strict=True)
    return tuple(Bin(float(part.mean()), float(hits.mean()), len(part)) for part, hits in parts)


def brier(scores: Floats, came_true: Booleans) -> float:
    """The mean squared distance of scores from what came true, over the same events (Brier, 1950)."""
    extra.require("scikit-learn")
    from sklearn.metrics import brier_score_loss  # noqa: PLC0415 (an extra)

    return float(brier_score_loss(came_true, scores, pos_label=True)) if len(scores) else 0.0


def coverage(answers: Sequence[Answer], points: int = _CURVE_POINTS) -> tuple[CoveragePoint, ...]:
    """Coverage against accuracy where the least sure decisions are left out.

    How sure a decision is: where labels compete, the best score; otherwise how far a score lies from its threshold, as
    a share of how far it could. Decisions that are equally sure are made together or not at all.
    """
    sure: list[float] = []
    right: list[bool] = []
    for answer in answers:
        expected = set(answer.expected)
        if not answer.is_apart:
            if answer.scores:
                best = max(range(len(answer.scores)), key=answer.scores.__getitem__)
                sure.append(answer.scores[best])
                right.append(answer.labels[best] in expected)
            continue
        thresholds = answer.thresholds or (0.5,) * len(answer.scores)
        for label, score, threshold in zip(answer.labels, answer.scores, thresholds, strict=True):
            span = 1 - threshold if score >= threshold else threshold
            sure.append(abs(score - threshold) / span if span > 0 else 1.0)
            right.append((score >= threshold) == (label in expected))
    if not sure:
        return ()
    order = np.argsort(-np.asarray(sure), kind="stable")
    ordered = np.asarray(sure)[order]
    accuracy = np.cumsum(np.asarray(right)[order]) / np.arange(1, len(order) + 1)
    last_of_equals = np.append(ordered[1:] != ordered[:-1], True)
    ends = np.flatnonzero(last_of_equals)
    wanted = np.unique(np.searchsorted(ends, np.ceil(np.arange(1, points + 1) * len(order) / points) - 1))
    return tuple(
        CoveragePoint(float(end + 1) / len(order), float(accuracy[end]), float(ordered[end])) for end in ends[wanted]
    )


def _indicators(answers: Sequence[Answer]) -> tuple[Any, Any, list[str]]:
    """Two sparse matrices (examples, labels + 1), of what is expected and what was predicted, and the labels.

    The last column is nobody's: scikit-learn takes a matrix of one column for something else.
    """
    extra.require("scikit-learn")
    from scipy.sparse import csr_matrix  # noqa: PLC0415 (an extra brings it)

    index: dict[str, int] = {}
    for answer in answers:
        for label in (*answer.labels, *answer.expected):
            index.setdefault(label, len(index))

    def matrix(rows: Sequence[Sequence[str]]) -> Any:
        starts = np.cumsum([0, *map(len, rows)])
        columns = [index[label] for row in rows for label in row]
        return csr_matrix((np.ones(len(columns), dtype=np.int8), columns, starts), shape=(len(rows), len(index) + 1))

    truth, given = matrix([answer.expected for answer in answers]), matrix([answer.predicted for answer in answers])
    return truth, given, list(index)


def _qualities(truth: Any, given: Any) -> list[Quality]:
    """One for each label, of two matrices of `_indicators`."""
    from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415 (an extra)

    found = precision_recall_fscore_support(truth, given, average=None, zero_division=0.0)
    predicted = np.asarray(given.sum(axis=0)).ravel()
    return [
        Quality(float(precision), float(recall), float(f1), int(support), int(count))
        for precision, recall, f1, support, count in zip(*found, predicted, strict=True)
    ][:-1]


def _mean(qualities: Sequence[Quality], examples: int) -> Quality:
    """The mean over labels that are expected or predicted anywhere."""
    counted = [one for one in qualities if one.support or one.predicted]
    if not counted:
        return Quality(0.0, 0.0, 0.0, examples)
    precision, recall, f1 = np.mean([(one.precision, one.recall, one.f1) for one in counted], axis=0).tolist()
    return Quality(precision, recall, f1, examples)


def _confusion(answers: Sequence[Answer]) -> tuple[Confusion, ...]:
    """The pairs that occur, the most frequent first."""
    counts: dict[tuple[str | None, str | None], int] = {}
    for answer in answers:
        for expected in answer.expected or (None,):
            for predicted in answer.predicted or (None,):
                if predicted == expected or predicted not in answer.expected:
                    counts[expected, predicted] = counts.get((expected, predicted), 0) + 1
    ordered = sorted(counts.items(), key=lambda entry: -entry[1])
    return tuple(Confusion(*pair, count) for pair, count in ordered)
