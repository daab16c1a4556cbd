"""Texts made from the lexicon, from a few keywords to passages as long as the model's window, and what is in them.

Held out, in every language: one in five (opening, ending) combinations of each concept, the last two sentence frames,
and one in five of the everyday sentences that passages are filled with. Single words, whole sentences and labels are
shared by both sides: what is measured is the recombination of known words, not unknown vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random

from tests.checkpoint.lexicon import BOUNDARY, Concept, Language, languages
from tests.checkpoint.verdicts import group

HELD_OUT_FRAMES = 2
MARKS = ("?", "？", "؟")  # of a question; Thai has none
GREEK_MARK = ";"
THAI_QUESTION = ("ไหม", "อะไร", "อย่างไร", "ไหน", "เมื่อไร", "ใคร", "เท่าไร", "ทำไม", "กี่")
# How many sentences a passage has, and how often.
SENTENCES: tuple[tuple[range, int], ...] = (
    (range(2, 5), 55),
    (range(5, 11), 30),
    (range(11, 21), 11),
    (range(21, 46), 4),
)
# What everyday sentences might be taken for beside what they say, by the row of the lexicon's NLI part.
SITUATION_TOUCHES: dict[int, str] = {
    0: "weather positive",
    1: "entertainment positive negative",
    2: "delivery",
    3: "travel negative",
    4: "weather",
    8: "entertainment travel finance negative",
    9: "entertainment travel education food finance",
    10: "education",
    11: "sport",
    12: "travel",
    15: "finance",
}
ACTIVITY_TOUCHES: dict[int, str] = {
    0: "travel",
    1: "food health",
    2: "sport health",
    3: "education entertainment",
    4: "food",
    5: "entertainment education",
    6: "travel",
    7: "travel",
    8: "health negative",
    9: "positive negative",
    10: "finance travel",
    11: "sport travel",
    12: "food billing finance",
}
SUBJECT_TOUCHES: dict[int, str] = {3: "education", 5: "health", 7: "education"}
NOBODY: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Text:
    """A text, the concepts it is about, the keywords it is made of, and what else it might be taken for.

    `parts` are its sentences: where each ends, in characters, and what it means by the names of `vectors.meanings`;
    nothing where it means none of them.
    """

    text: str
    concepts: frozenset[str] = NOBODY
    words: frozenset[str] = NOBODY
    touched: frozenset[str] = NOBODY
    parts: tuple[tuple[int, frozenset[str]], ...] = ()


def sentence(
    text: str,
    meanings: frozenset[str],
    *,
    concepts: frozenset[str] = NOBODY,
    words: frozenset[str] = NOBODY,
    touched: frozenset[str] = NOBODY,
) -> Text:
    """A text of one part."""
    return Text(text, concepts, words, touched, ((len(text), meanings),))


def joined(texts: Sequence[Text], gap: str) -> Text:
    """The texts one after the other."""
    parts: list[tuple[int, frozenset[str]]] = []
    start = 0
    for text in texts:
        parts.extend((start + end, meanings) for end, meanings in text.parts)
        start += len(text.text) + len(gap)
    return Text(
        gap.join(text.text for text in texts),
        frozenset().union(*(text.concepts for text in texts)),
        frozenset().union(*(text.words for text in texts)),
        frozenset().union(*(text.touched for text in texts)),
        tuple(parts),
    )


def held_out(*parts: object) -> bool:
    """Whether the combination `parts` is kept from training: one in five, the same in every run."""
    return zlib.crc32(repr(parts).encode()) % 5 == 0


def capital(text: str) -> str:
    """`text` with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


def asking(language: Language, text: Text) -> Text:
    """`text`, known as a question where it shows one; Thai has no mark, so there it only might be one."""
    if language.code == "th":
        if "question" not in text.concepts and any(word in text.text for word in THAI_QUESTION):
            return replace(text, touched=text.touched | {"question"})
        return text
    marks = (*MARKS, GREEK_MARK) if language.code == "el" else MARKS
    if "question" in text.concepts or not any(mark in text.text for mark in marks):
        return text
    parts = tuple((end, meanings | {"question"}) for end, meanings in text.parts)
    return replace(text, concepts=text.concepts | {"question"}, parts=parts)


