"""What the shipped checkpoint makes of evidence and of a taxonomy of labels that it knows, through the whole engine."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from tests.builders import classify
from tests.checkpoint.corpus import DEFAULT_TEMPLATE, Corpus
from tests.checkpoint.train import DIRECTORY
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.messages import Classification, Request, Span, Taxonomy

CODES = ("en", "de", "fr", "ru", "zh", "th")
PLANTED = ("insult", "threat", "politics", "health", "science", "technology")
# Everyday sentences of the lexicon that are about no concept of it, by row.
TOUCHING = {0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 15}

TREE = {
    "news": ("politics", "finance", "weather", "sport"),
    "leisure": ("travel", "food", "entertainment"),
    "knowledge": ("science", "education", "technology"),
    "harmful content": ("spam", "threat", "insult", "adult"),
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    checkpoint = load(str(DIRECTORY), device="cpu", precision="fp32", self_test="off", progress=False)
    return Engine(checkpoint, max_tokens=16_384)


def answers(engine: Engine, requests: Sequence[Request]) -> list[Classification]:
    found, _ = engine.run([(request, engine.encode(request)) for request in requests])
    return [outcome for outcome in found if isinstance(outcome, Classification)]


def planted(corpus: Corpus, code: str, name: str, count: int) -> tuple[Request, Span]:
    """A text of ``count`` everyday sentences, one of them held out and about a concept, and where that one stands."""
    language = corpus.languages[code]
    everyday = [
        text
        for row, each in enumerate(language.situations)
        if row not in TOUCHING
        for text in (each.premise, each.contradicted, each.detail)
    ]
    sentences = corpus.rng.sample(everyday, count - 1)
    decisive = corpus.text(language, language.concepts[name], framed=False).text
    at = corpus.rng.randrange(count)
    sentences.insert(at, decisive)
    start = len(language.gap.join([*sentences[:at], ""]))
    label = language.concepts[name].labels[0]
    request = classify(language.gap.join(sentences), label, template=DEFAULT_TEMPLATE, multi_label=True, evidence=1)
    return request, Span(start, start + len(decisive))


@pytest.mark.parametrize(("sentences", "texts"), [(12, 1), pytest.param(12, 10, marks=pytest.mark.acceptance)])
def test_evidence_lies_in_the_sentence_that_decides(engine: Engine, sentences: int, texts: int) -> None:
    corpus = Corpus(Random(11), evaluation=True)
    drawn = [planted(corpus, code, name, sentences) for code in CODES for name in PLANTED for _ in range(texts)]
    right = 0
    for (_, place), outcome in zip(drawn, answers(engine, [request for request, _ in drawn]), strict=True):
        spans = [found.span for label in outcome.labels for found in label.evidence]
        right += any(place.start <= span.start < span.end <= place.end for span in spans)
    assert right / len(drawn) >= 0.9


def tree(code: str, corpus: Corpus) -> tuple[tuple[str, ...], tuple[str, ...], Taxonomy]:
    """Names of concepts, their labels, and the tree of them; inner nodes have English labels alone."""
    names: list[str] = []
    parents: list[int] = []
    for parent, children in TREE.items():
        at = len(names)
        names += [parent, *children]
        parents += [-1, *[at] * len(children)]
    concepts = corpus.languages[code].concepts
    labels = tuple(concepts[name].labels[0] if name in concepts else name for name in names)
    return tuple(names), labels, Taxonomy(tuple(parents), 1)


def shares(engine: Engine, texts: int, beam: int) -> tuple[float, float, float]:
    """Of held-out texts: the share whose leaf a tree finds first, the share of flat scoring, and the ratio of pairs."""
    corpus = Corpus(Random(12), evaluation=True)
    names, labels, taxonomy = tree("en", corpus)
    leaves = [i for i, name in enumerate(names) if name not in TREE]
    language = corpus.languages["en"]
    drawn = [(labels[i], corpus.text(language, language.concepts[names[i]]).text) for i in leaves for _ in range(texts)]
    flat = [classify(text, *(labels[i] for i in leaves), template=DEFAULT_TEMPLATE) for _, text in drawn]
    deep = [
        classify(text, *labels, template=DEFAULT_TEMPLATE, taxonomy=Taxonomy(taxonomy.parents, beam))
        for _, text in drawn
    ]
    found: list[float] = []
    for requests in (deep, flat):
        outcomes = answers(engine, requests)
        found.append(
            sum(one.labels[0].label == label for one, (label, _) in zip(outcomes, drawn, strict=True)) / len(drawn)
        )
    pairs = [engine.run([(one[0], engine.encode(one[0]))])[1].rows for one in (deep, flat)]
    return found[0], found[1], pairs[0] / pairs[1]


@pytest.mark.parametrize("texts", [4, pytest.param(40, marks=pytest.mark.acceptance)])
def test_a_tree_of_known_labels_is_as_right_as_all_its_leaves(engine: Engine, texts: int) -> None:
    deep, flat, _ = shares(engine, texts, beam=1)
    assert flat >= 0.85
    assert deep >= flat - 0.02
