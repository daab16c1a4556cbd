"""Requests to token ids: the premise is tokenised once, hypotheses are cached, only the premise is truncated.

The ids are those of ``tokenizer(premise, hypothesis, truncation="only_first", max_length=...)``, with two differences
on purpose:

- **Special tokens inside a text are text.** transformers reads a literal ``</s>`` or ``[SEP]`` in user text as the
  separator itself. A message could thereby end its own premise, or mislead BART, which pools at the last ``</s>``. Here
  such a string is segmented like any other, as SentencePiece and fastBPE themselves do. (XLM's Python tokenizer
  recognises either all added tokens or none, so there the words that somebody added to the vocabulary are text too.)
- **A premise is never dropped silently.** Where the hypothesis leaves no room for a single premise token, transformers
  stops truncating or raises, depending on the tokenizer; here the request is invalid.

An empty text is encoded as no tokens between its special tokens.

XLM's tokenizer prepares every language with Moses' rules for English, because transformers passes no language on from
``tokenizer(...)``. The request's language only chooses the language embedding.

Windows: with WINDOW_MAX or WINDOW_MEAN a long text is read through windows. A window has as many tokens as fit beside
the longest hypothesis of the request, so that all hypotheses see the same windows. It begins three quarters of a window
after the one before, so a quarter is seen twice; the last one ends with the text. Each carries the whole hypothesis.

A prompt, which some checkpoints were trained to see before each text to embed, is tokenised together with the text, as
sentence-transformers does, and neither truncated nor left out of a window.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import tokenizers
from transformers import PreTrainedTokenizerBase

from worker.errors import CheckpointError, Reason, Rejection
from worker.inference.checkpoint_files import is_failure
from worker.inference.model import Checkpoint
from worker.messages import Encoded, LongText, Request, Row, Task

TokenIds = npt.NDArray[np.int32]

_STRANGE = "ß 文 \U0001f40d \u0378"  # of these some vocabulary lacks each; the last is no character at all
_WORDS_OF_PYTHON_TOKENIZER = 50_000  # XLM's tokenizer caches every word without limit; past this the cache is emptied


class Tokens:
    """Encodes requests for one checkpoint.

    It shares no mutable state with the engine, so that one thread may encode while another computes.

    Args:
        checkpoint: whose tokenizer, window and languages apply.
        max_request_tokens: how many tokens the rows of one request may have together; None: any number.
        cache_hypotheses: how many hypotheses to cache, each at most a window long.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, max_request_tokens: int | None = None, cache_hypotheses: int = 10_000
    ) -> None:
        self._max_request_tokens = max_request_tokens
        self._segment = _segmenter(checkpoint.tokenizer)
        self._max_length = checkpoint.max_length
        self._left = checkpoint.tokenizer.truncation_side == "left"
        self._languages = checkpoint.languages
        self._default_language = checkpoint.default_language
        # Of what was detected and is none of the checkpoint's: where no default is set, requests are detected too.
        self._otherwise = self._default_language or ("en" if "en" in self._languages else None)
        self._classifies = checkpoint.order is not None
        self._name = checkpoint.identity.name
        try:
            self._single, self._pair = (_frame(checkpoint.tokenizer, pair=pair) for pair in (False, True))
            self._segment(_STRANGE)  # a vocabulary without its token for the unknown fails here, and not at a message
            self._prompt, self._prompt_ids = checkpoint.prompt, self._segment(checkpoint.prompt)
        except BaseException as error:
            if isinstance(error, CheckpointError) or not is_failure(error):
                raise
            raise CheckpointError(
                f"the tokenizer of {self._name} cannot read a text ({type(error).__name__}: {error}): it is damaged, "
                "or not the one that belongs to the model; copy or download it again"
            ) from error
        # functools' cache keeps no exception, so it holds no hypothesis longer than the window.
        self._tail = functools.lru_cache(maxsize=cache_hypotheses)(self._encode_hypothesis)

    def encode(self, request: Request) -> Encoded:
        """Tokenise a request.

        Returns:
            Rows in the order [hypothesis][window]. ``truncated`` says that some row saw less than the whole text.

        Raises:
            Rejection: (invalid) the checkpoint has no classification head, does not know the language, or a hypothesis
                leaves no room for the text; (too_large) its rows together have more tokens than one request may have.
        """
        if request.task is not Task.EMBED and not self._classifies:
            _reject(f"{self._name} has no classification head: it serves EMBED, not {request.task}")
        language_id = self._language_id(request)
        if request.task is Task.EMBED:
            frame, tails = self._single, [self._single.after]
        else:
            frame, tails = self._pair, [self._tail(hypothesis) for hypothesis in request.hypotheses]
        if self._prompt and request.task is Task.EMBED:
            before, text = self._after_prompt(frame.before, request.text)
        else:
            before, text = frame.before, self._segment(request.text)
        rooms = [self._max_length - len(before) - len(tail) for tail in tails]
        least = min(rooms)
        around = sum(len(before) + len(tail) for tail in tails)
        if len(text) <= least:
            self._require_work(len(tails), around + len(text) * len(tails))
            heads, truncated = [[np.concatenate((before, text))]] * len(tails), False
        elif request.long_text is LongText.TRUNCATE:
            self._require_room(request, rooms, 1)
            self._require_work(len(tails), around + sum(min(room, len(text)) for room in rooms))
            cuts = [text[-room:] if self._left else text[:room] for room in rooms]
            heads, truncated = [[np.concatenate((before, cut))] for cut in cuts], True
        else:
            # Windows of fewer tokens than a quarter of the model's say little, and each costs a row of the forward.
            self._require_room(request, rooms, self._max_length // 4)
            starts = _window_starts(len(text), least)
            self._require_work(len(tails) * len(starts), len(starts) * (around + least * len(tails)))
            windows = [text[start : start + least] for start in starts]
            heads, truncated = [[np.concatenate((before, window)) for window in windows]] * len(tails), False
        rows = []
        for tail, windows_of_tail in zip(tails, heads, strict=True):
            for head in windows_of_tail:
                ids = np.concatenate((head, tail))
                at = len(ids) if frame.segment is None else len(head) + frame.segment
                rows.append(Row(ids, at, language_id))
        return Encoded(tuple(rows), len(heads[0]), truncated, sum(len(row.token_ids) for row in rows))

    def _after_prompt(self, before: TokenIds, text: str) -> tuple[TokenIds, TokenIds]:
        """What stands before a text to embed, the prompt's tokens with it, and the text's own."""
        ids = self._segment(self._prompt + text)
        most = min(len(ids), len(self._prompt_ids))
        # Where the two meet they may have become one token, which counts as the text's.
        differs = np.flatnonzero(ids[:most] != self._prompt_ids[:most])
        own = int(differs[0]) if len(differs) else most
        return np.concatenate((before, ids[:own])), ids[own:]

    def _encode_hypothesis(self, hypothesis: str) -> TokenIds:
        """Everything that follows the premise: separator, hypothesis, end."""
        ids = self._segment(hypothesis)
        tail = np.concatenate((self._pair.between, ids, self._pair.after))
        if len(self._pair.before) + len(tail) > self._max_length:
            self._reject_hypothesis(hypothesis, len(tail))
        return tail

    def _require_room(self, request: Request, rooms: Sequence[int], least: int) -> None:
        for index, room in enumerate(rooms):
            if room < least:
                if not request.hypotheses:
                    _reject(
                        f"a window of {self._max_length} tokens leaves {room} for the text; at least {least} needed"
                    )
                hypothesis = request.hypotheses[index]
                self._reject_hypothesis(hypothesis, len(self._tail(hypothesis)), least)

    def _require_work(self, rows: int, tokens: int) -> None:
        """Refuse too much work, before any of the rows is made: they may be gigabytes."""
        limit = self._max_request_tokens
        if limit is not None and tokens > limit:
            raise Rejection(
                Reason.TOO_LARGE,
                "encode",
                f"{tokens} tokens in {rows} rows (one for each hypothesis and window); limits.max_tokens is {limit}; "
                "send a shorter text or fewer labels, let it be truncated, or raise the limit",
            )

    def _reject_hypothesis(self, hypothesis: str, tail: int, least: int = 1) -> NoReturn:
        special = len(self._pair.between) + len(self._pair.after)
        room = self._max_length - len(self._pair.before) - tail
        shown = hypothesis if len(hypothesis) <= 80 else hypothesis[:80] + "…"
        _reject(
            f"hypothesis {shown!r} has {tail - special} tokens, which with {special + len(self._pair.before)} special "
            f"ones leaves {max(room, 0)} of the model's {self._max_length} for the text; at least {least} needed: "
            "shorten the label, the hypothesis or the template"
        )

    def _language_id(self, request: Request) -> int | None:
        if not self._languages:
            return None
        wanted = request.language if request.language is not None else self._default_language
        if request.detected is not None and wanted not in self._languages:
            wanted = self._otherwise or wanted  # nobody named it: that is no reason to refuse the text
        known = ", ".join(sorted(self._languages))
        if wanted is None:
            _reject(f"{self._name} has language embeddings and the request names no language; it knows {known}")
        if wanted not in self._languages:
            _reject(f"{self._name} does not know the language {wanted!r}; it knows {known}")
        return self._languages[wanted]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens around one text or two. ``segment``: where token type 1 begins, counted from ``between``."""

    before: TokenIds
    between: TokenIds
    after: TokenIds
    segment: int | None


def _reject(message: str) -> NoReturn:
    raise Rejection(Reason.INVALID, "encode", message)


def _window_starts(length: int, window: int) -> list[int]:
    """Where windows over ``length`` tokens begin: a quarter shared with the one before, the last ending at the end."""
    step = max(window - window // 4, 1)
    return [*range(0, length - window, step), length - window]


def _ids(values: Sequence[int]) -> TokenIds:
    return np.array(values, dtype=np.int32)


def _segmenter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], TokenIds]:
    """Text to ids, special tokens neither added nor recognised."""
    if not tokenizer.is_fast:
        return functools.partial(_segment_in_python, tokenizer)
    backend = _plain_backend(tokenizer)

    def segment(text: str) -> TokenIds:
        # The batch call releases the GIL, so that another thread computes meanwhile; encode() keeps it.
        return _ids(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    return segment


def _segment_in_python(tokenizer: Any, text: str) -> TokenIds:
    if len(tokenizer.cache) > _WORDS_OF_PYTHON_TOKENIZER:
        tokenizer.cache.clear()
    return _ids(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text, split_special_tokens=True)))


def _plain_backend(tokenizer: Any) -> tokenizers.Tokenizer:
    """A copy of a fast tokenizer's backend that does not recognise special tokens in a text.

    ``encode_special_tokens`` keeps them from being cut out of the text beforehand. A unigram model would still find
    them, because they are among its pieces with the best scores (SentencePiece marks them as control symbols that no
    text matches). So a unigram model is built anew, with special tokens renamed to what cannot occur: a piece with a
    blank.
    """
    original: tokenizers.Tokenizer = tokenizer.backend_tokenizer
    if not isinstance(original.model, tokenizers.models.Unigram):
        backend = copy.deepcopy(original)
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        return backend
    model = json.loads(original.to_str())["model"]
    added = sorted(original.get_added_tokens_decoder().items())
    special = {token.content for _, token in added if token.special}
    pieces = [(f" {piece} " if piece in special else piece, score) for piece, score in model["vocab"]]
    backend = tokenizers.Tokenizer(
        tokenizers.models.Unigram(pieces, model["unk_id"], model.get("byte_fallback", False))
    )
    backend.normalizer = original.normalizer
    backend.pre_tokenizer = original.pre_tokenizer
    backend.encode_special_tokens = True
    for number, token in added:
        if token.special and number < len(pieces):
            continue  # renamed above
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
        if backend.token_to_id(token.content) != number:
            raise CheckpointError(
                f"the tokenizer's added token {token.content!r} has the id {number}, which leaves a gap after the "
                f"{len(pieces)} pieces of its vocabulary; use a checkpoint whose added tokens follow one another"
            )
    return backend


def _frame(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> _Frame:
    """Learn from the tokenizer itself which special tokens it sets around texts, and which token types."""
    texts = (["a"], ["a"]) if pair else (["a"],)
    encoded = tokenizer(*texts)
    ids: list[int] = encoded["input_ids"][0]
    types: list[int] = encoded.get("token_type_ids", [[0] * len(ids)])[0]
    text: list[int] = tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
    first = _find(ids, text, 0)
    first_end = first + len(text)
    second = _find(ids, text, first_end) if pair else first_end
    second_end = second + len(text) if pair else first_end
    segment = types.index(1) - first_end if 1 in types else None
    return _Frame(_ids(ids[:first]), _ids(ids[first_end:second]), _ids(ids[second_end:]), segment)


def _find(ids: list[int], text: list[int], start: int) -> int:
    for at in range(start, len(ids) - len(text) + 1):
        if text and ids[at : at + len(text)] == text:
            return at
    raise CheckpointError(
        f"the tokenizer turns 'a' into {text} but a text or pair made of it into {ids}: its special tokens cannot be "
        "told from the text; use a checkpoint whose tokenizer transformers supports"
    )
