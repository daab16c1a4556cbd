"""Words and sentences in any script."""

from __future__ import annotations

import itertools

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from tests.families.text import SENTENCES
from worker.inference.passages import LONGEST, PHRASE, Part, Passages
from worker.messages import Span


def passages(text: str) -> Passages:
    return Passages(text, Span(0, len(text)))


def shown(text: str, least: int = 1) -> list[str]:
    made = passages(text)
    return [text[slice(*made.span(part))] for part in made.parts(least)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two!  Three?\nFour", ["One.", "Two!", "Three?", "Four"]),
        ("He said \u201cno.\u201d Then (he left.) And that was all \u2026", None),
        ("It costs $4.2 a piece, e.g. here.", ["It costs $4.2 a piece, e.g.", "here."]),
        ("我想退款。客服说「不行！」真糟糕", ["我想退款。", "客服说「不行！」", "真糟糕"]),
        ("ラーメンを食べました。美味しい！", ["ラーメンを食べました。", "美味しい！"]),
        ("ฉันอยากได้เงินคืน สินค้าเสียหาย ok", ["ฉันอยากได้เงินคืน", "สินค้าเสียหาย", "ok"]),
        ("पार्सल देर से आया। बॉक्स टूटा था।", ["पार्सल देर से आया।", "बॉक्स टूटा था।"]),
        ("متى يصل الطرد؟ لا أعرف.", ["متى يصل الطرد؟", "لا أعرف."]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_sentences_end_where_a_reader_of_the_script_sees_it(text: str, expected: list[str] | None) -> None:
    quoted = ["He said \u201cno.\u201d", "Then (he left.)", "And that was all \u2026"]
    assert shown(text) == (quoted if expected is None else expected)


def test_a_long_sentence_is_divided_between_clauses() -> None:
    text = "word " * 13 + "here, " + "word " * 20
    assert shown(text) == [("word " * 13 + "here,"), ("word " * 20).strip()]
    assert max(part.words for part in passages("word " * 500).parts(1)) <= LONGEST
    assert max(part.words for part in passages("说话不停" * 100).parts(1)) <= LONGEST


def test_few_sentences_are_divided_until_there_are_enough() -> None:
    assert len(shown("one two three four five six seven eight", least=2)) == 2
    assert len(shown("one two three four five six seven eight nine", least=99)) == 2
    assert shown("one two three four", least=9) == ["one two three four"]
    assert max(part.words for part in passages("word " * 99).parts(99)) <= PHRASE


@pytest.mark.parametrize(
    ("part", "without"),
    [
        (Part(0, 1), "two.  three four "),
        (Part(1, 2), "one three four "),
        (Part(2, 4), "one two."),
        (Part(0, 4), ""),
        (Part(3, 4), "one two.  three"),
    ],
)
def test_what_is_left_out_takes_its_white_space_along(part: Part, without: str) -> None:
    assert passages("one two.  three four ").without(part) == without


def test_only_what_was_read_is_looked_at() -> None:
    text = "Not this. One two. Three four. Nor this"
    made = Passages(text, Span(10, 30))
    parts = made.parts(1)
    assert [text[slice(*made.span(part))] for part in parts] == ["One two.", "Three four."]
    assert made.without(parts[0]) == "Three four."
    assert made.without(parts[1]) == "One two."


STRANGE = ("e\u0301", "👩🏽\u200d🚀", "𠜎", "\n")
TEXT = st.lists(st.one_of(st.sampled_from(SENTENCES), st.text(max_size=12), st.sampled_from(STRANGE))).map(" ".join)


def seen(text: str) -> str:
    return str(regex.sub(r"\s", "", text))


@given(TEXT, st.integers(1, 9))
def test_parts_are_the_whole_text_once(text: str, least: int) -> None:
    made = passages(text)
    parts = made.parts(least)
    assert all(before.last == after.first for before, after in itertools.pairwise(parts))
    spans = [made.span(part) for part in parts]
    assert all(regex.fullmatch(r"\S|\S.*\S", text[start:end], regex.DOTALL) for start, end in spans)
    rest = text
    for start, end in reversed(spans):
        rest = rest[:start] + rest[end:]
    assert not seen(rest), "only white space lies between"
    for part, (start, end) in zip(parts, spans, strict=True):
        assert seen(made.without(part)) == seen(text[:start] + text[end:])