def everyday(language: Language) -> list[Text]:
    """Every sentence of the NLI part that stands alone, with what it means."""
    found = []
    for row, situation in enumerate(language.situations):
        touched = frozenset(SITUATION_TOUCHES.get(row, "").split())
        for text, meaning in (
            (situation.premise, f"situation {row}"),
            (situation.entailed, f"situation {row}"),
            (situation.contradicted, f"not situation {row}"),
            (situation.detail, f"detail of situation {row}"),
        ):
            found.append(sentence(text, frozenset({meaning}), touched=touched))
    for row, activity in enumerate(language.activities):
        for who, subject in enumerate(language.subjects):
            touched = frozenset(f"{ACTIVITY_TOUCHES.get(row, '')} {SUBJECT_TOUCHES.get(who, '')}".split())
            for predicate, meaning in (
                (activity.statement, f"activity {row}"),
                (activity.negation, f"not activity {row}"),
                (activity.detail, f"detail of activity {row}"),
            ):
                text = subject + language.join + predicate + language.stop
                found.append(sentence(text, frozenset({f"subject {who}", meaning}), touched=touched))
    return found


@cache
def fillers(code: str, *, evaluation: bool) -> tuple[Text, ...]:
    """The everyday sentences of one side of the held-out line."""
    language = languages()[code]
    return tuple(text for text in everyday(language) if held_out(code, "filler", text.text) == evaluation)


@cache
def plain_words(code: str) -> tuple[str, ...]:
    """Words of everyday sentences that might be taken for nothing in particular."""
    language = languages()[code]
    marked = {text.replace(BOUNDARY, ""): text for text in language.strings}
    rows = [marked[each.premise] for row, each in enumerate(language.situations) if row not in SITUATION_TOUCHES]
    rows += [marked[subject] for subject in language.subjects]
    rows += [marked[each.statement] for row, each in enumerate(language.activities) if row not in ACTIVITY_TOUCHES]
    words = " ".join(rows).replace(BOUNDARY, " ").split()
    return tuple(dict.fromkeys(word.strip(".,。، ।۔") for word in words if word.strip(".,。، ।۔")))


@cache
def all_words(code: str) -> tuple[str, ...]:
    """Every word of a language of at least two letters."""
    words = " ".join(languages()[code].strings).replace(BOUNDARY, " ").split()
    return tuple(dict.fromkeys(word for word in words if len(word) > 1 and word.isalpha()))


