"""Sure pairs in several languages, scored at start-up: a checkpoint that gets them wrong has its classes permuted.

Names in a config can be wrong, and nothing else notices: a permuted checkpoint answers every request, only falsely. A
sure pair is one whose class any NLI checkpoint that knows the language gets right.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch

from worker.inference import labels
from worker.inference.model import Checkpoint
from worker.inference.scores import LabelOrder

_ENOUGH = 0.75  # right answers; a permuted order gets a third of the classes right, or none


@dataclass(frozen=True, slots=True)
class SurePair:
    """A premise, a hypothesis, and what holds between them: entailment, neutral or contradiction."""

    premise: str
    hypothesis: str
    label: str
    language: str


def sure_pairs() -> tuple[SurePair, ...]:
    """Read the pairs that come with the package."""
    text = resources.files("worker.inference").joinpath("selftest.json").read_text(encoding="utf-8")
    return tuple(SurePair(**pair) for pair in json.loads(text))


def run(checkpoint: Checkpoint, pairs: Sequence[SurePair] | None = None) -> str | None:
    """Score the pairs with the plain model and compare.

    Args:
        checkpoint: with a classification head.
        pairs: sure pairs; those of the package if not given. XLM is asked only for languages it has.

    Returns:
        None if enough come out right; else what is wrong, which order of the classes would fit if one does, and the
        mend.
    """
    order = checkpoint.order
    if order is None:
        return None
    known = [
        pair
        for pair in (sure_pairs() if pairs is None else pairs)
        if not checkpoint.languages or pair.language in checkpoint.languages
    ]
    if not known:
        return None
    answers = [_answer(checkpoint, pair) for pair in known]
    right = _count(known, answers, order)
    if right >= _ENOUGH * len(known):
        return None
    indices = [index for index in (order.entailment, order.neutral, order.contradiction) if index is not None]
    others = [
        LabelOrder(places[0], places[1] if len(places) == 3 else None, places[-1])
        for places in itertools.permutations(indices)
    ]
    best = max(others, key=lambda other: _count(known, answers, other))
    fits = _count(known, answers, best)
    languages = sorted(
        {pair.language for pair, answer in zip(known, answers, strict=True) if not _is_right(pair, answer, order)}
    )
    fault = (
        f"the self-test of {checkpoint.identity.name} failed: {right} of {len(known)} sure pairs came out right with "
        f"the classes in the order {_spell(order)} (wrong ones in {', '.join(languages)})"
    )
    if fits >= _ENOUGH * len(known):
        mend = json.dumps(labels.spell(best))
        return f"{fault}; the order {_spell(best)} fits {fits} of them: set model.labels = {mend}"
    return (
        f"{fault}; no other order fits better than {fits}: this is no NLI checkpoint, or it does not know those "
        "languages, in which case turn the self-test into a warning"
    )


def _answer(checkpoint: Checkpoint, pair: SurePair) -> int:
    """The largest logit's index. One pair at a time: nothing of padding or packing can be at fault."""
    inputs = checkpoint.tokenizer(
        [pair.premise],
        [pair.hypothesis],
        truncation="only_first",
        max_length=checkpoint.max_length,
        return_tensors="pt",
    ).to(checkpoint.device)
    if checkpoint.languages:
        inputs["langs"] = torch.full_like(inputs["input_ids"], checkpoint.languages[pair.language])
    with torch.inference_mode():
        return int(checkpoint.model(**inputs).logits[0].argmax())


def _is_right(pair: SurePair, answer: int, order: LabelOrder) -> bool:
    if order.neutral is None:
        return (answer == order.entailment) == (pair.label == "entailment")
    expected = {"entailment": order.entailment, "neutral": order.neutral, "contradiction": order.contradiction}
    return answer == expected[pair.label]


def _count(pairs: Sequence[SurePair], answers: Sequence[int], order: LabelOrder) -> int:
    return sum(_is_right(pair, answer, order) for pair, answer in zip(pairs, answers, strict=True))


def _spell(order: LabelOrder) -> str:
    return ", ".join(labels.spell(order))
