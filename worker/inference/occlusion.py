"""Evidence by occlusion: what speaks for a label is what the label loses when it is left out of the text.

The text without some of its words is tokenised anew and scored with the label's own hypothesis. The *drop* is the
probability of entailment with the whole text less that without the words: exact for every family and precision, since
the model reads a plain text both times.

From coarse to fine (`search`):

1. **Where**: each sentence is left out in turn, long ones in parts. Of a text with more than `FANOUT` of them, groups
   of neighbours are left out first, then the parts of the best groups. As many as were asked for go on, the best.
2. **Which words**: of each the first half of its words, the middle and the last half are left out instead. The half
   with the largest drop takes its place while it keeps `KEPT` of what the whole passage drops, down to `PHRASE` words.
   So a span is a few words that a reviewer can read, or a whole sentence where no part of it says the same.

That is a row for each sentence, at most some 16; as many for each span where there are more sentences; and three or six
to narrow a span down. Spans below `LEAST` are no evidence: where a text says the same thing several times, leaving one
out changes little, and there may be none.

Of a text that is cut, the part that the model read is searched. With several windows it is the window that entails the
label most, and the drop is of that window's probability; so under WINDOW_MAX it is the label's own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Final

from worker.inference.descent import Found
from worker.inference.passages import PHRASE, Part, Passages
from worker.inference.rounds import Asking, Meter
from worker.inference.scores import LabelOrder, judge
from worker.inference.segmenter import TokenIds
from worker.inference.tokens import Tokens
from worker.messages import Encoded, Evidence, Request, Row, Span

FANOUT: Final = 16
"""How many parts a passage is divided into at once."""
KEPT: Final = 0.7
"""The share of a passage's drop that a part of it must keep to stand for it."""

LEAST: Final = 0.001
"""The smallest drop that is told. Arithmetic in another batch makes smaller ones, which mean nothing."""

Drops = list[float]
Spot = tuple[Part, float]  # words of a text, and the drop without them
Search = Generator[list[Part], Drops | None, list[Spot]]
"""Yields what to leave out, and is sent the drops, or None where that is too much work. Returns spans, best first."""


def search(passages: Passages, wanted: int) -> Search:
    """Find the ``wanted`` parts of a text whose absence costs a label most. They do not overlap."""
    spots = yield from _locate(passages.parts(wanted + 1), wanted)
    return (yield from _narrow(spots))


def _locate(parts: list[Part], wanted: int) -> Search:
    """The passages that count. Too much work makes the groups larger, and in the end leaves them as they are."""
    fanout = FANOUT
    settled: list[Spot] = []
    best: list[tuple[list[Part], float]] = []
    divided = [parts] if parts else []
    while divided:
        groups = [group for passage in divided for group in _groups(passage, fanout)]
        drops = yield [_whole(group) for group in groups]
        if drops is None:
            fanout //= 2
            if fanout < 2:
                break
            continue
        tried = [([part], drop) for part, drop in settled] + list(zip(groups, drops, strict=True))
        # A group that speaks for the label though no part of it does alone counts as a whole.
        silent = [one for one in best if len(one[0]) > 1 and not _any_within(one[0], tried)]
        tried += [([_whole(group)], drop) for group, drop in silent]
        best = sorted((one for one in tried if one[1] >= LEAST), key=lambda one: -one[1])[:wanted]
        settled = [(group[0], drop) for group, drop in best if len(group) == 1]
        divided = [group for group, _ in best if len(group) > 1]
    return [(_whole(group), drop) for group, drop in best]


def _any_within(group: list[Part], tried: Sequence[tuple[list[Part], float]]) -> bool:
    whole = _whole(group)
    return any(drop >= LEAST and whole.first <= one[0].first < whole.last for one, drop in tried)


def _narrow(spots: list[Spot]) -> Search:
    """Shorten each passage while a part of it says the same."""
    least = [KEPT * drop for _, drop in spots]
    halves = {i: _halves(part) for i, (part, _) in enumerate(spots)}
    while halves := {i: parts for i, parts in halves.items() if parts}:
        drops = yield list(chain.from_iterable(halves.values()))
        if drops is None:
            break
        answers = iter(drops)
        for i, parts in halves.items():
            drop, part = max(zip(answers, parts, strict=False), key=lambda one: one[0])
            keeps = drop >= least[i]
            spots[i] = (part, drop) if keeps else spots[i]
            halves[i] = _halves(part) if keeps else []
    return sorted(spots, key=lambda spot: -spot[1])


