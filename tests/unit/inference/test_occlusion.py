"""What is left out to find evidence; and evidence through the engine, over a null model that looks for words."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import families
from tests.builders import classify, entail
from worker.inference.engine import Engine
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.inference.occlusion import FANOUT, LEAST, Spot, search
from worker.inference.passages import PHRASE, Part, Passages
from worker.messages import Classification, LongText, Pooling, Request, Row, Span, Taxonomy, Work

FILLER = "The weather was fine and we went for a walk around the lake."


def look(passages: Passages, wanted: int, drop: Callable[[str], float], rows: int = 10**9) -> tuple[list[Spot], int]:
    """Search with a model that is a function of the text; more than ``rows`` rows are refused."""
    steps = search(passages, wanted)
    whole = drop("\0")
    asked = 0
    try:
        parts = next(steps)
        while True:
            if asked + len(parts) > rows:
                parts = steps.send(None)
                continue
            asked += len(parts)
            parts = steps.send([whole - drop(passages.without(part)) for part in parts])
    except StopIteration as done:
        return done.value, asked


def having(text: str, *words: str) -> Callable[[str], float]:
    """The share of some words that a text has; of the whole text where it is given as "\\0"."""
    return lambda given: sum(word in (text if given == "\0" else given) for word in words) / len(words)


def passages(text: str) -> Passages:
    return Passages(text, Span(0, len(text)))


@pytest.mark.parametrize("sentences", [1, 3, 12, 40, 300])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_word_is_found_wherever_it_stands(sentences: int, place: float) -> None:
    told = [FILLER] * sentences
    told[round(place * (sentences - 1))] = "Then somebody called the waiter a stupid donkey in front of everybody."
    text = " ".join(told)
    made = passages(text)
    ((part, drop),), asked = look(made, 1, having(text, "donkey"))
    assert "donkey" in text[slice(*made.span(part))]
    assert part.words <= PHRASE
    assert drop == 1.0
    assert asked <= 2 * FANOUT + 9 * 3


def test_a_phrase_keeps_most_of_what_its_sentence_says() -> None:
    text = f"{FILLER} You are a liar and yesterday in the meeting, as all know, also a thief. {FILLER}"
    made = passages(text)
    ((part, drop),), _ = look(made, 1, having(text, "liar", "thief"))
    assert text[slice(*made.span(part))].startswith("You are a liar")
    assert text[slice(*made.span(part))].endswith("a thief.")
    assert drop == 1.0


def test_several_are_told_strongest_first() -> None:
    text = f"{FILLER} First comes the apple. {FILLER} Then the banana. {FILLER} {FILLER} And the cherry last of all."
    made = passages(text)
    weights = {"apple": 0.2, "banana": 0.5, "cherry": 0.3}

    def weight(given: str) -> float:
        return sum(weights[word] for word in weights if word in (text if given == "\0" else given))

    (first, second), _ = look(made, 2, weight)
    assert [first[1], second[1]] == pytest.approx([0.5, 0.3])
    assert "banana" in text[slice(*made.span(first[0]))]
    assert "cherry" in text[slice(*made.span(second[0]))]


def test_what_makes_no_difference_is_no_evidence() -> None:
    text = " ".join([FILLER] * 5)
    assert look(passages(text), 3, lambda _: 0.5)[0] == []
    assert look(passages(text), 3, lambda given: 0.5 + 0.9 * LEAST * (given == "\0"))[0] == []
    assert look(passages(""), 3, lambda _: 0.5) == ([], 0)
    assert look(passages("word"), 3, having("word", "word"))[0] == [(Part(0, 1), 1.0)]


def test_what_is_too_much_is_looked_for_more_coarsely() -> None:
    told = [FILLER] * 32
    told[20] = "What a donkey."
    text = " ".join(told)
    made = passages(text)
    lengths = []
    for rows in (0, 1, 2, 5, 8, 16, 100):
        found, asked = look(made, 1, having(text, "donkey"), rows)
        assert asked <= rows
        lengths.append(found[0][0].words if found else 10**9)
        assert not found or "donkey" in text[slice(*made.span(found[0][0]))]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == lengths[1] == 10**9
    assert lengths[-1] == 3


words = st.text("ab.,", min_size=1, max_size=4)


@given(st.lists(words, max_size=120), st.integers(1, 5), st.integers(0, 60), st.integers(0, 2**32 - 1))
def test_spans_are_apart_and_dropping(told: list[str], wanted: int, rows: int, seed: int) -> None:
    made = passages(" ".join(told))
    rng = np.random.default_rng(seed)
    found, asked = look(made, wanted, lambda _: float(rng.random()), rows)
    assert asked <= rows
    assert len(found) <= wanted
    assert [drop for _, drop in found] == sorted((drop for _, drop in found if drop >= LEAST), reverse=True)
    taken = sorted(part for part, _ in found)
    assert all(one.last <= other.first for one, other in itertools.pairwise(taken))


# Through the engine ---------------------------------------------------------------------------------------------------


@functools.cache
def checkpoint(family: str) -> Checkpoint:
    directory = families.checkpoint(family)
    return load(str(directory), device="cpu", precision="fp32", self_test="off", progress=False, default_language="en")


class Reader:
    """A model that entails a pair as far as its tokens have those of some words in them."""

    def __init__(self, engine: Engine, *words: str) -> None:
        self._wanted = [self._ids(engine, word) for word in words]
        order = engine.checkpoint.order
        assert order is not None
        self._entailment = order.entailment
        self.rows: list[Row] = []

    @staticmethod
    def _ids(engine: Engine, word: str) -> list[int]:
        """A word's tokens within a text."""
        (row,) = engine.encode(entail(f"a {word} a", "a")).rows
        (around,) = engine.encode(entail("a a", "a")).rows
        added = len(row.token_ids) - len(around.token_ids)
        return [int(number) for number in row.token_ids[2 : 2 + added]]

    def slots(self, lengths: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        return np.cumsum(lengths)

    def logits(self, rows: Sequence[Row]) -> npt.NDArray[np.float32]:
        self.rows += rows
        made = np.zeros((len(rows), 3), dtype=np.float32)
        for i, row in enumerate(rows):
            ids = row.token_ids.tolist()
            found = sum(any(ids[at : at + len(wanted)] == wanted for at in range(len(ids))) for wanted in self._wanted)
            made[i, self._entailment] = 3 * found
        return made

    def pooled(self, rows: Sequence[Row], pooling: Pooling) -> npt.NDArray[np.float32]:
        raise NotImplementedError


def reading(family: str, *words: str, limit: int | None = None, max_length: int = 512) -> tuple[Engine, Reader]:
    loaded = replace(checkpoint(family), max_length=max_length)
    reader = Reader(Engine(loaded, max_tokens=10_000), *words)
    return Engine(loaded, max_tokens=10_000, max_request_tokens=limit, forward=reader), reader


def run(engine: Engine, *requests: Request) -> tuple[list[Classification], Work]:
    outcomes, work = engine.run([(one, engine.encode(one)) for one in requests])
    assert all(isinstance(outcome, Classification) for outcome in outcomes)
    return [outcome for outcome in outcomes if isinstance(outcome, Classification)], work


TOLD = [FILLER] * 12
PLANTED = "Then somebody called him a liar 👩🏽\u200d🚀 in front of everybody."


@pytest.mark.parametrize("family", ["xlm-roberta", "roberta", "bert", "deberta-v2", "modernbert", "xlm"])
def test_evidence_is_found_by_what_the_model_reads(family: str) -> None:
    engine, _ = reading(family, "liar")
    text = " ".join(["Ĳ \U0001f40d e\u0301 文", *TOLD[:6], PLANTED, *TOLD[6:]])
    (outcome,), work = run(engine, classify(text, "insult", "praise", multi_label=True, evidence=2))
    assert not outcome.evidence_cut
    assert [label.label for label in outcome.labels] == ["insult", "praise"]
    for label in outcome.labels:
        (found,) = label.evidence
        assert "liar" in text[slice(*found.span)]
        assert len(text[slice(*found.span)].split()) <= PHRASE
        assert found.drop == pytest.approx(label.entailment - 1 / 3)
    assert work.rows < len(text.split()) / 2
    assert work.rows == 2 + 2 * (13 + 3)


def test_requests_share_the_forwards_of_a_round() -> None:
    engine, _ = reading("xlm-roberta", "liar")
    text = " ".join([*TOLD, PLANTED])
    request = classify(text, "insult", evidence=1)
    _, alone = run(engine, request)
    many = [replace(request, text=f"{n} {text}") for n in range(3)] + [classify(text, "insult")]
    outcomes, work = run(engine, *many)
    assert work.rows == 3 * alone.rows + 1
    assert work.forwards < 2 * alone.forwards
    assert [len(outcome.labels[0].evidence) for outcome in outcomes] == [1, 1, 1, 0]


def test_evidence_is_for_labels_that_passed() -> None:
    engine, _ = reading("xlm-roberta", "liar")
    request = classify(PLANTED, "a", "b", "c", multi_label=True, evidence=1)
    (outcome,), _ = run(engine, replace(request, top_k=1))
    assert [len(label.evidence) for label in outcome.labels] == [1]
    (outcome,), work = run(engine, replace(request, threshold=1.0))
    assert outcome.abstained
    assert work.rows == 3


def test_a_leaf_of_a_taxonomy_has_evidence() -> None:
    engine, _ = reading("xlm-roberta", "liar")
    (outcome,), _ = run(engine, classify(PLANTED, "a", "b", taxonomy=Taxonomy((-1, 0), 1), evidence=1))
    (label,) = outcome.labels
    assert [step.label for step in label.path] == ["a", "b"]
    assert "liar" in PLANTED[slice(*label.evidence[0].span)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_was_cut_off_is_not_searched(side: str) -> None:
    loaded = replace(checkpoint("xlm-roberta"), max_length=80)
    tokenizer = families.tokenizer("xlm-roberta")
    loaded = replace(loaded, tokenizer=tokenizer)
    before = tokenizer.truncation_side
    tokenizer.truncation_side = side
    try:
        reader = Reader(Engine(loaded, max_tokens=10_000), "liar")
        engine = Engine(loaded, max_tokens=10_000, forward=reader)
    finally:
        tokenizer.truncation_side = before
    told = [PLANTED, *TOLD] if side == "right" else [*TOLD, PLANTED]
    text = " ".join(told)
    (outcome,), _ = run(engine, classify(text, "insult", evidence=3))
    (found,) = outcome.labels[0].evidence
    assert "liar" in text[slice(*found.span)]
    assert not outcome.evidence_cut
    # No row reads what the request's own did not: all of them are made of the part that it read.
    assert all(len(row.token_ids) <= 80 for row in reader.rows)
    read = engine.encode(classify(text, "insult")).rows[0].token_ids.tolist()
    assert all(set(row.token_ids.tolist()) <= set(read) for row in reader.rows)


@pytest.mark.parametrize("long_text", [LongText.WINDOW_MAX, LongText.WINDOW_MEAN])
def test_the_window_that_decided_is_searched(long_text: LongText) -> None:
    engine, _ = reading("xlm-roberta", "liar", max_length=80)
    text = " ".join([*TOLD, PLANTED, *TOLD])
    (outcome,), _ = run(engine, classify(text, "insult", evidence=1, long_text=long_text))
    (label,) = outcome.labels
    (found,) = label.evidence
    assert "liar" in text[slice(*found.span)]
    assert found.drop > 0.5
    if long_text is LongText.WINDOW_MEAN:
        assert label.window is None
    else:
        assert label.window is not None
        assert label.window.start <= found.span.start < found.span.end <= label.window.end


def test_a_tokenizer_that_tells_no_places_searches_whole_texts_only() -> None:
    engine, _ = reading("xlm", "liar", max_length=80)
    (short,), _ = run(engine, classify(PLANTED, "insult", evidence=1))
    assert short.labels[0].evidence
    assert not short.evidence_cut
    for long_text in LongText:
        (outcome,), _ = run(engine, classify(" ".join([PLANTED, *TOLD]), "insult", evidence=1, long_text=long_text))
        assert not outcome.labels[0].evidence
        assert outcome.labels[0].window is None
        assert outcome.evidence_cut


@given(st.integers(0, 6_000))
def test_evidence_gives_way_to_the_limit(extra: int) -> None:
    text = " ".join([*TOLD[:6], PLANTED, *TOLD[6:]])
    request = classify(text, "insult", "praise", evidence=1, multi_label=True)
    flat = Engine(checkpoint("xlm-roberta"), max_tokens=10_000).encode(request).tokens
    engine, reader = reading("xlm-roberta", "liar", limit=flat + extra)
    (outcome,), _ = run(engine, request)
    assert sum(len(row.token_ids) for row in reader.rows) <= flat + extra
    found = [label.evidence for label in outcome.labels]
    assert all("liar" in text[slice(*one.span)] for (one,) in filter(None, found))
    whole, _ = reading("xlm-roberta", "liar")
    assert outcome.evidence_cut == (found != [label.evidence for label in run(whole, request)[0][0].labels])
