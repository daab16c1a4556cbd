"""Labelled texts for labels that the shipped checkpoint was never taught, and for those that it was.

The unknown labels stand in `unknown.toml`, in the form of the lexicon, and their texts are drawn by the corpus's own
program, on either side of its held-out line: an opening with an ending, now and then in a sentence frame. No template
of the corpus takes part: a label becomes a hypothesis by the template of whoever asks.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.checkpoint.corpus import Corpus
from tests.checkpoint.lexicon import Concept, languages

FILE = Path(__file__).with_suffix(".toml")
CANDIDATES = 6
"""How many of the known labels a text is asked about."""


def concepts() -> dict[str, Concept]:
    """The unknown labels by their names."""
    found: dict[str, dict[str, str]] = tomllib.loads(FILE.read_text(encoding="utf-8"))["topic"]
    return {
        name: Concept(name, "topic", **{key: tuple(map(str.strip, text.split("|"))) for key, text in fields.items()})
        for name, fields in found.items()
    }


def unknown_examples(each: int, *, seed: int, evaluation: bool) -> list[dict[str, Any]]:
    """Labelled examples of the unknown labels, ``each`` of every label, no text twice: at most 24 of each held out."""
    corpus = Corpus(Random(seed), evaluation=evaluation)
    language = languages()["en"]
    known = concepts()
    found = []
    for concept in known.values():
        texts: dict[str, None] = {}
        while len(texts) < each:
            texts[_framed(corpus, corpus.composed(language, concept))] = None
        labels = [other.labels[0] for other in known.values()]
        found += [{"text": text, "labels": labels, "expected": concept.labels[0]} for text in texts]
    return found


def known_examples(each: int, *, seed: int, evaluation: bool, labels_in: str | None = None) -> Iterator[dict[str, Any]]:
    """Labelled examples of the labels that the checkpoint was taught, ``each`` of every language and kind of label.

    Labels and template are of the language ``labels_in``, else of the text's.
    """
    corpus = Corpus(Random(seed), evaluation=evaluation)
    for code, language in corpus.languages.items():
        asking = language if labels_in is None else corpus.languages[labels_in]
        for group in ("topic", "sentiment", "urgency"):
            names = [name for name, concept in language.concepts.items() if concept.group == group]
            for _ in range(each):
                right = corpus.rng.choice(names)
                wrong = [name for name in names if name != right]
                chosen = [right, *corpus.rng.sample(wrong, min(len(wrong), CANDIDATES - 1))]
                corpus.rng.shuffle(chosen)
                text = _framed(corpus, corpus.composed(language, language.concepts[right]), code)
                yield {
                    "text": text,
                    "labels": [asking.concepts[name].labels[0] for name in chosen],
                    "expected": asking.concepts[right].labels[0],
                    "language": code,
                    "hypothesis_template": asking.templates[-1],
                }


def _framed(corpus: Corpus, text: str, code: str = "en") -> str:
    """The text in one of this side's sentence frames, or bare."""
    frames = corpus.languages[code].frames
    own = frames[-2:] if corpus.evaluation else frames[:-2]
    return corpus.rng.choice(own).replace("{}", text) if corpus.rng.random() < 0.5 else text
