"""Premise-hypothesis pairs made from the lexicon, and the line between training and held-out text.

Held out, in every language: one in five (opening, ending) combinations of each concept, one in five (subject, activity,
relation) combinations, one in five pairs of situations told together, the last two sentence frames and the last
hypothesis template. Single words, whole sentences and labels are shared by both sides: what is measured is the
recombination of known words, not unknown vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tests.checkpoint.lexicon import Activity, Concept, Language, languages

LABELS = ("contradiction", "neutral", "entailment")  # the order of joeddav/xlm-roberta-large-xnli
CONTRADICTION, NEUTRAL, ENTAILMENT = range(3)

HELD_OUT_FRAMES = 2
DEFAULT_TEMPLATE = "This example is {}."  # transformers' default, whatever the language of text and label

UNWANTED = frozenset({"spam", "threat", "insult", "adult"})
# What a text on these topics states is plain fact, neither praise nor complaint.
FACTUAL = frozenset({"politics", "finance", "science", "education", "technology", "travel", "sport", "weather"})
# Concepts that a fair reader may both see in one text: neither is taught as wrong for the other.
CLOSE = frozenset(
    frozenset(pair)
    for pair in (
        ("spam", "finance"),
        ("spam", "technology"),
        ("spam", "health"),
        ("science", "technology"),
        ("science", "education"),
        ("science", "health"),
        ("food", "health"),
        ("politics", "finance"),
        ("travel", "weather"),
        ("insult", "negative"),
        ("spam", "positive"),
    )
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One example: `label` is the index of its class in `LABELS`.

    `told` names what the premise means and `claimed` what the hypothesis means, by the names of `vectors.meanings`;
    empty where they have no such name. `about_label` tells a label in a template from a sentence.
    """

    premise: str
    hypothesis: str
    label: int
    told: frozenset[str] = frozenset()
    claimed: frozenset[str] = frozenset()
    about_label: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """A text, the concepts it is about and the keywords it is made of."""

    text: str
    concepts: frozenset[str]
    words: frozenset[str] = frozenset()


def held_out(*parts: object) -> bool:
    """Whether the combination `parts` is kept from training: one in five, the same in every run."""
    return zlib.crc32(repr(parts).encode()) % 5 == 0


def capital(text: str) -> str:
    """`text` with its first letter in upper case and the rest as it was."""
    return text[:1].upper() + text[1:]


