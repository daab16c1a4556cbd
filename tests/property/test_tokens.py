"""Token ids against transformers' own, over text that people and attackers write."""

from __future__ import annotations

import copy
import functools
import itertools
import threading
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests import families
from tests.builders import classify, embed, entail
from tests.examples import examples
from tests.families import tokenizers
from tests.families.text import SENTENCES
from worker.errors import Reason, Rejection
from worker.inference.loading import load
from worker.inference.model import Checkpoint
from worker.inference.tokens import Tokens
from worker.messages import LongText

WINDOW = 40  # tokens: short enough that most texts are longer

HOSTILE = (
    "",
    " ",
    "\n\t\r",
    "\x00\x01\x7f",  # controls
    "\u00a0\u2003\u3000",  # blanks of other widths
    "\u200b\u200c\u200d\u2060\ufeff\u00ad",  # nothing to see
    "\u202eright to left\u202c",
    "שלום\u05b0 عالم\u064b\u0651",
    "e\u0301\u0302\u0323\u0334" * 9,  # stacked marks
    "\u0301alone",
    "ﬁ ﬀ ① ２０２４ ㎏ ½ Å Ω",  # change under NFKC
    "ǅ İ ı ß ẞ ς Σ",  # change their length with their case
    "각 각 ｶﾞ が が",
    "👩🏽‍🚀👨‍👩‍👧‍👦🏳️‍🌈 𝕏𝔘𝔫𝔦 𠜎𡃁 \U0010ffff",
    "\ufffd\ufffe\uffff",
    "▁ ▁▁ ## ##ing Ġ Ċ </w> @@ @-@ &amp; &#124;",  # what tokenizers write themselves
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "don't can't I'll we've ''quoted'' ``so'' --- ... !!!???",
    "ไม่มีช่องว่าง 没有空格的句子。「引号」、（括号）",
    "http://example.com/?a=1&b=[2]#<c>",
)
TEXT = st.one_of(
    st.text(max_size=60),
    st.lists(st.one_of(st.sampled_from(HOSTILE), st.sampled_from(SENTENCES), st.text(max_size=9)), max_size=6).map(
        "".join
    ),
)
checked = settings(max_examples=examples(60), derandomize=True)


@functools.cache
def checkpoint(family: str) -> Checkpoint:
    loaded = load(
        str(families.checkpoint(family)), device="cpu", precision="fp32", self_test="off", default_language="en"
    )
    return replace(loaded, max_length=WINDOW)


@functools.cache
def tokens(family: str) -> Tokens:
    return Tokens(checkpoint(family), cache_hypotheses=8)


def expected_segment(reference: Any) -> int:
    """Where token type 1 begins, or the length where the tokenizer gives none."""
    ids, types = reference["input_ids"][0], reference.get("token_type_ids", [[]])[0]
    return types.index(1) if 1 in types else len(ids)


def special_words(family: str) -> list[str]:
    return checkpoint(family).tokenizer.all_special_tokens + (["<special0>"] if family == "xlm" else [])


every_family = pytest.mark.parametrize("family", families.EVERY)


@every_family
@checked
@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
@example("", [""])
@example("\u200b", ["\u200b"])
def test_pairs_are_what_transformers_makes_of_them(family: str, premise: str, hypotheses: list[str]) -> None:
    assume(not any(word in text for text in (premise, *hypotheses) for word in special_words(family)))
    tokenizer = checkpoint(family).tokenizer
    lengths = [len(tokenizer(["."], [text])["input_ids"][0]) for text in hypotheses]
    assume(max(lengths) <= WINDOW)  # else there is no room: below
    encoded = tokens(family).encode(entail(premise, *hypotheses))
    for row, hypothesis in zip(encoded.rows, hypotheses, strict=True):
        reference = tokenizer([premise], [hypothesis], truncation="only_first", max_length=WINDOW)
        assert row.token_ids.tolist() == reference["input_ids"][0]
        assert row.token_ids.dtype == np.int32
        assert row.segment_at == expected_segment(reference)
    whole = tokenizer([premise] * len(hypotheses), hypotheses)["input_ids"]
    assert encoded.truncated == any(len(ids) > WINDOW for ids in whole)
    assert encoded.windows == 1
    assert encoded.tokens == sum(len(row.token_ids) for row in encoded.rows)


