"""Labelled texts to what a model is trained on: a premise, a hypothesis, and the probabilities that it should give.

A label that holds is entailed by its text, and a rival is contradicted. Of many rivals those are taken that the model
takes for entailed the most: the hard negatives, found by the model itself. A text that only keeps the model from
forgetting has no right answer here; its probabilities are those that the model gave before ("Learning without
Forgetting", Li and Hoiem, 2016, with Hinton's soft targets at temperature 1).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Final, NamedTuple

from worker.messages import Judgement, Request, value


class Target(NamedTuple):
    """The three NLI probabilities wanted of a pair; a head of two classes has no neutral one."""

    entailment: float
    neutral: float
    contradiction: float


ENTAILED: Final = Target(1.0, 0.0, 0.0)
CONTRADICTED: Final = Target(0.0, 0.0, 1.0)


@value
class Labelled:
    """A request, and which of its labels hold."""

    request: Request
    expected: frozenset[str]


@value
class Pair:
    """A hypothesis about the text of ``request``, what the model should say, and how much that counts."""

    request: Request
    hypothesis: str
    target: Target
    weight: float


def split(samples: Sequence[Labelled], share: float, seed: int) -> tuple[list[Labelled], list[Labelled]]:
    """What is trained on, and what is held out: ``share`` of the texts of each label, rounded, and never all of them.

    A text with several labels counts for the rarest of them; one with none is a label of its own.
    """
    counts: dict[str, int] = defaultdict(int)
    for sample in samples:
        for label in sample.expected:
            counts[label] += 1
    groups: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        rarest = min(sample.expected, key=lambda label: (counts[label], label), default="")
        groups[rarest].append(index)
    chosen: set[int] = set()
    random = Random(seed)  # noqa: S311 (a draw that can be repeated, not a secret)
    for _, members in sorted(groups.items()):
        count = min(round(share * len(members)), len(members) - 1)
        chosen.update(random.sample(members, count))
    return (
        [sample for index, sample in enumerate(samples) if index not in chosen],
        [sample for index, sample in enumerate(samples) if index in chosen],
    )


def labelled(sample: Labelled, judged: Mapping[str, Judgement], negatives: int) -> list[Pair]:
    """The pairs of a labelled text. Entailments weigh one half together, and so do contradictions.

    Args:
        sample: the text, its candidates and those that hold.
        judged: what the model says of each hypothesis.
        negatives: rivals to take at most, those first that the model takes for entailed the most.
    """
    hypotheses = dict(zip(sample.request.labels, sample.request.hypotheses, strict=True))
    right = [hypothesis for label, hypothesis in hypotheses.items() if label in sample.expected]
    rivals = [hypothesis for label, hypothesis in hypotheses.items() if label not in sample.expected]
    hardest = sorted(rivals, key=lambda hypothesis: -judged[hypothesis].entailment)[:negatives]
    return [
        Pair(sample.request, hypothesis, target, 0.5 / len(chosen))
        for chosen, target in ((right, ENTAILED), (hardest, CONTRADICTED))
        for hypothesis in chosen
    ]


def kept(request: Request, judged: Mapping[str, Judgement], weight: float) -> list[Pair]:
    """Pairs of which the model should go on saying what it says. They weigh ``weight`` together."""
    return [
        Pair(
            request,
            hypothesis,
            Target(judgement.entailment, judgement.neutral, judgement.contradiction),
            weight / len(judged),
        )
        for hypothesis, judgement in judged.items()
    ]
