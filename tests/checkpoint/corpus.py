"""Premise-hypothesis pairs made from the lexicon, and the line between training and held-out text.

Held out, in every language: what `texts` holds out, one in five (subject, activity, relation) combinations, one in five
pairs of situations told together, and the last hypothesis template. Single words, whole sentences and labels are shared
by both sides: what is measured is the recombination of known words, not unknown vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from tests.checkpoint.lexicon import Activity, Language, languages
from tests.checkpoint.texts import NOBODY, Text, Texts, capital, held_out, joined, sentence
from tests.checkpoint.verdicts import (
    CONTRADICTION,
    ENTAILMENT,
    FACTUAL,
    NEUTRAL,
    PARENTS,
    UNWANTED,
    group,
    judge,
    judge_parent,
)

DEFAULT_TEMPLATE = "This example is {}."  # transformers' default, whatever the language of text and label


@dataclass(frozen=True, slots=True)
class Pair:
    """One example: `label` is the index of its class in `verdicts.LABELS`.

    `parts` are the premise's sentences with what they mean, as in `Text`; `claimed` names what the hypothesis means, by
    the names of `vectors.meanings`; empty where they have no such name. `about_label` tells a label in a template from
    a sentence.
    """

    premise: str
    hypothesis: str
    label: int
    parts: tuple[tuple[int, frozenset[str]], ...] = ()
    claimed: frozenset[str] = NOBODY
    about_label: bool = False


class Corpus(Texts):
    """Draws pairs; `evaluation` chooses the side of the held-out line.

    `passages` is the share of draws that a passage is added to.
    """

    def __init__(self, rng: Random, *, evaluation: bool, passages: float = 0.0) -> None:
        super().__init__(rng, evaluation=evaluation)
        self.passages = passages
        self.languages = languages()
        self.codes = tuple(self.languages)

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

    def other(self, code: str, share: float) -> str:
        """`code`, or with probability `share` another language."""
        return self.rng.choice(self.codes) if self.rng.random() < share else code

    def label_of(self, code: str, concept: str) -> str:
        """A name of the concept in a language: the most usual one half of the time."""
        labels = self.languages[code].concepts[concept].labels
        return labels[0] if self.rng.random() < 0.4 else self.rng.choice(labels)

    def label_pairs(self, code: str, text: Text) -> Iterator[Pair]:
        """Pairs over one text: right labels, wrong ones, and now and then one the text leaves open."""
        language = self.languages[code]

        def pair(label_code: str, label: str, verdict: int, claimed: frozenset[str] = NOBODY) -> Pair:
            return Pair(text.text, self.hypothesis(label_code, code, label), verdict, text.parts, claimed, True)

        right = sorted(text.concepts)
        for name in self.rng.sample(right, min(3, len(right))):
            own = self.other(code, 0.4)
            yield pair(own, self.label_of(own, name), ENTAILMENT, frozenset({name}))
        # As many wrong labels as right ones: where most labels are wrong, "contradiction" is a fair guess for every
        # pair, and the model rests on it long before it compares anything.
        wrong = [name for name in language.concepts if name not in text.concepts]
        self.rng.shuffle(wrong)
        if self.rng.random() < 0.5:  # the opposite of a sentiment or an urgency is the hard one
            groups = {group(name) for name in text.concepts}
            wrong.sort(key=lambda name: group(name) not in groups)
        verdicts = [
            (name, verdict) for name in wrong if (verdict := judge(text.concepts, name, text.touched)) is not None
        ]
        for name, verdict in verdicts[: min(3, max(1, len(right)))]:
            label_code = self.other(code, 0.4)
            yield pair(label_code, self.label_of(label_code, name), verdict, frozenset({name}))
        if self.rng.random() < 0.4:
            label_code = self.other(code, 0.4)
            parent = self.parent_of(text)
            verdict = judge_parent(text.concepts, parent, text.touched)
            label = self.rng.choice(self.languages[label_code].parents[parent])
            yield pair(label_code, label, verdict, PARENTS[parent].children)
        label_code = self.other(code, 0.4)
        yield from (pair(label_code, label, verdict) for label, verdict in self.loose_label(text, label_code))

    def parent_of(self, text: Text) -> str:
        """A label above others: half of the time one that the text is under, if there is any."""
        over = [name for name, parent in PARENTS.items() if parent.children & text.concepts]
        return self.rng.choice(over if over and self.rng.random() < 0.5 else tuple(PARENTS))

    def loose_label(self, text: Text, code: str) -> Iterator[tuple[str, int]]:
        """At most one label outside the concepts: harmless, neutral, a keyword, or what the lexicon lacks."""
        language = self.languages[code]
        draw = self.rng.random()
        if draw < 0.15:
            yield self.rng.choice(language.harmless), CONTRADICTION if text.concepts & UNWANTED else ENTAILMENT
        elif draw < 0.25:
            if text.concepts & {"positive", "negative"}:
                yield self.rng.choice(language.neutral), CONTRADICTION
            elif text.concepts <= FACTUAL and not text.touched & {"positive", "negative"}:
                yield self.rng.choice(language.neutral), ENTAILMENT
        elif draw < 0.4:
            yield self.rng.choice(language.others), CONTRADICTION
        elif draw < 0.55:
            yield from self.keyword_label(text, language)
        elif draw < 0.63:
            yield self.made_up(code), CONTRADICTION

    def keyword_label(self, text: Text, language: Language) -> Iterator[tuple[str, int]]:
        """One of the text's keywords, or if it has none a keyword of what it is not about."""
        if text.words:
            yield self.rng.choice(sorted(text.words)), ENTAILMENT
            return
        concept = language.concepts[self.rng.choice(tuple(language.concepts))]
        if concept.group == "topic" and judge(text.concepts, concept.name, text.touched) == CONTRADICTION:
            yield self.rng.choice(concept.words), CONTRADICTION

    def among(self, language: Language, text: Text, others: list[Text]) -> Text:
        """`text` in a frame, beside one of the others, in training now and then among more of them, or bare."""
        draw = 1.0 if self.evaluation else self.rng.random()
        if draw >= 0.3:
            return self.frame(language, text)
        count = 1 if draw < 0.2 else self.rng.randint(2, 8)
        texts = [text, *self.rng.sample(others, min(count, len(others)))]
        self.rng.shuffle(texts)
        return joined(texts, language.gap)

    def situations(self, language: Language, *besides: int) -> list[Text]:
        """The premise of each situation, save some."""
        return [
            sentence(each.premise, frozenset({f"situation {row}"}))
            for row, each in enumerate(language.situations)
            if row not in besides
        ]

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
        text = sentence(premise, frozenset({teller, meaning(row, given)}))
        claimed = frozenset({claimant, meaning(row, concluded)})
        text = self.among(language, text, self.situations(language))
        return Pair(text.text, hypothesis, label, text.parts, claimed)

    def situation_pair(self, code: str) -> Pair:
        """Three-class NLI over whole sentences, told alone or two together."""
        language = self.languages[code]
        count = len(language.situations)
        while True:
            row, beside = self.rng.randrange(count), self.rng.randrange(count)
            if row != beside and held_out(code, "situations", row, beside) == self.evaluation:
                break
        here, there = language.situations[row], language.situations[beside]
        text = sentence(here.premise, frozenset({f"situation {row}"}))
        if self.evaluation or self.rng.random() < 0.5:
            texts = [text, sentence(there.premise, frozenset({f"situation {beside}"}))]
            if self.rng.random() < 0.5:
                texts.reverse()
            text = joined(texts, language.gap)
        other = self.languages[self.other(code, 0.15)]
        right = other.situations[row]
        draw = self.rng.randrange(12)
        name = f"situation {row}"
        if draw < 4:
            hypothesis, label = right.entailed if draw else right.premise, ENTAILMENT
        elif draw == 4 and not self.evaluation:  # the other way about
            text = sentence(here.contradicted, frozenset({f"not situation {row}"}))
            hypothesis, label = self.rng.choice((right.entailed, right.premise)), CONTRADICTION
        elif draw < 8:
            hypothesis, label, name = right.contradicted, CONTRADICTION, f"not situation {row}"
        elif draw < 10:
            hypothesis, label, name = right.detail, NEUTRAL, f"detail of situation {row}"
        else:
            elsewhere = self.rng.choice([n for n in range(count) if n not in {row, beside}])
            third, label, name = other.situations[elsewhere], NEUTRAL, f"situation {elsewhere}"
            hypothesis = self.rng.choice((third.premise, third.entailed))
            text = self.frame(language, text)
            return Pair(text.text, hypothesis, label, text.parts, frozenset({name}))
        text = self.among(language, text, self.situations(language, row, beside))
        return Pair(text.text, hypothesis, label, text.parts, frozenset({name}))

    def pairs(self, count: int) -> list[Pair]:
        """At least `count` training pairs, over all languages evenly: zero-shot labels and three-class NLI."""
        found: list[Pair] = []
        while len(found) < count:
            code = self.rng.choice(self.codes)
            found.extend(self.label_pairs(code, self.short(self.languages[code])))
            if self.rng.random() < self.passages:
                found.extend(self.label_pairs(code, self.passage(self.languages[code])))
            found.append(self.activity_pair(code))
            found.append(self.situation_pair(code))
        return found

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
