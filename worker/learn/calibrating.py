"""Scored examples become a calibration file: whose scores, whose sentences, and what was reached on held-out folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from worker.errors import SettingsError
from worker.learn import fitting, quality
from worker.learn.calibration_file import FORMAT, MAX_LABELS, CalibrationFile, IsotonicCurve, Label, Model, PlattCurve
from worker.learn.fitting import Competing, FittedCurve, Reached, Seen, Wanted
from worker.learn.quality import Booleans, CalibrationError, Floats
from worker.learn.scoring import Asked, Scored, flat
from worker.messages import ModelIdentity, Taxonomy
from worker.rules.calibration import Curve, Isotonic

FEWEST_COMPETING: Final = 50
"""Examples, for one temperature."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a calibration is to be called, and what its thresholds are for.

    Attributes:
        name: its name.
        wanted: of each label that is not in ``of_label``; None: no thresholds.
        of_label: of single labels.
        folds: how many are held out in turn.
        seed: draws them.
        hypothesis_template: of examples that have none of their own, for the file's readers.
    """

    name: str
    wanted: Wanted | None = None
    of_label: Mapping[str, Wanted] = field(default_factory=dict)
    folds: int = fitting.FOLDS
    seed: int = 0
    hypothesis_template: str | None = None

    def wanted_of(self, label: str) -> Wanted | None:
        """What a label's threshold is for."""
        return self.of_label.get(label, self.wanted)


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration and how it did on held-out folds.

    Attributes:
        file: what is written.
        before: the calibration error of the raw scores.
        after: that of the scores calibrated by the other folds.
        left: labels that are not calibrated, and why.
        reached: what the thresholds reached.
        silent: labels of which a threshold was wanted that nobody can tell: they are predicted too rarely.
    """

    file: CalibrationFile
    before: CalibrationError
    after: CalibrationError
    left: Mapping[str, str]
    reached: Mapping[str, Reached]
    silent: tuple[str, ...] = ()


def to_fit(asked: Sequence[Asked], plan: Plan) -> list[Asked]:
    """The examples as they are scored for a fit: raw, and a tree's labels each on its own, with what they imply.

    Whatever keeps them from being fitted is told here, before a model is loaded.

    Raises:
        SettingsError: the labels of one tree compete, or have a name twice; some labels compete and others not; those
            that compete are too few examples', or not the same in all; two have one hypothesis, or one is wanted
            that nobody has.
    """
    kinds = {one.request.is_apart for one in asked}
    if len(kinds) > 1:
        one = next(one for one in asked if one.request.is_apart != asked[0].request.is_apart)
        raise SettingsError(
            f"{one.example.place}: labels compete in some examples, and are judged each on its own in others; "
            "calibrate them apart (--multi-label makes all of them the second kind)"
        )
    labels = {label for one in asked for label in one.request.labels}
    if len(labels) > MAX_LABELS:
        raise SettingsError(f"there are {len(labels):,} labels, and a calibration has {MAX_LABELS:,} at most")
    if strange := [label for label in plan.of_label if label not in labels]:
        raise SettingsError(f"no example has the label {strange[0]!r}, of which a threshold is asked")
    found = [_to_fit(one) for one in asked]
    if not asked[0].request.is_apart:
        _require_one_set(asked)
    _sentences(asked)
    return found


def _require_one_set(asked: Sequence[Asked]) -> None:
    """Raise SettingsError unless labels that compete are the same in all examples, and these enough."""
    first = asked[0]
    for one in asked:
        if set(one.request.labels) != set(first.request.labels):
            raise SettingsError(
                f"{one.example.place}: its candidates are others than those of {first.example.place}, and a "
                "temperature is for one set of labels that compete; calibrate each set by itself"
            )
    if len(asked) < FEWEST_COMPETING:
        raise SettingsError(f"there are {len(asked)} examples, and a temperature takes {FEWEST_COMPETING} at least")


def _to_fit(one: Asked) -> Asked:
    request, taxonomy = one.request, one.request.taxonomy
    if len(set(request.labels)) < len(request.labels):
        raise SettingsError(f"{one.example.place}: a label stands twice in its set; results could not be told apart")
    if taxonomy is None:
        return replace(one, request=flat(request))
    if not request.is_apart:
        raise SettingsError(
            f"{one.example.place}: labels that compete in a tree are not calibrated: their scores are products of "
            "others; calibrate a set with multi_label, or one without children"
        )
    expected = _with_parents(one.example.expected, request.labels, taxonomy)
    return Asked(replace(one.example, expected=expected), flat(request))


def _with_parents(expected: Sequence[str], labels: Sequence[str], taxonomy: Taxonomy) -> tuple[str, ...]:
    """A label that holds holds for those above it too."""
    found = {labels.index(label) for label in expected}
    for node in sorted(found):
        parent = taxonomy.parents[node]
        while parent >= 0:
            found.add(parent)
            parent = taxonomy.parents[parent]
    return tuple(labels[node] for node in sorted(found))


def fit(scored: Sequence[Scored], model: ModelIdentity, plan: Plan) -> Fit:
    """The calibration of scored examples that `to_fit` made.

    Raises:
        SettingsError: there are none, or no label can be calibrated.
    """
    if not scored:
        raise SettingsError("no example was scored, so there is nothing to fit")
    return (_fit_apart if scored[0].request.is_apart else _fit_competing)(scored, model, plan)


def _fit_apart(scored: Sequence[Scored], model: ModelIdentity, plan: Plan) -> Fit:
    groups = _groups(scored)
    points: dict[str, list[tuple[float, bool, int]]] = {}
    for one, group in zip(scored, groups, strict=True):
        expected = set(one.example.expected)
        for label in one.labels:
            points.setdefault(label.label, []).append((label.score, label.label in expected, group))
    sentences = _sentences(scored)
    labels, left, reached = [], {}, {}
    raw: list[Floats] = []
    held_out: list[Floats] = []
    holds: list[Booleans] = []
    for name, rows in points.items():
        scores, truth, own = (np.asarray(column) for column in zip(*rows, strict=True))
        fitted = fitting.fit_curve(Seen(scores, truth, own), folds=plan.folds, seed=plan.seed)
        if isinstance(fitted, str):
            left[name] = fitted
            continue
        found = _reached(plan.wanted_of(name), fitted, truth)
        if found is not None:
            reached[name] = found
        curve = _written(fitted.curve)
        labels.append(_label(name, sentences[name], curve, found, int(truth.sum()), len(truth)))
        raw, held_out, holds = [*raw, scores], [*held_out, fitted.held_out], [*holds, truth]
    if not labels:
        raise SettingsError("no label can be calibrated: " + "; ".join(f"{name}: {why}" for name, why in left.items()))
    before, after = np.concatenate(raw), np.concatenate(held_out)
    return _fit_of(scored, model, plan, labels, None, (before, after, np.concatenate(holds)), left, reached)


def _reached(wanted: Wanted | None, fitted: FittedCurve, truth: Booleans) -> Reached | None:
    if wanted is None:
        return None
    return fitting.threshold_for(wanted, fitted.held_out, truth, positives=int(truth.sum()))


def _fit_competing(scored: Sequence[Scored], model: ModelIdentity, plan: Plan) -> Fit:
    names = scored[0].request.labels
    index = {name: i for i, name in enumerate(names)}
    scores = np.empty((len(scored), len(names)))
    for row, one in enumerate(scored):
        for label in one.labels:
            scores[row, index[label.label]] = label.score
    right = np.asarray([index[one.example.expected[0]] for one in scored], dtype=np.intp)
    groups = np.asarray(_groups(scored), dtype=np.intp)
    fitted = fitting.fit_temperature(Competing(scores, right, groups), folds=plan.folds, seed=plan.seed)
    best = scores.argmax(axis=1)
    rows = np.arange(len(best))
    came_true, probable = best == right, fitted.held_out[rows, best]
    sentences, labels, reached = _sentences(scored), [], {}
    for i, name in enumerate(names):
        wanted, chosen, positives = plan.wanted_of(name), best == i, int((right == i).sum())
        found = None
        if wanted is not None:
            own, true = probable[chosen], came_true[chosen]
            sure = fitting.within_label(own, true)
            found = fitting.threshold_for(wanted, own, true, positives=positives, probable=sure)
        if found is not None:
            reached[name] = found
        labels.append(_label(name, sentences[name], None, found, positives, len(scored)))
    events = (scores[rows, best], probable, came_true)
    return _fit_of(scored, model, plan, labels, fitted.temperature, events, {}, reached)


def _fit_of(
    scored: Sequence[Scored],
    model: ModelIdentity,
    plan: Plan,
    labels: Sequence[Label],
    temperature: float | None,
    events: tuple[Floats, Floats, Booleans],
    left: Mapping[str, str],
    reached: Mapping[str, Reached],
) -> Fit:
    raw, held_out, came_true = events
    before = quality.calibration_error(raw, came_true, seed=plan.seed)
    after = quality.calibration_error(held_out, came_true, seed=plan.seed)
    sets = {one.request.label_set.name for one in scored if one.request.label_set is not None}
    templates = {one.example.hypothesis_template or plan.hypothesis_template for one in scored} if not sets else set()
    fitted: dict[str, Any] = {
        "examples": len(scored),
        "folds": plan.folds,
        "seed": plan.seed,
        "calibration_error": {"before": round(before.value, 4), "held_out": round(after.value, 4)},
        "brier": {
            "before": round(quality.brier(raw, came_true), 4),
            "held_out": round(quality.brier(held_out, came_true), 4),
        },
    }
    file = CalibrationFile(
        format=FORMAT,
        name=plan.name,
        model=Model(name=model.name, revision=model.revision),
        multi_label=temperature is None,
        hypothesis_template=templates.pop() if len(templates) == 1 else None,
        label_set=sets.pop() if len(sets) == 1 else None,
        temperature=temperature,
        labels=tuple(labels),
        fitted=fitted,
    )
    silent = [one.label for one in labels if one.threshold is None and plan.wanted_of(one.label) is not None]
    return Fit(file, before, after, left, reached, tuple(silent))


def _label(
    name: str,
    sentences: tuple[str, ...],
    curve: PlattCurve | IsotonicCurve | None,
    found: Reached | None,
    positives: int,
    examples: int,
) -> Label:
    return Label(
        label=name,
        hypotheses=sentences,
        curve=curve,
        threshold=None if found is None else found.threshold,
        precision=None if found is None else round(found.precision, 4),
        recall=None if found is None else round(found.recall, 4),
        positives=positives,
        examples=examples,
    )


def _written(curve: Curve) -> PlattCurve | IsotonicCurve:
    if isinstance(curve, Isotonic):
        return IsotonicCurve(margins=curve.margins, probabilities=curve.probabilities)
    return PlattCurve(slope=curve.slope, intercept=curve.intercept)


def _groups(scored: Sequence[Scored]) -> list[int]:
    """A number for each text: equal texts lie in one fold."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(one.example.text, len(numbers)) for one in scored]


def _sentences(scored: Sequence[Scored | Asked]) -> dict[str, tuple[str, ...]]:
    """The hypotheses of each label. Raises SettingsError where two labels share one."""
    found: dict[str, dict[str, None]] = {}
    owner: dict[str, str] = {}
    for one in scored:
        for label, sentence in zip(one.request.labels, one.request.hypotheses, strict=True):
            if owner.setdefault(sentence, label) != label:
                raise SettingsError(
                    f"{one.example.place}: the labels {owner[sentence]!r} and {label!r} have one hypothesis "
                    f"({sentence!r}), so their scores are the same; word them apart"
                )
            found.setdefault(label, {})[sentence] = None
    return {label: tuple(sentences) for label, sentences in found.items()}
