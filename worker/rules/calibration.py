"""What makes probabilities of scores: fitted once, elsewhere, and applied here. Pure.

A calibration knows *hypotheses*, finished sentences: model and sentence together are what a score depends on, whatever
template or label set the sentence came from. Another wording is another sentence, which it does not know.

- Where labels compete, one temperature serves all of them (Guo et al., "On Calibration of Modern Neural Networks",
  2017). It is known of one set of labels: a request that asks for more, or for fewer, has other scores, and keeps them.
- Where each label is judged on its own, each has its own curve, over the *margin*: the logit of its score. That is
  a straight line (Platt, "Probabilistic Outputs for Support Vector Machines", 1999) or what isotonic regression found
  (Zadrozny and Elkan, 2002). Both rise, so no two texts change places for a label.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from worker.messages import ModelIdentity, Request, Task

# Scores nearer to 0 or 1 than this are as sure as can be: margins lie within 21 of zero.
_LEAST_SCORE: Final = 1e-9


def margin(score: float) -> float:
    """The logit of a score in [0, 1], bounded."""
    bounded = min(max(score, _LEAST_SCORE), 1 - _LEAST_SCORE)
    return math.log(bounded) - math.log1p(-bounded)


@dataclass(frozen=True, slots=True)
class Platt:
    """The logistic function of ``slope * margin + intercept``; ``slope`` is more than 0."""

    slope: float
    intercept: float

    def __call__(self, score: float) -> float:
        """The probability that a score stands for."""
        raised = self.slope * margin(score) + self.intercept
        if raised >= 0:
            return 1 / (1 + math.exp(-min(raised, 700.0)))
        power = math.exp(max(raised, -700.0))
        return power / (1 + power)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Straight between points, level outside. ``margins`` rise, ``probabilities`` never fall; at least one of each."""

    margins: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, score: float) -> float:
        """The probability that a score stands for."""
        at = margin(score)
        after = bisect_right(self.margins, at)
        if after == 0:
            return self.probabilities[0]
        if after == len(self.margins):
            return self.probabilities[-1]
        left, right = self.margins[after - 1], self.margins[after]
        low, high = self.probabilities[after - 1], self.probabilities[after]
        return low + (high - low) * ((at - left) / (right - left))


Curve = Platt | Isotonic


@dataclass(frozen=True, slots=True)
class KnownLabel:
    """A label that a calibration knows: the sentences it was fitted on, its curve, and the threshold that was wanted.

    ``curve`` is None where labels compete, for the temperature serves them all.
    """

    label: str
    hypotheses: tuple[str, ...]
    curve: Curve | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration of one model.

    Attributes:
        name: what label sets call it.
        model: the checkpoint whose scores it was fitted on.
        labels: those it knows; no sentence belongs to two of them.
        temperature: more than 0 where labels compete; None where each label is judged on its own.
    """

    name: str
    model: ModelIdentity
    labels: tuple[KnownLabel, ...]
    temperature: float | None = None
    _index: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {sentence: i for i, known in enumerate(self.labels) for sentence in known.hypotheses}
        object.__setattr__(self, "_index", index)

    def applied(self, request: Request) -> Request:
        """A CLASSIFY request whose scores this calibrates, with the thresholds that nobody else has said.

        The thresholds here are the last of all: a request's own goes before, and so does a label set's, for one label
        or for all.
        """
        found = [self._index.get(sentence) for sentence in request.hypotheses]
        if request.is_apart:
            if self.temperature is not None:
                return request
            curves = tuple([None if i is None else self.labels[i].curve for i in found])
            if not any(curves):
                return request
            made: Curves | Temperature = Curves(curves)
        else:
            is_same = len(found) == len(self.labels) == len({i for i in found if i is not None})
            if self.temperature is None or not is_same or request.taxonomy is not None:
                return request
            made = Temperature(self.temperature)
        thresholds = request.thresholds
        if request.threshold is None:
            own = request.thresholds or (None,) * len(found)
            wanted = [None if i is None else self.labels[i].threshold for i in found]
            merged = tuple([own[i] if own[i] is not None else wanted[i] for i in range(len(found))])
            thresholds = merged if any(threshold is not None for threshold in merged) else ()
        return replace(request, calibrator=made, thresholds=thresholds)


@dataclass(frozen=True, slots=True)
class Curves:
    """Calibrates labels each by itself; those without a curve not at all."""

    curves: tuple[Curve | None, ...]

    def __call__(self, labels: Sequence[int], scores: Sequence[float]) -> list[float | None]:
        """As `worker.messages.Calibrator`."""
        curves = self.curves
        return [None if (curve := curves[i]) is None else curve(score) for i, score in zip(labels, scores, strict=True)]


@dataclass(frozen=True, slots=True)
class Temperature:
    """Calibrates labels that compete: the softmax of their logits over ``value``.

    It needs no logits: softmax(logits / T) is softmax(log(scores) / T), since scores are a softmax already.
    """

    value: float

    def __call__(self, labels: Sequence[int], scores: Sequence[float]) -> list[float | None]:  # noqa: ARG002 (all)
        """As `worker.messages.Calibrator`."""
        logs = [math.log(max(score, 5e-324)) / self.value for score in scores]
        highest = max(logs)
        powers = [math.exp(one - highest) for one in logs]
        whole = math.fsum(powers)
        return [power / whole for power in powers]


@dataclass(frozen=True, slots=True)
class Calibrations:
    """Those that the operator offers for one model, by their names.

    ``otherwise`` is for requests whose label set names none, or that have no label set.
    """

    by_name: Mapping[str, Calibration] = field(default_factory=dict)
    otherwise: Calibration | None = None

    def find(self, name: str | None) -> Calibration | None:
        """The calibration that a label set names; None where there is none of that name."""
        return self.otherwise if name is None else self.by_name.get(name)

    def applied(self, request: Request) -> Request:
        """A request with the calibration that its label set names, else with that for all, where that knows it."""
        calibration = self.find(request.calibration)
        return request if calibration is None or request.task is not Task.CLASSIFY else calibration.applied(request)


NONE: Final = Calibrations()
"""What is offered where ``model.calibration`` is not set."""
