"""Labelled texts to what a model is trained on: a text with a hypothesis, and the probabilities that it should give.

A label that holds is entailed by its text, and a rival is contradicted. Of many rivals those are taken that the model
takes for entailed the most: the hard negatives, found by the model itself. A text that only keeps the model from
forgetting has no right answer here: the model should go on giving the probabilities that it gives ("Learning without
Forgetting", Li and Hoiem, 2016).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from random import Random
from typing import Final, NamedTuple

from worker.learn.scoring import Asked
from worker.messages import Judgement, Row, value


class Target(NamedTuple):
    """The three NLI probabilities wanted of a pair. A head of two classes has no neutral one."""

    entailment: float
    neutral: float
    contradiction: float


ENTAILED: Final = Target(1.0, 0.0, 0.0)
CONTRADICTED: Final = Target(0.0, 0.0, 1.0)


@value
class Judged:
    """A hypothesis about a text, as the model reads the two, and what it says of them before it is trained."""

    row: Row
    judgement: Judgement


@value
class Pair:
    """A text and a hypothesis as the model reads them, what it should say, and how much that counts."""

    row: Row
    target: Target
    weight: float


def split(examples: Sequence[Asked], share: float, seed: int) -> tuple[list[Asked], list[Asked]]:
    """What is trained on, and what is held out: ``share`` of the examples of each label, rounded, and never all.

    An example of several labels counts for the rarest of them, and one of none for a label of its own.
    """
    counts: dict[str, int] = defaultdict(int)
    for one in examples:
        for label in one.example.expected:
            counts[label] += 1
    groups: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(examples):
        rarest = min(one.example.expected, key=lambda label: (counts[label], label), default="")
        groups[rarest].append(index)
    chosen: set[int] = set()
    random = Random(seed)  # noqa: S311 (a draw that can be repeated, no secret)
    for _, members in sorted(groups.items()):
        chosen.update(random.sample(members, min(round(share * len(members)), len(members) - 1)))
    return (
        [one for index, one in enumerate(examples) if index not in chosen],
        [one for index, one in enumerate(examples) if index in chosen],
    )


def labelled(judged: Sequence[Judged], right: AbstractSet[str], negatives: int) -> list[Pair]:
    """The pairs of a labelled text. What is entailed weighs one half together, and so does what is contradicted.

    Args:
        judged: the text with the hypothesis of each candidate.
        right: the hypotheses that hold.
        negatives: rivals to take at most: those first that the model takes for entailed the most.
    """
    entailed = [one for one in judged if one.judgement.hypothesis in right]
    rivals = [one for one in judged if one.judgement.hypothesis not in right]
    hardest = sorted(rivals, key=lambda one: -one.judgement.entailment)[:negatives]
    return [
        Pair(one.row, target, 0.5 / len(chosen))
        for chosen, target in ((entailed, ENTAILED), (hardest, CONTRADICTED))
        for one in chosen
    ]


def kept(judged: Sequence[Judged]) -> list[Pair]:
    """The pairs of a text of which the model should go on saying what it says. They weigh 1 together."""
    return [
        Pair(one.row, Target(said.entailment, said.neutral, said.contradiction), 1 / len(judged))
        for one in judged
        for said in (one.judgement,)
    ]


def together(learnt: Sequence[Pair], rehearsed: Sequence[Pair], rehearsal_share: float) -> list[Pair]:
    """All pairs, with weights whose mean is 1, of which those rehearsed have ``rehearsal_share`` (of 0 to below 1)."""
    shares = ((learnt, 1 - rehearsal_share if rehearsed else 1.0), (rehearsed, rehearsal_share if learnt else 1.0))
    count = len(learnt) + len(rehearsed)
    found = []
    for pairs, share in shares:
        total = sum(pair.weight for pair in pairs)
        found += [Pair(pair.row, pair.target, pair.weight * share * count / total) for pair in pairs]
    return found