def _halves(part: Part) -> list[Part]:
    """The first half of some words, the middle, and the last half; none of what is a phrase."""
    if part.words <= PHRASE:
        return []
    size = (part.words + 1) // 2
    return [Part(first, first + size) for first in (part.first, part.first + size // 2, part.last - size)]


def _groups(parts: list[Part], most: int) -> list[list[Part]]:
    """Neighbours together, in at most so many groups of about the same number."""
    count = min(most, len(parts))
    cuts = [len(parts) * i // count for i in range(count + 1)]
    return [parts[first:last] for first, last in pairwise(cuts)]


def _whole(group: Sequence[Part]) -> Part:
    return Part(group[0].first, group[-1].last)


def evidence_for(
    request: Request, encoded: Encoded, found: Sequence[Found], tokens: Tokens, order: LabelOrder, meter: Meter
) -> Asking[tuple[list[tuple[Evidence, ...]], bool]]:
    """Search for the evidence of several labels at once, in rounds that they share.

    Where the work that the request may still be does not suffice, the best labels go first.

    Args:
        request: A CLASSIFY request that asks for evidence.
        encoded: As `Tokens.encode` made it.
        found: The labels, best first.
        tokens: Makes the rows.
        order: Which class is which.
        meter: Says what work is left, and is charged.

    Returns:
        The evidence of each label, and whether some was left out or is coarser: for want of work, or because the text
        is not read whole and the tokenizer does not tell which part of it is.
    """
    quests, is_cut = _open(request, encoded, found, tokens)
    live = [quest for quest in quests.values() if quest.parts]
    while live:
        reserved = 0
        for quest in live:
            # An upper bound: what lacks some words has fewer tokens.
            while quest.parts and not meter.allows(reserved + quest.cost):
                quest.go_on(None)
                is_cut = True
            reserved += quest.cost
        live = [quest for quest in live if quest.parts]
        if not live:
            break
        rows = _rows(live, tokens, encoded.rows[0].language_id)
        meter.charge(rows)
        logits = yield rows
        entailment = judge(logits, 1, request.long_text, order).probabilities[:, 0].tolist()
        for quest in live:
            count = quest.rows
            quest.take(entailment[:count])
            del entailment[:count]
        live = [quest for quest in live if quest.parts]
    return [quests[i].evidence if i in quests else () for i in range(len(found))], is_cut


@dataclass(slots=True)
class _Quest:
    """The search for one label's evidence.

    Attributes:
        hypothesis: the label's.
        passages: the text that is searched, in words.
        ids: its tokens.
        length: of a row with the whole of it.
        whole: the probability with the whole of it; None while it is not known: a row of the next round tells.
        search: what looks.
        parts: what it wants left out next; empty when it is done.
        evidence: what it found.
    """

    hypothesis: str
    passages: Passages
    ids: TokenIds
    length: int
    whole: float | None
    search: Search
    parts: list[Part] = field(default_factory=list)
    evidence: tuple[Evidence, ...] = ()

    @property
    def rows(self) -> int:
        """Of the next round."""
        return len(self.parts) + (self.whole is None) if self.parts else 0

    @property
    def cost(self) -> int:
        """Tokens of the next round at most."""
        return self.rows * self.length

    def take(self, entailment: list[float]) -> None:
        """Probabilities of the rows of a round."""
        if self.whole is None:
            self.whole, *entailment = entailment
        whole = self.whole
        self.go_on([whole - without for without in entailment])

    def go_on(self, drops: Drops | None) -> None:
        """Let the search decide what to leave out next."""
        try:
            self.parts = self.search.send(drops)
        except StopIteration as done:
            self.parts = []
            self.evidence = tuple(Evidence(self.passages.span(part), drop) for part, drop in done.value)


def _open(request: Request, encoded: Encoded, found: Sequence[Found], tokens: Tokens) -> tuple[dict[int, _Quest], bool]:
    """A search for each label, by its place among them, and whether there are labels without."""
    hypotheses = [request.hypotheses[one.index] for one in found]
    if encoded.windows == 1:
        places = tokens.seen(request, encoded, hypotheses)
    else:
        places = [encoded.spans[one.window or 0] if encoded.spans else None for one in found]
    whole = Span(0, len(request.text))
    distinct = sorted({place for place in places if place is not None})
    ids = dict(zip(distinct, tokens.all_ids([request.text[start:end] for start, end in distinct]), strict=True))
    passages = {place: Passages(request.text, place) for place in distinct}
    quests: dict[int, _Quest] = {}
    for i, (one, place) in enumerate(zip(found, places, strict=True)):
        if place is None:
            continue
        length = len(tokens.pairs.row(ids[place], hypotheses[i], None).token_ids)
        known = one.label.entailment if place == whole else None
        look = search(passages[place], request.evidence)
        quests[i] = _Quest(hypotheses[i], passages[place], ids[place], length, known, look)
        quests[i].go_on(None)  # which starts it
    return quests, len(quests) < len(found)


def _rows(quests: Sequence[_Quest], tokens: Tokens, language_id: int | None) -> list[Row]:
    """The rows of a round, in the order of the searches: the whole text where it is wanted, then what lacks a part."""
    texts = {(id(quest.passages), part): quest.passages.without(part) for quest in quests for part in quest.parts}
    ids = dict(zip(texts, tokens.all_ids(list(texts.values())), strict=True))
    rows: list[Row] = []
    for quest in quests:
        if quest.whole is None:
            rows.append(tokens.pairs.row(quest.ids, quest.hypothesis, language_id))
        # Tokenised anew, what lacks some words could in theory be longer than the whole.
        rows += [
            tokens.pairs.row(ids[id(quest.passages), part][: len(quest.ids)], quest.hypothesis, language_id)
            for part in quest.parts
        ]
    return rows