@every_family
@checked
@given(TEXT)
@example("")
def test_single_texts_are_what_transformers_makes_of_them(family: str, text: str) -> None:
    assume(not any(word in text for word in special_words(family)))
    tokenizer = checkpoint(family).tokenizer
    encoded = tokens(family).encode(embed(text))
    (row,) = encoded.rows
    assert row.token_ids.tolist() == tokenizer([text], truncation=True, max_length=WINDOW)["input_ids"][0]
    assert row.segment_at == len(row.token_ids)
    assert encoded.truncated == (len(tokenizer([text])["input_ids"][0]) > WINDOW)


@every_family
@checked
@given(st.lists(st.one_of(TEXT, st.sampled_from(["</s>", "<s>", "[SEP]", "<mask>", "＜/s＞"])), max_size=5), st.data())
def test_no_text_can_write_a_special_token(family: str, parts: list[str], data: st.DataObject) -> None:
    words = special_words(family)
    text = "".join(part + data.draw(st.sampled_from(["", " ", *words])) for part in parts)
    loaded = checkpoint(family)
    special = {loaded.tokenizer.convert_tokens_to_ids(word) for word in words} - {loaded.tokenizer.unk_token_id}
    unlimited = Tokens(replace(loaded, max_length=100_000))
    (row,) = unlimited.encode(embed(text)).rows
    assert not special & set(row.token_ids[1:-1].tolist())


@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "bart", "xlm"])
@checked
@given(st.lists(st.sampled_from(["</s>", "<s>", "[SEP]", "[CLS]", "<mask>", "<pad>", " ", "word", "."]), max_size=8))
def test_special_words_are_segmented_as_transformers_segments_plain_text(family: str, parts: list[str]) -> None:
    text = "".join(parts)
    tokenizer = checkpoint(family).tokenizer
    (row,) = tokens(family).encode(embed(text)).rows
    # Single, not in a list: only so does transformers' Python tokenizer hand the option on.
    reference = tokenizer(text, truncation=True, max_length=WINDOW, split_special_tokens=True)
    assert row.token_ids.tolist() == reference["input_ids"]


@pytest.mark.parametrize("family", ["xlm-roberta", "minilm", "deberta-v2"])
@pytest.mark.parametrize("word", ["</s>", "<s>", "<pad>", "<mask>", "[SEP]", "[CLS]", "＜/s＞"])
def test_special_words_are_spelled_out_by_unigram_models(family: str, word: str) -> None:
    """transformers reads the piece </s> even with split_special_tokens; SentencePiece itself spells it, as here."""
    tokenizer = checkpoint(family).tokenizer
    (row,) = tokens(family).encode(embed(f"one {word} two")).rows
    pieces = tokenizer.convert_ids_to_tokens(row.token_ids[1:-1].tolist())
    unknown = {"＜", "＞"} if family == "deberta-v2" else set()  # not normalised there, and in no tiny vocabulary
    spelled = "".join(pieces).replace(str(tokenizer.unk_token), "?").replace("▁", " ").strip()
    expected = word if unknown else word.translate({0xFF1C: "<", 0xFF1E: ">"})
    assert spelled == f"one {''.join('?' if letter in unknown else letter for letter in expected)} two"


@pytest.mark.parametrize("family", [case for case in families.EVERY if case.values != ("xlm",)])
@checked
@given(st.lists(st.one_of(st.sampled_from(["@user", "#tag", " ", "un"]), TEXT), max_size=5).map("".join))
def test_added_words_that_are_not_special_keep_their_meaning(family: str, text: str) -> None:
    """As in checkpoints for tweets; with a special token before them, as DeBERTa-v3's mask is."""
    assume(not any(word in text for word in special_words(family)))
    tokenizer = extended(family)
    encoded = Tokens(replace(checkpoint(family), tokenizer=tokenizer)).encode(embed(text))
    assert encoded.rows[0].token_ids.tolist() == tokenizer([text], truncation=True, max_length=WINDOW)["input_ids"][0]


@functools.cache
def extended(family: str) -> Any:
    tokenizer = copy.deepcopy(families.tokenizer(family))
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    tokenizer.add_tokens(["@user", AddedToken("#tag", lstrip=True, normalized=False)])
    return tokenizer


