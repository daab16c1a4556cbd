"""Held-out texts of several sentences with one that decides, and the sentences that nobody wrote templates for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.checkpoint.corpus import Corpus
from tests.checkpoint.verdicts import CONTRADICTION, group, judge

FREE = Path(__file__).with_name("free.tsv")
WRONG_LABELS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A text of sentences of which the one at `place` is what `labels[0]` says; the other labels are surely wrong.

    `hypotheses` are the labels in a template.
    """

    sentences: tuple[str, ...]
    place: int
    gap: str
    labels: tuple[str, ...]
    hypotheses: tuple[str, ...]

    @property
    def text(self) -> str:
        """All sentences."""
        return self.gap.join(self.sentences)

    def without(self, place: int) -> str:
        """All sentences but one."""
        return self.gap.join(self.sentences[:place] + self.sentences[place + 1 :])


def planted(
    corpus: Corpus,
    code: str,
    count: int,
    *,
    names: tuple[str, ...] = (),
    theme: bool = False,
    place: int | None = None,
) -> Case:
    """A case of `count` sentences in a language.

    The decisive one is about one of the concepts `names`, by default any topic; the others are everyday sentences, or
    with `theme` sentences about one other topic. It stands at `place`, by default anywhere.
    """
    language = corpus.languages[code]
    topics = [name for name in language.concepts if group(name) == "topic"]
    while True:
        right = corpus.rng.choice(names or topics)
        texts, at = corpus.planted(language, right, count, place)
        if theme:
            other = corpus.rng.choice([name for name in topics if judge(frozenset({name}), right) == CONTRADICTION])
            texts = [text if row == at else corpus.about(language, other, 1)[0] for row, text in enumerate(texts)]
        around = frozenset().union(*(text.concepts | text.touched for row, text in enumerate(texts) if row != at))
        if right not in around:
            break
    shown = texts[at].concepts | (around if theme else frozenset())
    wrong = [name for name in topics if name not in around and judge(shown, name, around) == CONTRADICTION]
    names = (right, *corpus.rng.sample(wrong, min(WRONG_LABELS, len(wrong))))
    labels = tuple(corpus.label_of(code, name) for name in names)
    return Case(
        tuple(text.text for text in texts),
        at,
        language.gap,
        labels,
        tuple(corpus.hypothesis(code, code, label) for label in labels),
    )


@dataclass(frozen=True, slots=True)
class FreeSentence:
    """A sentence in a language, and the concept that it is about."""

    code: str
    concept: str
    text: str


def free_sentences() -> Iterator[FreeSentence]:
    """Those of `free.tsv`, which no training text was made from."""
    for line in FREE.read_text(encoding="utf-8").splitlines():
        yield FreeSentence(*line.split("\t"))


def free_choices(corpus: Corpus, sentence: FreeSentence) -> list[str]:
    """Hypotheses in the sentence's language, the right one first.

    A topic is told from five others, a sentiment or urgency from its opposite, a question from complaint and praise.
    """
    language = corpus.languages[sentence.code]
    kind = group(sentence.concept)
    if kind == "topic":
        wrong = [name for name in language.concepts if group(name) == kind and name != sentence.concept]
        wrong = [name for name in wrong if judge(frozenset({sentence.concept}), name) == CONTRADICTION]
        names = [sentence.concept, *corpus.rng.sample(wrong, WRONG_LABELS)]
    elif kind == "intent":
        names = [sentence.concept, "negative", "positive"]
    else:
        names = [
            sentence.concept,
            *(name for name in language.concepts if group(name) == kind and name != sentence.concept),
        ]
    labels = [language.concepts[name].labels[1 if kind == "intent" and name != "question" else 0] for name in names]
    return [corpus.hypothesis(sentence.code, sentence.code, label) for label in labels]
