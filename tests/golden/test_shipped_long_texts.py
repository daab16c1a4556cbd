"""The shipped checkpoint through the real engine, on texts up to its window and beyond, and on trees of its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import fmean, median

import pytest

from tests import builders
from tests.builders import classify, entail
from tests.checkpoint.cases import Case, planted
from tests.checkpoint.corpus import Corpus
from tests.checkpoint.lexicon import languages
from tests.checkpoint.train import DIRECTORY
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.messages import Classification, Entailment, LongText, Request


@dataclass(frozen=True, slots=True)
class Sample:
    """Texts of each language, and how far a share of so few may lie below what is asked of all."""

    codes: tuple[str, ...]
    texts: int
    slack: float


SMALL = Sample(("en", "de", "sw", "zh"), 3, 0.1)
LARGE = Sample(tuple(languages()), 10, 0.0)
# What its weights do not do yet, of 16 sentences and more: the model card has the shares.
NOT_YET = pytest.mark.xfail(reason="a topic in one of 16 sentences is found for 85 of 100 texts, of one for 99")
SAMPLES = [pytest.param(SMALL, id="small"), pytest.param(LARGE, id="large", marks=pytest.mark.acceptance)]
# What each parent holds: a concept of the lexicon and its label.
TREE = {
    "news": {"politics": "politics", "finance": "finance", "weather": "weather", "sport": "sport"},
    "leisure": {"travel": "travel", "food": "food", "entertainment": "entertainment"},
    "knowledge": {"science": "science", "education": "education", "technology": "technology"},
    "customer service": {"billing": "billing", "refund": "refund", "delivery": "delivery", "account": "account access"},
    "harmful content": {"spam": "spam", "threat": "threat", "insult": "insult", "adult": "adult content"},
    "feedback": {"positive": "praise", "negative": "complaint", "question": "question"},
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    checkpoint = load(str(DIRECTORY), device="cpu", precision="fp32", self_test="off", progress=False)
    return Engine(checkpoint, max_tokens=16_384)


def outcomes(engine: Engine, requests: Sequence[Request]) -> list[Classification]:
    found, _ = engine.run([(request, engine.encode(request)) for request in requests])
    return [outcome for outcome in found if isinstance(outcome, Classification)]


def request(case: Case, *, multi_label: bool = True) -> Request:
    labels = tuple(map(str, range(len(case.labels))))  # the first is right
    return builders.request(case.text, labels=labels, multi_label=multi_label, hypotheses=case.hypotheses)


def scores(outcome: Classification) -> dict[str, float]:
    return {label.label: label.score for label in outcome.labels}


def cases(seed: int, sample: Sample, draw: Callable[[Corpus, str], Case]) -> list[Case]:
    corpus = Corpus(Random(seed), evaluation=True)
    return [draw(corpus, code) for code in sample.codes for _ in range(sample.texts)]


def first_share(engine: Engine, sentences: int, sample: Sample, *, multi_label: bool = True) -> float:
    drawn = cases(3, sample, lambda corpus, code: planted(corpus, code, sentences))
    found = outcomes(engine, [request(case, multi_label=multi_label) for case in drawn])
    return fmean(outcome.labels[0].label == "0" for outcome in found)


@NOT_YET
@pytest.mark.parametrize("sample", SAMPLES)
def test_sixteen_sentences_are_answered_as_one_is(engine: Engine, sample: Sample) -> None:
    one, sixteen = (first_share(engine, sentences, sample) for sentences in (1, 16))
    assert sixteen >= one - 0.05 - sample.slack
    assert first_share(engine, 16, sample, multi_label=False) >= 0.9 - sample.slack


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("sentences", [4, 12, pytest.param(30, marks=NOT_YET)])
def test_labels_that_a_long_text_lacks_score_low_and_those_that_it_has_high(
    engine: Engine, sentences: int, sample: Sample
) -> None:
    drawn = cases(4, sample, lambda corpus, code: planted(corpus, code, sentences))
    found = [scores(outcome) for outcome in outcomes(engine, [request(case) for case in drawn])]
    assert median(each["0"] for each in found) > 0.9
    assert median(score for each in found for label, score in each.items() if label != "0") < 0.1


def falls(engine: Engine, case: Case) -> list[float]:
    """How far the entailment probability of the right label falls without each sentence."""
    texts = [case.text, *(case.without(place) for place in range(len(case.sentences)))]
    requests = [entail(text, case.hypotheses[0]) for text in texts]
    found, _ = engine.run([(request, engine.encode(request)) for request in requests])
    whole, *rest = [each.judgements[0].entailment for each in found if isinstance(each, Entailment)]
    return [whole - each for each in rest]


def decisive_share(engine: Engine, sample: Sample, names: tuple[str, ...], *, theme: bool) -> float:
    drawn = cases(5, sample, lambda corpus, code: planted(corpus, code, 12, names=names, theme=theme))
    return fmean(max(enumerate(falls(engine, case)), key=lambda fall: fall[1])[0] == case.place for case in drawn)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize(
    ("names", "theme"),
    [
        *((names, theme) for names in (("insult",), ("threat",)) for theme in (False, True)),
        ((), False),
        pytest.param((), True, marks=NOT_YET),
    ],
)
def test_leaving_out_the_decisive_sentence_lowers_the_label_most(
    engine: Engine, names: tuple[str, ...], sample: Sample, theme: bool
) -> None:
    assert decisive_share(engine, sample, names, theme=theme) >= 0.9 - sample.slack


def at_the_end(corpus: Corpus, code: str) -> Case:
    """A topic in the last sentence alone of a text of 5,000 tokens and more."""
    return planted(corpus, code, 640, place=639)


@NOT_YET
@pytest.mark.parametrize(
    "sample",
    [
        pytest.param(Sample(("en",), 1, 0), id="small"),
        pytest.param(Sample(LARGE.codes, 2, 0), id="large", marks=pytest.mark.acceptance),
    ],
)
def test_windows_find_a_topic_at_the_end_of_five_thousand_tokens_and_truncation_does_not(
    engine: Engine, sample: Sample
) -> None:
    drawn = cases(6, sample, at_the_end)
    requests = [request(case) for case in drawn]
    by_windows = [replace(each, long_text=LongText.WINDOW_MAX) for each in requests]
    assert all(engine.encode(each).windows >= 10 for each in by_windows)
    for found, cut in zip(outcomes(engine, by_windows), outcomes(engine, requests), strict=True):
        best, second, *_ = found.labels
        assert best.label == "0"
        assert best.score > 0.9
        assert second.score < 0.5
        assert scores(cut)["0"] < 0.5


def down_the_tree(engine: Engine, case_texts: Sequence[tuple[str, str, str]], template: str) -> tuple[float, float]:
    """Share of (text, parent, child) whose child is found by the best parent's children alone, and among all."""
    parents = tuple(TREE)
    leaves = tuple(label for children in TREE.values() for label in children.values())
    texts = [text for text, _, _ in case_texts]
    above = outcomes(engine, [classify(text, *parents, template=template) for text in texts])
    below = [
        classify(text, *TREE[found.labels[0].label].values(), template=template)
        for text, found in zip(texts, above, strict=True)
    ]
    flat = outcomes(engine, [classify(text, *leaves, template=template) for text in texts])
    wanted = [child for _, _, child in case_texts]
    return (
        fmean(found.labels[0].label == child for found, child in zip(outcomes(engine, below), wanted, strict=True)),
        fmean(found.labels[0].label == child for found, child in zip(flat, wanted, strict=True)),
    )


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_tree_of_its_labels_is_answered_as_well_as_the_leaves_alone(engine: Engine, sample: Sample) -> None:
    corpus = Corpus(Random(7), evaluation=True)
    english = corpus.languages["en"]
    drawn = [
        (corpus.text(english, english.concepts[name]).text, parent, label)
        for parent, children in TREE.items()
        for name, label in children.items()
        for _ in range(sample.texts)
    ]
    tree, flat = down_the_tree(engine, drawn, "This text is about {}.")
    assert tree >= flat - 0.02 - sample.slack


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("How do I reset my password?", "question"),
        ("You charged my card twice, I am really disappointed.", "complaint"),
        ("Thank you, the staff were wonderful.", "praise"),
    ],
)
def test_everyday_wordings_of_feedback(engine: Engine, text: str, right: str) -> None:
    (found,) = outcomes(engine, [classify(text, "question", "complaint", "praise", template="This example is {}.")])
    assert found.labels[0].label == right