@every_family
@checked
@given(TEXT, st.integers(1, 80), st.sampled_from([LongText.WINDOW_MAX, LongText.WINDOW_MEAN]))
def test_windows_cover_the_text_and_carry_the_hypothesis(family: str, text: str, copies: int, mode: LongText) -> None:
    premise = (text + " ") * copies
    hypotheses = ("short.", "This one is longer.")
    encoded = tokens(family).encode(entail(premise, *hypotheses, long_text=mode))
    unlimited = Tokens(replace(checkpoint(family), max_length=1_000_000))
    whole = unlimited.encode(entail(premise, *hypotheses))
    empty = unlimited.encode(entail("", *hypotheses))
    assert not encoded.truncated
    assert len(encoded.rows) == 2 * encoded.windows
    assert all(len(row.token_ids) <= WINDOW for row in encoded.rows)
    for index in range(2):
        tail = empty.rows[index].token_ids[1:].tolist()  # every family sets one token before a text
        body = whole.rows[index].token_ids.tolist()[1 : -len(tail)]
        windows = encoded.rows[index * encoded.windows : (index + 1) * encoded.windows]
        assert all(window.token_ids.tolist()[-len(tail) :] == tail for window in windows)
        bodies = [window.token_ids.tolist()[1 : -len(tail)] for window in windows]
        size = len(bodies[0])
        starts = [number * (size - size // 4) for number in range(len(bodies) - 1)] + [len(body) - size]
        assert bodies == [body[start : start + size] for start in starts]
        assert all(after - before <= size - size // 4 for before, after in itertools.pairwise(starts)), "a gap"
    if encoded.windows > 1:
        assert max(len(row.token_ids) for row in encoded.rows) == WINDOW  # beside the longest hypothesis


@every_family
@checked
@given(TEXT, st.integers(0, 60))
def test_a_hypothesis_without_room_for_the_premise_is_invalid(family: str, premise: str, words: int) -> None:
    assume(not any(word in premise for word in special_words(family)))
    tokenizer = checkpoint(family).tokenizer
    hypothesis = "a " * words
    text = len(tokenizer([premise], add_special_tokens=False)["input_ids"][0])
    room = WINDOW - len(tokenizer([""], [hypothesis])["input_ids"][0])
    request = classify(premise, "b", hypothesis)
    if text <= room or room >= 1:
        assert max(len(row.token_ids) for row in tokens(family).encode(request).rows) <= WINDOW
    else:
        with pytest.raises(Rejection, match=rf"leaves {max(room, 0)} of the model's {WINDOW}") as caught:
            tokens(family).encode(request)
        assert caught.value.reason is Reason.INVALID


@every_family
@pytest.mark.parametrize(
    "text", ["word " * 20_000, "x" * 100_000, "👩🏽‍🚀" * 25_000, "\u0301" * 100_000, " " * 100_000]
)
def test_texts_of_a_hundred_thousand_characters(family: str, text: str) -> None:
    encoded = tokens(family).encode(entail(text, "It is long."))
    reference = checkpoint(family).tokenizer([text], ["It is long."], truncation="only_first", max_length=WINDOW)
    assert encoded.rows[0].token_ids.tolist() == reference["input_ids"][0]


@every_family
def test_languages_are_embeddings_of_xlm_alone(family: str) -> None:
    language_id = 2 if family == "xlm" else None
    (row,) = tokens(family).encode(entail("Guten Tag", "Hallo", language="de")).rows
    assert row.language_id == language_id
    (row,) = tokens(family).encode(embed("Guten Tag", language="de")).rows
    assert row.language_id == language_id


def test_a_detected_language_that_xlm_does_not_know_is_its_default() -> None:
    def read_as(of: Tokens, language: str) -> int | None:
        return of.encode(embed("nuqneH", language=language, detected=language)).rows[0].language_id

    known = checkpoint("xlm").languages
    german = Tokens(replace(checkpoint("xlm"), default_language="de"))
    assert [read_as(german, language) for language in ("fr", "tlh", "und")] == [known["fr"], known["de"], known["de"]]
    none = Tokens(replace(checkpoint("xlm"), default_language=None))
    assert read_as(none, "und") == known["en"]
    without_english = {code: number for code, number in known.items() if code != "en"}
    with pytest.raises(Rejection, match="does not know the language 'tlh'; it knows ar, bg, de"):
        read_as(Tokens(replace(checkpoint("xlm"), default_language=None, languages=without_english)), "tlh")


def test_xlm_needs_a_language_it_knows() -> None:
    with pytest.raises(Rejection, match="does not know the language 'tlh'; it knows ar, bg, de"):
        tokens("xlm").encode(embed("nuqneH", language="tlh"))
    without_default = Tokens(replace(checkpoint("xlm"), default_language=None))
    with pytest.raises(Rejection, match="names no language; it knows ar, bg, de"):
        without_default.encode(embed("Hello"))
    (row,) = tokens("xlm").encode(embed("Hello")).rows
    assert row.language_id == 4  # the default, English


def test_a_checkpoint_without_head_embeds_and_nothing_else() -> None:
    bare = Tokens(replace(checkpoint("bert"), order=None))
    assert len(bare.encode(embed("Hello")).rows) == 1
    with pytest.raises(Rejection, match="serves EMBED, not CLASSIFY"):
        bare.encode(classify("Hello", "World"))


def test_a_window_that_is_nearly_all_hypothesis_is_no_window() -> None:
    """Else one message of 25,000 tokens could ask for thousands of forwards per label."""
    hypothesis = "a " * 28  # leaves nine
    with pytest.raises(Rejection, match=f"at least {WINDOW // 4} needed"):
        tokens("bert").encode(entail("a " * 100, hypothesis, long_text=LongText.WINDOW_MAX))
    assert tokens("bert").encode(entail("a " * 9, hypothesis, long_text=LongText.WINDOW_MAX)).windows == 1


def test_the_side_that_is_cut_is_the_tokenizers() -> None:
    tokenizer = tokenizers.bert()
    tokenizer.truncation_side = "left"
    left = Tokens(replace(checkpoint("bert"), tokenizer=tokenizer))
    text = " ".join(SENTENCES[:8])
    (row,) = left.encode(entail(text, "Yes.")).rows
    reference = tokenizer([text], ["Yes."], truncation="only_first", max_length=WINDOW)
    assert row.token_ids.tolist() == reference["input_ids"][0]


def test_the_python_tokenizers_memory_is_bounded() -> None:
    """XLM's tokenizer keeps every word it ever saw."""
    fresh = Tokens(replace(checkpoint("xlm"), tokenizer=tokenizers.xlm()))
    for start in range(0, 110_000, 10_000):
        fresh.encode(embed(" ".join(str(number) for number in range(start, start + 10_000))))
    assert len(fresh._segment.args[0].cache) <= 60_000  # type: ignore[attr-defined]


def test_hypotheses_are_remembered_up_to_a_bound() -> None:
    small = Tokens(checkpoint("bert"), cache_hypotheses=2)
    for hypothesis in ("one", "two", "one", "three", "one"):
        small.encode(entail("text", hypothesis))
    information = small._tail.cache_info()
    assert (information.currsize, information.hits) == (2, 2)


def test_encoding_lets_other_threads_run() -> None:
    """Tokenising one long text must not stop the inference thread's Python."""
    fast = Tokens(checkpoint("xlm-roberta"))
    text = " ".join(SENTENCES) * 200  # about a second
    turns, done = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not done.wait(0.001):
            turns += 1

    other = threading.Thread(target=take_turns)
    other.start()
    fast.encode(embed(text))
    done.set()
    other.join()
    assert turns > 20  # a call that keeps the GIL leaves a turn or two


@checked
@given(
    text=TEXT,
    labels=st.lists(st.sampled_from(["a", "a longer label"]), min_size=1, max_size=3),
    long_text=st.sampled_from(LongText),
)
def test_a_request_is_refused_from_the_first_token_over_its_limit(
    text: str, labels: list[str], long_text: LongText
) -> None:
    loaded = checkpoint("xlm-roberta")
    request = classify(text * 9, *labels, long_text=long_text)
    encoded = tokens("xlm-roberta").encode(request)
    assert Tokens(loaded, max_request_tokens=encoded.tokens).encode(request).tokens == encoded.tokens
    with pytest.raises(Rejection, match=rf"^{encoded.tokens} tokens in {len(encoded.rows)} rows") as refused:
        Tokens(loaded, max_request_tokens=encoded.tokens - 1).encode(request)
    assert refused.value.reason is Reason.TOO_LARGE
    assert f"limits.max_tokens is {encoded.tokens - 1};" in str(refused.value)


def test_too_much_work_is_refused_before_its_rows_are_made() -> None:
    request = classify("a b " * 25_000, *[f"label {i}" for i in range(256)], long_text=LongText.WINDOW_MAX)
    small = Tokens(checkpoint("xlm-roberta"), max_request_tokens=262_144)
    tracemalloc.start()
    try:
        with pytest.raises(Rejection) as refused:
            small.encode(request)
        assert tracemalloc.get_traced_memory()[1] < 16e6, "the rows alone are tens of megabytes"
    finally:
        tracemalloc.stop()
    assert refused.value.reason is Reason.TOO_LARGE