class Corpus:
    """Draws texts and pairs; `evaluation` chooses the side of the held-out line."""

    def __init__(self, rng: Random, *, evaluation: bool) -> None:
        self.rng = rng
        self.evaluation = evaluation
        self.languages = languages()
        self.codes = tuple(self.languages)

    def frame(self, language: Language, text: str) -> str:
        """`text` in a sentence frame of the language, or bare."""
        frames = language.frames[-HELD_OUT_FRAMES:] if self.evaluation else language.frames[:-HELD_OUT_FRAMES]
        return self.rng.choice(frames).replace("{}", text) if self.rng.random() < 0.5 else text

    def hypothesis(self, code: str, text_code: str, label: str) -> str:
        """A hypothesis for `label` (a word of language `code`) about a text in language `text_code`."""
        if self.evaluation:
            template = self.languages[code].templates[-1]
        else:
            draw = self.rng.random()
            own = self.languages[text_code if draw > 0.85 else code].templates[:-1]
            template = "{}" if draw < 0.03 else DEFAULT_TEMPLATE if draw < 0.25 else self.rng.choice(own)
        if not self.evaluation and self.rng.random() < 0.15:
            label = capital(label)
        return template.format(label)

    def composed(self, language: Language, concept: Concept) -> str:
        """An opening with an ending, from this side of the held-out line."""
        while True:
            opening = self.rng.randrange(len(concept.openings))
            ending = self.rng.randrange(len(concept.endings))
            if held_out(language.code, concept.name, opening, ending) == self.evaluation:
                return concept.openings[opening] + language.join + concept.endings[ending] + language.stop

    def text(self, language: Language, concept: Concept, *, framed: bool = True) -> Text:
        """A text about one concept: a composed sentence, or in training also a whole sentence or keywords."""
        draw = 0.0 if self.evaluation else self.rng.random()
        words: frozenset[str] = frozenset()
        if draw < 0.4:
            text = self.composed(language, concept)
        elif draw < 0.7:
            text = self.rng.choice(concept.sentences)
        else:
            chosen = self.rng.sample(concept.words, self.rng.randint(1, 4))
            words = frozenset(chosen)
            text = capital(language.comma.join(chosen)) + (language.stop if self.rng.random() < 0.5 else "")
        return Text(self.frame(language, text) if framed else text, frozenset({concept.name}), words)

    def texts(self, language: Language) -> Text:
        """A text about one concept, or now and then about two."""
        concepts = language.concepts
        names = tuple(concepts)
        weights = [1 if concept.group == "topic" else 2 for concept in concepts.values()]
        (first,) = self.rng.choices(names, weights)
        draw = self.rng.random()
        if draw < 0.75:
            return self.text(language, concepts[first])
        if draw < 0.85:  # everyday facts say nothing about topics, sentiment or urgency
            situation = self.rng.choice(language.situations)
            parts = [self.text(language, concepts[first], framed=False).text, situation.premise]
            self.rng.shuffle(parts)
            return Text(language.gap.join(parts), frozenset({first}))
        second = self.rng.choice(names)
        if concepts[first].group == concepts[second].group != "topic":
            return self.text(language, concepts[first])
        one = self.text(language, concepts[first], framed=False)
        two = self.text(language, concepts[second], framed=False)
        return Text(language.gap.join((one.text, two.text)), one.concepts | two.concepts, one.words | two.words)

    def other(self, code: str, share: float) -> str:
        """`code`, or with probability `share` another language."""
        return self.rng.choice(self.codes) if self.rng.random() < share else code

    def label_of(self, code: str, concept: str) -> str:
        """A name of the concept in a language: the most usual one half of the time."""
        labels = self.languages[code].concepts[concept].labels
        return labels[0] if self.rng.random() < 0.4 else self.rng.choice(labels)

    def judge(self, text: Text, concept: str) -> int | None:
        """The class of "this text is `concept`", or None where a fair reader could disagree."""
        groups = {self.languages["en"].concepts[name].group for name in text.concepts}
        group = self.languages["en"].concepts[concept].group
        if concept in text.concepts:
            return ENTAILMENT
        if any(frozenset({concept, name}) in CLOSE for name in text.concepts):
            return None
        if group in groups:
            return CONTRADICTION
        if concept in UNWANTED:
            return CONTRADICTION
        if group == "topic":
            return None
        return NEUTRAL if text.concepts <= FACTUAL else None

    def label_pairs(self, code: str) -> Iterator[Pair]:
        """Pairs over one text: a right label, wrong ones, and now and then one the text leaves open."""
        language = self.languages[code]
        text = self.texts(language)
        names = tuple(language.concepts)

        def pair(label_code: str, label: str, verdict: int, name: str = "") -> Pair:
            claimed = frozenset({name} if name else ())
            return Pair(text.text, self.hypothesis(label_code, code, label), verdict, text.concepts, claimed, True)

        for name in sorted(text.concepts):
            own = self.other(code, 0.4)
            yield pair(own, self.label_of(own, name), ENTAILMENT, name)
        # As many wrong labels as right ones: where most labels are wrong, "contradiction" is a fair guess for every
        # pair, and the model rests on it long before it compares anything.
        wrong = [name for name in names if name not in text.concepts]
        self.rng.shuffle(wrong)
        if self.rng.random() < 0.5:  # the opposite of a sentiment or an urgency is the hard one
            groups = {language.concepts[name].group for name in text.concepts}
            wrong.sort(key=lambda name: language.concepts[name].group not in groups)
        verdicts = [(name, verdict) for name in wrong if (verdict := self.judge(text, name)) is not None]
        for name, verdict in verdicts[: len(text.concepts)]:
            label_code = self.other(code, 0.4)
            yield pair(label_code, self.label_of(label_code, name), verdict, name)
        label_code = self.other(code, 0.4)
        yield from (pair(label_code, label, verdict) for label, verdict in self.loose_label(text, label_code))

    def loose_label(self, text: Text, code: str) -> Iterator[tuple[str, int]]:
        """At most one label outside the concepts: harmless, neutral, a keyword, or a subject the lexicon lacks."""
        language = self.languages[code]
        draw = self.rng.random()
        if draw < 0.15:
            yield self.rng.choice(language.harmless), CONTRADICTION if text.concepts & UNWANTED else ENTAILMENT
        elif draw < 0.25:
            if text.concepts & {"positive", "negative"}:
                yield self.rng.choice(language.neutral), CONTRADICTION
            elif text.concepts <= FACTUAL:
                yield self.rng.choice(language.neutral), ENTAILMENT
        elif draw < 0.4:
            if language.concepts.keys() - text.concepts:
                yield self.rng.choice(language.others), CONTRADICTION
        elif draw < 0.55:
            if text.words:
                yield self.rng.choice(sorted(text.words)), ENTAILMENT
            else:
                concept = language.concepts[self.rng.choice(tuple(language.concepts))]
                if concept.group == "topic" and self.judge(text, concept.name) == CONTRADICTION:
                    yield self.rng.choice(concept.words), CONTRADICTION

    def activity_pair(self, code: str) -> Pair:
        """Three-class NLI about what somebody does; the hypothesis is now and then in another language."""
        language = self.languages[code]
        while True:
            row = self.rng.randrange(len(language.activities))
            who = self.rng.randrange(len(language.subjects))
            relation = self.rng.choice(RELATIONS)
            if held_out(code, row, who, relation) == self.evaluation:
                break
        other = self.languages[self.other(code, 0.15)]
        given, concluded, label = relation
        subject = language.subjects[who]
        teller = f"subject {who}"
        if given == "someone":
            subject, teller, given = language.someone, "someone", "statement"
        whose = other.subjects[who]
        claimant = f"subject {who}"
        if concluded.startswith("other "):  # the same said of somebody else: nothing follows
            concluded = concluded.removeprefix("other ")
            whoever = (who + self.rng.randrange(1, len(other.subjects))) % len(other.subjects)
            whose, claimant = other.subjects[whoever], f"subject {whoever}"
        elif concluded.startswith("someone "):
            concluded = concluded.removeprefix("someone ")
            whose, claimant = other.someone, "someone"
        premise = said(language, subject, language.activities[row], given)
        hypothesis = said(other, whose, other.activities[row], concluded)
        told = frozenset({teller, meaning(row, given)})
        claimed = frozenset({claimant, meaning(row, concluded)})
        return Pair(self.around(language, premise), hypothesis, label, told, claimed)

    def around(self, language: Language, premise: str) -> str:
        """The premise in a frame, beside an unrelated fact, or bare."""
        if not self.evaluation and self.rng.random() < 0.2:
            parts = [premise, self.rng.choice(language.situations).premise]
            self.rng.shuffle(parts)
            return language.gap.join(parts)
        return self.frame(language, premise)

    def situation_pair(self, code: str) -> Pair:
        """Three-class NLI over whole sentences, told alone or two together."""
        language = self.languages[code]
        count = len(language.situations)
        while True:
            row, beside = self.rng.randrange(count), self.rng.randrange(count)
            if row != beside and held_out(code, "situations", row, beside) == self.evaluation:
                break
        here, there = language.situations[row], language.situations[beside]
        text, told = here.premise, {f"situation {row}"}
        if self.evaluation or self.rng.random() < 0.5:
            parts = [here.premise, there.premise]
            if self.rng.random() < 0.5:
                parts.reverse()
            text, told = language.gap.join(parts), {f"situation {row}", f"situation {beside}"}
        other = self.languages[self.other(code, 0.15)]
        right = other.situations[row]
        draw = self.rng.randrange(12)
        name = f"situation {row}"
        if draw < 4:
            hypothesis, label = right.entailed if draw else right.premise, ENTAILMENT
        elif draw == 4 and not self.evaluation:  # the other way about
            text, told = language.situations[row].contradicted, {f"not situation {row}"}
            hypothesis, label = self.rng.choice((right.entailed, right.premise)), CONTRADICTION
        elif draw < 8:
            hypothesis, label, name = right.contradicted, CONTRADICTION, f"not situation {row}"
        elif draw < 10:
            hypothesis, label, name = right.detail, NEUTRAL, f"detail of situation {row}"
        else:
            elsewhere = self.rng.choice([n for n in range(count) if n not in {row, beside}])
            third, label, name = other.situations[elsewhere], NEUTRAL, f"situation {elsewhere}"
            hypothesis = self.rng.choice((third.premise, third.entailed))
        return Pair(self.frame(language, text), hypothesis, label, frozenset(told), frozenset({name}))

    def pairs(self) -> Iterator[Pair]:
        """Training pairs without end, over all languages evenly: zero-shot labels and three-class NLI."""
        while True:
            code = self.rng.choice(self.codes)
            yield from self.label_pairs(code)
            yield self.activity_pair(code)
            yield self.situation_pair(code)

    def nli(self, code: str) -> Pair:
        """One three-class pair in one language."""
        return self.activity_pair(code) if self.rng.random() < 0.5 else self.situation_pair(code)


