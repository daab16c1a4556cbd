"""Labelled examples of what the shipped checkpoint has not seen: `python -m tests.checkpoint.labelled FILE`.

Their texts are made of the held-out combinations of `corpus`, in two parts: no sentence of one is in the other, so that
what is fitted on the first can be measured on the second. Their hypotheses come from the held-out template.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from tests.checkpoint.corpus import Corpus
from tests.checkpoint.lexicon import Concept, Language
from tests.checkpoint.texts import Text, held_out
from tests.checkpoint.verdicts import ENTAILMENT, group, judge

PARTS = 2


def _sentences(language: Language, concept: Concept, part: int) -> list[str]:
    """The held-out sentences of a concept that are in this part."""
    return [
        opening + language.join + ending + language.stop
        for i, opening in enumerate(concept.openings)
        for j, ending in enumerate(concept.endings)
        if held_out(language.code, concept.name, i, j)
        and zlib.crc32(repr((language.code, concept.name, i, j, "part")).encode()) % PARTS == part
    ]


def _label(corpus: Corpus, concept: str) -> str:
    return corpus.languages["en"].concepts[concept].labels[0]


def competing(part: int, kind: str = "topic", seed: int = 0) -> Iterator[dict[str, Any]]:
    """Texts about one concept of a group each, in all languages, once bare and once in a held-out frame."""
    corpus = Corpus(Random(seed), evaluation=True)
    template = corpus.languages["en"].templates[-1]
    names = [name for name in corpus.languages["en"].concepts if group(name) == kind]
    for code, language in corpus.languages.items():
        for name in names:
            for sentence in _sentences(language, language.concepts[name], part):
                for text in (sentence, language.frames[-1].replace("{}", sentence)):
                    yield {
                        "text": text,
                        "labels": [_label(corpus, each) for each in names],
                        "expected": _label(corpus, name),
                        "language": code,
                        "hypothesis_template": template,
                    }


def apart(part: int, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Texts about one concept or two; the candidates are all of which it is beyond doubt whether they hold."""
    corpus = Corpus(Random(seed + part), evaluation=True)
    template = corpus.languages["en"].templates[-1]
    seen: set[str] = set()
    while len(seen) < count:
        language = corpus.languages[corpus.rng.choice(corpus.codes)]
        drawn = corpus.short(language)
        sentences = {name: _sentences(language, language.concepts[name], part) for name in sorted(drawn.concepts)}
        if not all(sentences.values()):
            continue
        joined = language.gap.join(corpus.rng.choice(own) for own in sentences.values())
        text = corpus.frame(language, Text(joined, parts=((len(joined), frozenset()),))).text
        if text in seen:
            continue
        seen.add(text)
        judged = {name: judge(drawn.concepts, name) for name in language.concepts}
        yield {
            "text": text,
            "labels": [_label(corpus, name) for name, verdict in judged.items() if verdict is not None],
            "expected": [_label(corpus, name) for name, verdict in judged.items() if verdict == ENTAILMENT],
            "multi_label": True,
            "language": language.code,
            "hypothesis_template": template,
        }


def main() -> None:
    """Write a part as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="JSON lines")
    parser.add_argument("--part", type=int, choices=range(PARTS), default=0)
    parser.add_argument("--apart", type=int, metavar="N", help="so many texts whose labels are judged each on its own")
    arguments = parser.parse_args()
    made = competing(arguments.part) if arguments.apart is None else apart(arguments.part, arguments.apart)
    lines = [json.dumps(one, ensure_ascii=False) + "\n" for one in made]
    arguments.file.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines):,} examples")


if __name__ == "__main__":
    main()