class Texts:
    """Draws texts; `evaluation` chooses the side of the held-out line."""

    def __init__(self, rng: Random, *, evaluation: bool) -> None:
        self.rng = rng
        self.evaluation = evaluation

    def frame(self, language: Language, text: Text) -> Text:
        """`text` in a sentence frame of the language, or bare."""
        frames = language.frames[-HELD_OUT_FRAMES:] if self.evaluation else language.frames[:-HELD_OUT_FRAMES]
        if self.rng.random() >= 0.5:
            return text
        frame = self.rng.choice(frames)
        whole = frame.replace("{}", text.text)
        shift = frame.index("{}")
        parts = tuple((end + shift, meanings) for end, meanings in text.parts)
        return asking(language, replace(text, text=whole, parts=(*parts[:-1], (len(whole), parts[-1][1]))))

    def composed(self, language: Language, concept: Concept) -> str:
        """An opening with an ending, from this side of the held-out line."""
        while True:
            opening = self.rng.randrange(len(concept.openings))
            ending = self.rng.randrange(len(concept.endings))
            if held_out(language.code, concept.name, opening, ending) == self.evaluation:
                text = concept.openings[opening] + language.join + concept.endings[ending]
                return text if text.endswith((*MARKS, GREEK_MARK)) else text + language.stop

    def made_up(self, code: str) -> str:
        """A word that does not exist: the first half of one with the second half of another."""
        one, two = self.rng.sample(all_words(code), 2)
        return one[: (len(one) + 1) // 2] + two[len(two) // 2 :]

    def salad(self, language: Language, count: int, keywords: Sequence[str] = ()) -> str:
        """Plain and made-up words without sense, and the keywords at random places between them."""
        words = [
            self.made_up(language.code) if self.rng.random() < 0.4 else self.rng.choice(plain_words(language.code))
            for _ in range(count)
        ]
        for keyword in keywords:
            words.insert(self.rng.randint(0, len(words)), keyword)
        return capital(language.join.join(words)) + language.stop

    def text(self, language: Language, concept: Concept, *, framed: bool = True) -> Text:
        """A text about one concept: a composed sentence, or in training also a whole sentence or keywords."""
        draw = 0.0 if self.evaluation else self.rng.random()
        words: frozenset[str] = NOBODY
        if draw < 0.37:
            text = self.composed(language, concept)
        elif draw < 0.65:
            text = self.rng.choice(concept.sentences)
        elif draw < 0.85:
            chosen = self.rng.sample(concept.words, self.rng.randint(1, 4))
            words = frozenset(chosen)
            text = capital(language.comma.join(chosen)) + (language.stop if self.rng.random() < 0.5 else "")
        else:
            chosen = self.rng.sample(concept.words, self.rng.randint(1, 2))
            words = frozenset(chosen)
            text = self.salad(language, self.rng.randint(3, 9), chosen)
        about = frozenset({concept.name})
        made = asking(language, sentence(text, about, concepts=about, words=words))
        return self.frame(language, made) if framed else made

    def filler(self, language: Language) -> Text:
        """A sentence that is about no concept: an everyday fact, or in training also a salad of words."""
        if not self.evaluation and self.rng.random() < 0.2:
            return sentence(self.salad(language, self.rng.randint(4, 12)), NOBODY)
        return self.rng.choice(fillers(language.code, evaluation=self.evaluation))

    def drawn(self, language: Language) -> str:
        """The name of a concept; a sentiment, an urgency or an intent as often as two topics."""
        names = tuple(language.concepts)
        return self.rng.choices(names, [1 if group(name) == "topic" else 2 for name in names])[0]

    def short(self, language: Language) -> Text:
        """A text about one concept, or now and then about two."""
        concepts = language.concepts
        first = self.drawn(language)
        draw = self.rng.random()
        if draw < 0.75:
            return self.text(language, concepts[first])
        one = self.text(language, concepts[first], framed=False)
        if draw < 0.85:  # everyday facts say nothing about topics, sentiment or urgency
            texts = [one, self.filler(language)]
            self.rng.shuffle(texts)
            return joined(texts, language.gap)
        second = self.rng.choice(tuple(concepts))
        if group(first) == group(second) != "topic":
            return self.text(language, concepts[first])
        return joined([one, self.text(language, concepts[second], framed=False)], language.gap)

    def about(self, language: Language, name: str, count: int) -> list[Text]:
        """Sentences about one concept."""
        concept = language.concepts[name]
        return [self.text(language, concept, framed=self.rng.random() < 0.2) for _ in range(count)]

    def passage(self, language: Language) -> Text:
        """Several sentences: one concept or more among everyday facts or within another topic, in any place."""
        (lengths,) = self.rng.choices([each for each, _ in SENTENCES], [often for _, often in SENTENCES])
        count = self.rng.choice(lengths)
        topics = [name for name in language.concepts if group(name) == "topic"]
        first, second = self.drawn(language), self.drawn(language)
        theme, other = self.rng.sample(topics, 2)
        draw = self.rng.random()
        if draw < 0.4:  # planted among everyday facts
            texts = self.about(language, first, 1 if self.rng.random() < 0.8 else 2)
            if self.rng.random() < 0.3:
                texts += self.about(language, second, 1)
        elif draw < 0.65:  # planted among another topic
            texts = self.about(language, first, 1) + self.about(
                language, theme, max(1, round(count * self.rng.uniform(0.5, 1)))
            )
        elif draw < 0.77:  # two topics by halves
            texts = self.about(language, theme, -(-count // 2)) + self.about(language, other, count // 2)
        elif draw < 0.85:
            texts = self.about(language, theme, max(1, round(count * self.rng.uniform(0.4, 1))))
        elif draw < 0.95:
            texts = [
                text
                for name in self.rng.sample(tuple(language.concepts), self.rng.randint(3, 5))
                for text in self.about(language, name, 1)
            ]
        else:
            texts = []
        texts += [self.filler(language) for _ in range(count - len(texts))]
        if self.rng.random() < 0.8:
            self.rng.shuffle(texts)
        return joined(self.cut(texts), language.gap)

    def cut(self, texts: list[Text]) -> list[Text]:
        """The texts, now and then beginning and ending in the middle of a sentence, as a window does."""
        for at, part in ((0, slice(1, None)), (len(texts) - 1, slice(None, 1))):
            text = texts[at]
            if self.rng.random() < 0.3 and not text.concepts and len(text.text) > 8:
                half = len(text.text) // 2
                rest = "".join((text.text[:half], text.text[half:])[part])
                texts[at] = sentence(rest, NOBODY, touched=text.touched)
        return texts

    def planted(self, language: Language, name: str, count: int, place: int | None = None) -> tuple[list[Text], int]:
        """`count` sentences of which one is about the concept, and its place among them."""
        place = self.rng.randrange(count) if place is None else place
        texts = [self.filler(language) for _ in range(count - 1)]
        texts.insert(place, self.text(language, language.concepts[name], framed=False))
        return texts, place