# (what the premise says, what the hypothesis says, class); a class is listed as often as it should be drawn.
RELATIONS: tuple[tuple[str, str, int], ...] = (
    ("statement", "paraphrase", ENTAILMENT),
    ("statement", "someone paraphrase", ENTAILMENT),
    ("statement", "someone statement", ENTAILMENT),
    ("opposite", "negation", ENTAILMENT),
    ("statement", "negation", CONTRADICTION),
    ("statement", "opposite", CONTRADICTION),
    ("negation", "statement", CONTRADICTION),
    ("opposite", "paraphrase", CONTRADICTION),
    ("statement", "detail", NEUTRAL),
    ("statement", "other statement", NEUTRAL),
    ("statement", "other opposite", NEUTRAL),
    ("someone", "other statement", NEUTRAL),
)


def meaning(row: int, what: str) -> str:
    """The name in `vectors.meanings` of what the field `what` of activity `row` says."""
    if what in {"negation", "opposite"}:
        return f"not activity {row}"
    return f"detail of activity {row}" if what == "detail" else f"activity {row}"


def said(language: Language, subject: str, activity: Activity, what: str) -> str:
    """The sentence in which `subject` does what the field `what` of the activity says."""
    predicate: str = getattr(activity, what)
    return subject + language.join + predicate + language.stop
