"""How far two models agree on the same requests. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from worker.messages import Classification, Entailment, Judgement, Outcome


class Comparison(NamedTuple):
    """Two outcomes of one request.

    ``agrees``: the same label comes first, or none does; in multi-label the same labels pass; of each hypothesis the
    same class is the likeliest. ``drift`` is the largest difference between two scores of one label, or between two
    probabilities of entailment of one hypothesis; 0 where no label is in both.
    """

    agrees: bool
    drift: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of several requests: how many could be compared, on how many the models agree, and how far scores drift."""

    compared: int
    agreed: int
    mean_drift: float
    largest_drift: float

    @property
    def share(self) -> float | None:
        """Of those compared, from 0 to 1; None where there are none."""
        return self.agreed / self.compared if self.compared else None


def compare(one: Outcome, other: Outcome) -> Comparison | None:
    """Two models' outcomes of one request. None for embeddings: vectors of two models have nothing in common."""
    match one, other:
        case Classification(), Classification():
            ours, theirs = _scores(one), _scores(other)
            if one.multi_label:
                agrees = ours.keys() == theirs.keys()
            else:
                agrees = next(iter(ours), None) == next(iter(theirs), None)
            return Comparison(agrees, _drift(ours, theirs))
        case Entailment(), Entailment():
            pairs = list(zip(one.judgements, other.judgements, strict=True))
            agrees = all(_likeliest(ours) == _likeliest(theirs) for ours, theirs in pairs)
            return Comparison(agrees, max((abs(a.entailment - b.entailment) for a, b in pairs), default=0.0))
    return None


def agreement(ones: Sequence[Outcome], others: Sequence[Outcome]) -> Agreement:
    """Compare two models' outcomes of the same requests, in the same order.

    Raises:
        ValueError: the two are not of one length.
    """
    found = [compared for pair in zip(ones, others, strict=True) if (compared := compare(*pair)) is not None]
    drifts = [comparison.drift for comparison in found]
    return Agreement(
        compared=len(found),
        agreed=sum(comparison.agrees for comparison in found),
        mean_drift=sum(drifts) / len(drifts) if drifts else 0.0,
        largest_drift=max(drifts, default=0.0),
    )


def _scores(outcome: Classification) -> dict[str, float]:
    """By label, in the outcome's order."""
    return {scored.label: scored.score for scored in outcome.labels}


def _drift(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    return max((abs(ours[label] - theirs[label]) for label in ours.keys() & theirs.keys()), default=0.0)


def _likeliest(judged: Judgement) -> str:
    probabilities = {
        "entailment": judged.entailment,
        "neutral": judged.neutral,
        "contradiction": judged.contradiction,
    }
    return max(probabilities, key=probabilities.__getitem__)
