"""Which labels a fair reader would give a text, from the concepts that it was made of: no text, no model, no chance.

A label is entailed where its concept is in the text, contradicted where it is surely not, and neutral or not asked
where a reader may see it either way. A label of a parent ("news") is entailed by a text about any of its children.
"""

from __future__ import annotations

from dataclasses import dataclass

LABELS = ("contradiction", "neutral", "entailment")  # the order of joeddav/xlm-roberta-large-xnli
CONTRADICTION, NEUTRAL, ENTAILMENT = range(3)

GROUPS: dict[str, frozenset[str]] = {
    "sentiment": frozenset({"positive", "negative"}),
    "urgency": frozenset({"urgent", "not_urgent"}),
    "intent": frozenset({"question"}),
}
UNWANTED = frozenset({"spam", "threat", "insult", "adult"})
SERVICE = frozenset({"billing", "refund", "delivery", "account"})
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
        ("billing", "finance"),
        ("billing", "refund"),
        ("billing", "spam"),
        ("billing", "account"),
        ("refund", "finance"),
        ("refund", "delivery"),
        ("refund", "spam"),
        ("delivery", "travel"),
        ("delivery", "spam"),
        ("account", "technology"),
        ("account", "finance"),
        ("account", "spam"),
    )
)
# Topics that the sentences of another group may be about too: what is praised is a hotel, a film, a meal.
TOUCHES: dict[str, frozenset[str]] = {
    "positive": frozenset({"travel", "food", "entertainment", "technology", "delivery", "refund", "billing", "spam"}),
    "negative": frozenset({"travel", "food", "entertainment", "technology", "finance", "insult"}) | SERVICE,
    "urgent": frozenset({"technology", "health", "finance", "threat", "weather"}) | SERVICE,
    "not_urgent": frozenset({"technology"}) | SERVICE,
    "question": frozenset({"technology", "travel", "finance"}) | SERVICE,
}


@dataclass(frozen=True, slots=True)
class Parent:
    """A label above others: the concepts it holds, and those that a reader may or may not see it in."""

    children: frozenset[str]
    arguable: frozenset[str]


def _names(names: str) -> frozenset[str]:
    return frozenset(names.split())


# Each concept has one parent at most, so that the way down such a tree is never in doubt; health stands alone.
PARENTS: dict[str, Parent] = {
    "news": Parent(
        _names("politics finance weather sport"), _names("health science technology entertainment travel education")
    ),
    "leisure": Parent(_names("travel food entertainment"), _names("sport weather health positive negative")),
    "knowledge": Parent(_names("science education technology"), _names("health politics finance weather account")),
    "service": Parent(
        _names("billing refund delivery account"),
        _names("positive negative question urgent not_urgent finance technology spam travel"),
    ),
    "feedback": Parent(
        _names("positive negative question"), _names("billing refund delivery account urgent not_urgent insult")
    ),
    "harmful": Parent(_names("spam threat insult adult"), _names("negative urgent")),
}


def group(concept: str) -> str:
    """The group of a concept: a topic, unless it is a sentiment, a degree of urgency or an intent."""
    return next((name for name, members in GROUPS.items() if concept in members), "topic")


def judge(concepts: frozenset[str], concept: str, touched: frozenset[str] = frozenset()) -> int | None:
    """The class of "this text is `concept`", or None where a fair reader could disagree.

    `concepts` are those of the text, `touched` what else its sentences might be taken for.
    """
    kind = group(concept)
    if concept in concepts:
        return ENTAILMENT
    if concept in touched or any(frozenset({concept, name}) in CLOSE for name in concepts):
        return None
    if kind == "intent":
        return None if concepts & (SERVICE | {"urgent", "not_urgent"}) else CONTRADICTION
    if kind == "topic":
        return None if any(concept in TOUCHES.get(name, ()) for name in concepts) else CONTRADICTION
    if concepts & GROUPS[kind]:
        return CONTRADICTION
    if "question" in concepts and kind == "sentiment" and concepts <= FACTUAL | SERVICE | {"question"}:
        return CONTRADICTION
    return NEUTRAL if concepts <= FACTUAL else None


def judge_parent(concepts: frozenset[str], parent: str, touched: frozenset[str] = frozenset()) -> int:
    """The class of "this text is `parent`"."""
    relation = PARENTS[parent]
    if concepts & relation.children:
        return ENTAILMENT
    if (concepts | touched) & (relation.arguable | relation.children):
        return NEUTRAL
    return CONTRADICTION
