"""A taxonomy from the top down: children are scored only under parents that are followed.

- Where labels compete (single label), siblings compete with each other: a label's own score is the softmax over its
  siblings of the entailment logit, and its score is the product of those on its path. The best ``beam`` labels of a
  level are followed, by that product. A label without siblings is weighed against its own contradiction, as one label
  alone is in a flat request: a softmax over one would say 1 of whatever the text says. So scores of leaves add up to at
  most 1. The leaves under parents that were followed are what is found.
- Where each label is judged on its own (multi-label), its score is its own, and the labels that pass are followed: by
  their threshold, or at 0.5 where none is given, and by ``abstain_on_neutral``. The leaves under them are found, and so
  is a label that passes while no label below it does: it is the most that can be said. A calibration that knows a
  label judges it here too. (Of labels that compete in a tree none knows any.)

Leaves may lie at any depth. Thresholds, ``abstain_on_neutral`` and ``top_k`` then choose among what was found as they
do in a flat request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from worker.inference.rounds import Asking, Logits, Meter
from worker.inference.scores import LabelOrder, apart, competing, judge, passes, window_of
from worker.inference.tokens import Tokens
from worker.messages import Encoded, LabelScore, Request, Step, Taxonomy

FOLLOWED: Final = 0.5
"""The score from which a label that is judged on its own is followed, where no threshold is given."""


@dataclass(frozen=True, slots=True)
class Found:
    """A label that passed.

    Attributes:
        index: which of the request's.
        label: its scores.
        window: the window that entails it the most; None where the text has one window.
    """

    index: int
    label: LabelScore
    window: int | None


@dataclass(frozen=True, slots=True)
class _Siblings:
    """Nodes below the same parent; at the top they have none."""

    nodes: Sequence[int]
    parent: Found | None = None


def descend(
    request: Request,
    taxonomy: Taxonomy,
    encoded: Encoded,
    logits: Logits,
    tokens: Tokens,
    order: LabelOrder,
    meter: Meter,
) -> Asking[list[Found]]:
    """Score a taxonomy, level by level.

    Args:
        request: A CLASSIFY request.
        taxonomy: Its taxonomy.
        encoded: Its top level.
        logits: Those of the top level's rows.
        tokens: Makes the rows of the other levels.
        order: Which class is which.
        meter: Is charged with those rows.

    Returns:
        The labels that pass, by falling score; equal scores in the request's order. ``top_k`` is not applied yet.
    """
    tree = tokens.tree(request, taxonomy)
    level = [_Siblings(tree.top)]
    found: list[Found] = []
    while True:
        groups = _scored(request, level, encoded, logits, order)
        scored = [one for group in groups for one in group]
        if request.multi_label:
            followed = [one for one in scored if _holds(request, one)]
            for siblings, group in zip(level, groups, strict=True):
                if siblings.parent is not None and not any(_holds(request, one) for one in group):
                    found.append(siblings.parent)
        else:
            followed = sorted(scored, key=lambda one: -one.label.score)[: taxonomy.beam]
        found += [one for one in scored if not tree.children[one.index]]
        level = [_Siblings(tree.children[one.index], one) for one in followed if tree.children[one.index]]
        if not level:
            break
        rows = tokens.rows(request, taxonomy, encoded, [node for siblings in level for node in siblings.nodes])
        meter.charge(rows)
        logits = yield rows
    kept = [one for one in found if passes(request, one.index, _judged(one.label), one.label.neutral)]
    return sorted(kept, key=lambda one: (-one.label.score, one.index))


def _holds(request: Request, one: Found) -> bool:
    """Whether a label that is judged on its own is followed."""
    return passes(request, one.index, _judged(one.label), one.label.neutral, otherwise=FOLLOWED)


def _judged(label: LabelScore) -> float:
    """What is compared with a threshold."""
    return label.score if label.calibrated is None else label.calibrated


def _scored(
    request: Request, level: Sequence[_Siblings], encoded: Encoded, logits: Logits, order: LabelOrder
) -> list[list[Found]]:
    """The nodes of a level with their scores, siblings together. ``logits`` are in the level's order."""
    judged = judge(logits, encoded.windows, request.long_text, order)
    probabilities = judged.probabilities.tolist()
    groups: list[list[Found]] = []
    row = 0
    for siblings in level:
        part = judged.logits[row : row + len(siblings.nodes)]
        own = (apart if request.multi_label else competing)(part).tolist()
        path, above = (siblings.parent.label.path, siblings.parent.label.score) if siblings.parent else ((), 1.0)
        group: list[Found] = []
        probable = request.calibrator(siblings.nodes, own) if request.calibrator is not None else [None] * len(own)
        for node, score, calibrated in zip(siblings.nodes, own, probable, strict=True):
            entailment, neutral, contradiction = probabilities[row]
            label = LabelScore(
                request.labels[node],
                score if request.multi_label else above * score,
                entailment,
                neutral,
                contradiction,
                path=(*path, Step(request.labels[node], score)),
                window=window_of(request, judged, encoded.spans, row),
                calibrated=calibrated,
            )
            group.append(Found(node, label, None if judged.windows is None else int(judged.windows[row])))
            row += 1
        groups.append(group)
    return groups
