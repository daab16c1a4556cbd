"""What the shipped checkpoint answers in fewer bits, and in fp32, on texts that it has not learnt."""

from __future__ import annotations

import functools
from random import Random

import pytest

from tests import builders
from tests.checkpoint.cases import planted
from tests.checkpoint.corpus import Corpus
from tests.checkpoint.lexicon import languages
from tests.checkpoint.train import DIRECTORY
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.inference.precision import Precision, Processor
from worker.messages import Classification, Request

TEXTS = 40  # of each language

NEEDS_VNNI = pytest.mark.skipif(not Processor.probe().vnni, reason="int8 is for CPUs with VNNI")


@functools.cache
def requests() -> tuple[Request, ...]:
    corpus = Corpus(Random(11), evaluation=True)
    cases = [planted(corpus, code, 1) for code in languages() for _ in range(TEXTS)]
    return tuple(
        builders.request(
            case.text,
            labels=tuple(map(str, range(len(case.labels)))),  # labels may repeat, their numbers do not
            multi_label=False,
            hypotheses=case.hypotheses,
        )
        for case in cases
    )


@functools.cache
def firsts(precision: Precision) -> tuple[str, ...]:
    checkpoint = load(str(DIRECTORY), device="cpu", precision=precision, self_test="off", progress=False)
    engine = Engine(checkpoint, max_tokens=16_384)
    found, _ = engine.run([(request, engine.encode(request)) for request in requests()])
    return tuple(outcome.labels[0].label for outcome in found if isinstance(outcome, Classification))


@pytest.mark.parametrize(
    ("precision", "least"),
    [
        (Precision.BF16, 0.995),
        pytest.param(Precision.INT8, 0.99, marks=NEEDS_VNNI),
        (Precision.INT4, 0.99),
    ],
)
def test_the_first_label_is_that_of_fp32(precision: Precision, least: float) -> None:
    exact, coarse = firsts(Precision.FP32), firsts(precision)
    agreeing = sum(one == other for one, other in zip(exact, coarse, strict=True)) / len(exact)
    assert agreeing >= least, f"{agreeing:.4f} of {len(exact)}"
