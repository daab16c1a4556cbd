"""Which logit is entailment, neutral, contradiction: read from the checkpoint's names, never guessed from positions.

Published checkpoints disagree on the order, and some changed it from one revision to the next, so a position says
nothing. Names do, where ``id2label`` and ``label2id`` say the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from worker.errors import CheckpointError
from worker.inference.scores import LabelOrder

_MEANINGS = {
    "entailment": "entailment",
    "entail": "entailment",
    "entails": "entailment",
    "e": "entailment",
    "neutral": "neutral",
    "n": "neutral",
    "contradiction": "contradiction",
    "contradict": "contradiction",
    "contradicts": "contradiction",
    "c": "contradiction",
    "notentailment": "not_entailment",
    "nonentailment": "not_entailment",
    "notentailed": "not_entailment",
}
_THREE = {"entailment", "neutral", "contradiction"}
_TWO = {"entailment", "not_entailment"}


def find(
    id2label: Mapping[int, str],
    label2id: Mapping[str, int] | None,
    classes: int,
    labels: Sequence[str] | None = None,
) -> LabelOrder:
    """Find the order of the classes among the logits.

    Names are compared without case, blanks, hyphens and underscores.

    Args:
        id2label: from the checkpoint's config.
        label2id: from the checkpoint's config; must be the inverse of ``id2label``. None: the config has none.
        classes: number of logits.
        labels: the setting ``model.labels``: class names in the order of the logits, which then stand for those of the
            config.

    Raises:
        CheckpointError: one logit, names that are no NLI classes, or names that contradict one another.
    """
    if classes == 1:
        raise CheckpointError(
            "the checkpoint's head has one logit: it is a similarity or ranking model, which cannot tell entailment "
            "from contradiction; set model.name to an NLI checkpoint (entailment, neutral, contradiction)"
        )
    if labels is not None:
        if len(labels) != classes:
            raise CheckpointError(
                f"model.labels names {len(labels)} classes ({', '.join(labels)}) but the checkpoint's head has "
                f"{classes} logits: name each logit once, in their order"
            )
        return _order(labels, "model.labels")
    names = [id2label.get(index, "") for index in range(classes)]
    if sorted(id2label) != list(range(classes)) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(
            f"config.json says id2label = {dict(id2label)}, which does not name each of {classes} logits once: find "
            "out what they mean (the model card, or its training data) and set model.labels, for example "
            '["contradiction", "neutral", "entailment"]'
        )
    if label2id is not None and {name: index for index, name in enumerate(names)} != dict(label2id):
        raise CheckpointError(
            f"the checkpoint contradicts itself: config.json says id2label = {dict(id2label)} and label2id = "
            f"{dict(label2id)} for {classes} logits; find out which is right (the model card, or its training data) "
            'and set model.labels, for example ["contradiction", "neutral", "entailment"]'
        )
    return _order(names, "config.json")


def _order(names: Sequence[str], where: str) -> LabelOrder:
    meanings = [_MEANINGS.get(re.sub(r"[\s_-]", "", name).lower()) for name in names]
    places = {meaning: index for index, meaning in enumerate(meanings) if meaning is not None}
    if set(places) == _THREE and len(names) == len(_THREE):
        return LabelOrder(places["entailment"], places["neutral"], places["contradiction"])
    if set(places) == _TWO and len(names) == len(_TWO):
        return LabelOrder(places["entailment"], None, places["not_entailment"])
    raise CheckpointError(
        f"the class names in {where} are no NLI classes: {', '.join(names)}. Known are entailment, neutral and "
        "contradiction, or entailment and not_entailment. If this is an NLI checkpoint, set model.labels to the names "
        'in the order of its logits, for example ["entailment", "neutral", "contradiction"]'
    )


def spell(order: LabelOrder) -> tuple[str, ...]:
    """Give the class names in the order of the logits, as ``model.labels`` takes them."""
    if order.neutral is None:
        return ("entailment", "not_entailment") if order.entailment == 0 else ("not_entailment", "entailment")
    names = {order.entailment: "entailment", order.neutral: "neutral", order.contradiction: "contradiction"}
    return tuple(names[index] for index in range(len(names)))
