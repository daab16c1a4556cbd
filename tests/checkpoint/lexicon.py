"""The lexicon: what can be said in each language, read from `languages/<code>.toml`.

A list in a file is one string whose items are separated by ``|``. A language whose words are not separated by spaces
(Chinese, Thai) is marked ``segmented = true``: its file puts a space between words, which is taken out of the text and
kept for the tokenizer's trainer, and ``_`` where the text has a space.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

DIRECTORY = Path(__file__).parent / "languages"
BOUNDARY = "\u241f"  # SYMBOL FOR UNIT SEPARATOR: a word boundary that the text does not show


@dataclass(frozen=True, slots=True)
class Concept:
    """What a text can be about: a topic, a sentiment, a degree of urgency or an intent.

    A composed sentence is one of `openings` followed by one of `endings`; `sentences` stand alone; `words` are
    keywords, in the form a dictionary lists them. `labels` are names for the concept, the most usual first.
    """

    name: str
    group: str
    labels: tuple[str, ...]
    openings: tuple[str, ...]
    endings: tuple[str, ...]
    sentences: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Activity:
    """Predicates of one subject: the second follows from the first, the next two contradict it, the last is open."""

    statement: str
    paraphrase: str
    negation: str
    opposite: str
    detail: str


@dataclass(frozen=True, slots=True)
class Situation:
    """Whole sentences: `entailed` follows from `premise`, `contradicted` cannot be true with it, `detail` is open."""

    premise: str
    entailed: str
    contradicted: str
    detail: str


@dataclass(frozen=True, slots=True)
class Language:
    """All that is said in one language. Rows of `activities` and `situations` correspond between languages.

    `join` stands between an opening and its ending, `gap` between two sentences. `parents` are the names of labels that
    stand above others in a tree. `strings` is every text of the file with `BOUNDARY` between words that no space
    separates, for the tokenizer's trainer.
    """

    code: str
    name: str
    join: str
    gap: str
    stop: str
    comma: str
    templates: tuple[str, ...]
    frames: tuple[str, ...]
    harmless: tuple[str, ...]
    neutral: tuple[str, ...]
    others: tuple[str, ...]
    concepts: dict[str, Concept]
    parents: dict[str, tuple[str, ...]]
    someone: str
    subjects: tuple[str, ...]
    activities: tuple[Activity, ...]
    situations: tuple[Situation, ...]
    strings: tuple[str, ...]


def load(path: Path) -> Language:
    """Read one language file.

    Raises:
        ValueError: a row of the NLI part has the wrong number of items.
        KeyError: a section is missing.
    """
    data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    segmented: bool = data.get("segmented", False)

    strings: list[str] = []

    def text(item: str) -> str:
        marked = item.strip().replace(" ", BOUNDARY).replace("_", " ") if segmented else item.strip()
        strings.append(marked)
        return marked.replace(BOUNDARY, "")

    def items(value: str) -> tuple[str, ...]:
        return tuple(text(item) for item in value.split("|"))

    def row(value: str, count: int) -> tuple[str, ...]:
        parts = items(value)
        if len(parts) != count or not all(parts):
            raise ValueError(f"{path.name}: {value!r} has {len(parts)} items, not {count}")
        return parts

    concepts = {
        name: Concept(name, group, **{field: items(value) for field, value in fields.items()})
        for group in ("topic", "sentiment", "urgency", "intent")
        for name, fields in data[group].items()
    }
    nli = data["nli"]
    return Language(
        code=path.stem,
        name=data["name"],
        join=data["join"],
        gap=data.get("gap", " "),
        stop=data["stop"],
        comma=data["comma"],
        templates=items(data["templates"]),
        frames=items(data["frames"]),
        harmless=items(data["harmless"]),
        neutral=items(data["neutral"]),
        others=items(data["others"]),
        concepts=concepts,
        parents={name: items(value) for name, value in data["parent"].items()},
        someone=text(nli["someone"]),
        subjects=items(nli["subjects"]),
        activities=tuple(Activity(*row(value, 5)) for value in nli["activities"]),
        situations=tuple(Situation(*row(value, 4)) for value in nli["situations"]),
        strings=tuple(strings),
    )


@cache
def languages() -> dict[str, Language]:
    """Every language by its ISO 639-1 code, in the order of the codes.

    Raises:
        ValueError: the languages differ in their concepts or in the number of NLI rows.
    """
    loaded = {path.stem: load(path) for path in sorted(DIRECTORY.glob("*.toml"))}
    shapes = {
        code: (
            sorted(each.concepts),
            sorted(each.parents),
            len(each.subjects),
            len(each.activities),
            len(each.situations),
        )
        for code, each in loaded.items()
    }
    if len({repr(shape) for shape in shapes.values()}) != 1:
        raise ValueError(f"languages do not correspond: {shapes}")
    return loaded
