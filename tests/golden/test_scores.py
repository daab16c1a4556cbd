"""Ours against transformers, fp32, at most 1e-5 apart: through the packed forward where there is one, and the padded.

The kept scores (``scores.json``) are of weights drawn by numpy, parameter by parameter, so that only a change of what a
model computes changes them. After a change that is meant: ``python -m tests.golden.test_scores`` writes them anew.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import families
from tests.golden import workload
from tests.golden.precision import BOUNDS
from tests.golden.reference import Reference
from worker.inference.engine import Engine
from worker.inference.forwards import families as forwards
from worker.inference.forwards.padded import Padded
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.inference.precision import Precision, Processor
from worker.messages import Classification, Embedding, Entailment, Outcome, Pooling, Request

FILE = Path(__file__).with_name("scores.json")
WITHIN = 1e-5
# An order on which the pipeline's positional guess is right.
ORDER = ("contradiction", "neutral", "entailment")
# Each packed forward has one family that stands for it in the suite, and so has the padded one; the kept scores below
# are of every family all the same.
_PACKED = [family for family in families.FAMILIES if families.model_type(family) in forwards.PACKED]
_CASES = [*((family, False) for family in families.FAMILIES), *((family, True) for family in _PACKED)]
_SUITE = {(family, True) for family in ("xlm-roberta", "bart", "deberta-v2", "modernbert", "xlm")} | {("mpnet", False)}
FORWARDS = [pytest.param(*case, marks=() if case in _SUITE else pytest.mark.acceptance) for case in _CASES]
# The pipeline cannot tell XLM a language.
PIPELINE_FORWARDS = [case for case in FORWARDS if case.values[0] != "xlm"]


def open_checkpoint(family: str, order: tuple[str, ...] = ORDER, precision: Precision = Precision.FP32) -> Checkpoint:
    return load(
        str(families.checkpoint(family, order=order)),
        device="cpu",
        precision=precision,
        max_length=512,
        self_test="off",
        default_language="en",
        progress=False,
    )


def open_engine(checkpoint: Checkpoint, *, pack: bool) -> Engine:
    assert forwards.is_packed(checkpoint.model.config) or not pack
    return Engine(checkpoint, max_tokens=700, forward=None if pack else Padded(checkpoint))


def run(engine: Engine, requests: Sequence[Request]) -> list[Outcome]:
    """All requests in one batch."""
    outcomes, _ = engine.run([(request, engine.encode(request)) for request in requests])
    return outcomes


def scores(outcome: Outcome) -> dict[str, float]:
    assert isinstance(outcome, Classification)
    return {label.label: label.score for label in outcome.labels}


@pytest.mark.parametrize(("family", "pack"), PIPELINE_FORWARDS)
def test_classification_is_the_pipelines(family: str, *, pack: bool) -> None:
    reference = Reference(families.checkpoint(family, order=ORDER))
    ours = run(open_engine(open_checkpoint(family), pack=pack), [request for request, _ in workload.CLASSIFICATIONS])
    for (request, template), outcome in zip(workload.CLASSIFICATIONS, ours, strict=True):
        theirs = reference.pipeline(request.text, request.labels, template=template, multi_label=request.multi_label)
        assert scores(outcome) == pytest.approx(dict(theirs), abs=WITHIN)
        assert [label.score for label in outcome.labels] == pytest.approx([score for _, score in theirs], abs=WITHIN)  # type: ignore[union-attr]  # scores() has checked it


@pytest.mark.parametrize(("family", "pack"), FORWARDS)
def test_probabilities_are_those_of_the_plain_model(family: str, *, pack: bool) -> None:
    reference = Reference(families.checkpoint(family, order=ORDER))
    hypotheses = [f"This is about {label}." for label in workload.LABELS[:4]]
    requests = [workload.entail(text, *hypotheses) for text in workload.TEXTS.values()]
    for request, outcome in zip(requests, run(open_engine(open_checkpoint(family), pack=pack), requests), strict=True):
        assert isinstance(outcome, Entailment)
        for hypothesis, judged in zip(hypotheses, outcome.judgements, strict=True):
            logits = torch.from_numpy(reference.logits(request.text, hypothesis, "en"))
            theirs = torch.softmax(logits, -1).tolist()
            assert [judged.contradiction, judged.neutral, judged.entailment] == pytest.approx(theirs, abs=WITHIN)


@pytest.mark.parametrize(("family", "pack"), FORWARDS)
def test_embeddings_are_the_plain_models_hidden_states(family: str, *, pack: bool) -> None:
    reference = Reference(families.checkpoint(family, order=ORDER))
    texts = [*workload.TEXTS.values(), workload.LONG]
    requests = [workload.embed(text, pooling) for text in texts for pooling in Pooling]
    ours = run(open_engine(open_checkpoint(family), pack=pack), requests)
    for request, outcome in zip(requests, ours, strict=True):
        states = reference.states(request.text, "en")
        theirs = states[0] if request.pooling is Pooling.CLS else states.mean(axis=0)
        assert isinstance(outcome, Embedding)
        assert np.abs(outcome.vector - theirs).max() <= WITHIN


@pytest.mark.parametrize(("family", "pack"), PIPELINE_FORWARDS)
def test_a_long_text_is_cut_as_the_pipeline_cuts_it(family: str, *, pack: bool) -> None:
    reference = Reference(families.checkpoint(family, order=ORDER))
    labels = ("short", "a label that takes the place of a few more tokens of the text")
    request = workload.classify(workload.LONG, labels)
    (outcome,) = run(open_engine(open_checkpoint(family), pack=pack), [request])
    theirs = reference.pipeline(request.text, labels, template=workload.TEMPLATES[0], multi_label=False)
    assert scores(outcome) == pytest.approx(dict(theirs), abs=WITHIN)


def test_repeated_labels_share_the_whole_as_in_the_pipeline() -> None:
    reference = Reference(families.checkpoint("xlm-roberta", order=ORDER))
    labels = ("sport", "billing", "sport", "travel", "billing", "sport")
    request = workload.classify(workload.TEXTS["en"], labels)
    (outcome,) = run(open_engine(open_checkpoint("xlm-roberta"), pack=True), [request])
    theirs = reference.pipeline(request.text, labels, template=workload.TEMPLATES[0], multi_label=False)
    assert isinstance(outcome, Classification)
    assert [label.label for label in outcome.labels] == [label for label, _ in theirs]
    assert [label.score for label in outcome.labels] == pytest.approx([score for _, score in theirs], abs=WITHIN)


def test_labels_that_tie_keep_the_order_of_the_request() -> None:
    # The same hypothesis for every label: the pipeline returns them last to first, if rounding lets them tie at all.
    labels = ("one", "two", "three", "four")
    request = workload.classify(workload.TEXTS["de"], labels, template="Immer derselbe Satz.")
    (outcome,) = run(open_engine(open_checkpoint("xlm-roberta"), pack=True), [request])
    assert isinstance(outcome, Classification)
    assert tuple(label.label for label in outcome.labels) == labels
    assert {label.score for label in outcome.labels} == {0.25}


@pytest.mark.parametrize(
    "order",
    [
        ("neutral", "contradiction", "entailment"),
        pytest.param(("entailment", "contradiction", "neutral"), marks=pytest.mark.acceptance),
    ],
)
def test_contradiction_is_found_by_name_where_the_pipeline_guesses_its_position(order: tuple[str, ...]) -> None:
    reference = Reference(families.checkpoint("xlm-roberta", order=order))
    engine = open_engine(open_checkpoint("xlm-roberta", order), pack=True)
    requests = [workload.classify(text, workload.LABELS[:3], multi_label=True) for text in workload.TEXTS.values()]
    furthest = 0.0
    for request, outcome in zip(requests, run(engine, requests), strict=True):
        right = {}
        for label, hypothesis in zip(request.labels, request.hypotheses, strict=True):
            logit = dict(zip(order, reference.logits(request.text, hypothesis).tolist(), strict=True))
            right[label] = 1 / (1 + math.exp(logit["contradiction"] - logit["entailment"]))
        assert scores(outcome) == pytest.approx(right, abs=WITHIN)
        guessed = dict(
            reference.pipeline(request.text, request.labels, template=workload.TEMPLATES[0], multi_label=True)
        )
        furthest = max(furthest, *(abs(guessed[label] - right[label]) for label in right))
    assert furthest > 0.05  # transformers softmaxes entailment against neutral here


def test_xlm_listens_to_the_language() -> None:
    reference = Reference(families.checkpoint("xlm", order=ORDER))
    assert reference.languages
    text, hypothesis = workload.TEXTS["en"], "This is about shipping."
    assert not np.allclose(
        reference.logits(text, hypothesis, "en"), reference.logits(text, hypothesis, "de"), atol=1e-3
    )


@pytest.mark.parametrize(
    ("family", "pack"), [case for case in FORWARDS if case.values[1] or case.values[0] == "deberta-v2"]
)
@pytest.mark.parametrize("coarse", [Precision.BF16, Precision.INT8, Precision.INT4])
def test_fewer_bits_stay_within_their_bounds(family: str, *, pack: bool, coarse: Precision) -> None:
    if coarse is Precision.INT8 and not Processor.probe().vnni:
        pytest.skip("int8 is for CPUs with VNNI")
    requests = [request for request, _ in workload.CLASSIFICATIONS]
    exact = run(open_engine(open_checkpoint(family), pack=pack), requests)
    ours = run(open_engine(open_checkpoint(family, precision=coarse), pack=pack), requests)
    furthest = max(
        abs(scores(one)[label] - score)
        for one, other in zip(ours, exact, strict=True)
        for label, score in scores(other).items()
    )
    assert 1e-5 < furthest <= BOUNDS[coarse]


def compute(family: str) -> list[float]:
    """Entailment probabilities under weights that numpy draws, each parameter seeded by its name."""
    checkpoint = open_checkpoint(family)
    for name, parameter in checkpoint.model.named_parameters():
        drawn = np.random.default_rng(zlib.crc32(name.encode())).normal(0, 0.2, tuple(parameter.shape))
        is_scale = "norm" in name.lower() and name.endswith("weight")
        parameter.data.copy_(torch.from_numpy(drawn + is_scale))
    requests = [workload.entail(text, *workload.LABELS[:2]) for text in workload.TEXTS.values()]
    outcomes = run(Engine(checkpoint, max_tokens=1000), requests)
    return [
        round(judged.entailment, 6)
        for outcome in outcomes
        if isinstance(outcome, Entailment)
        for judged in outcome.judgements
    ]


@pytest.mark.parametrize("family", families.EVERY)
def test_scores_are_those_kept(family: str) -> None:
    kept: dict[str, list[float]] = json.loads(FILE.read_text(encoding="utf-8"))
    assert compute(family) == pytest.approx(kept[family], abs=1e-4)


if __name__ == "__main__":
    golden = {family: compute(family) for family in families.FAMILIES}
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
