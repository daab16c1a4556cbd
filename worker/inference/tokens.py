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

A window's place in the text, and what of a text that is cut was seen, is told by the tokenizer's offsets (`Segmenter`),
which are asked for only then.

With a taxonomy only its top level is encoded at once. The other levels' rows are made by `Tokens.rows` when they are
wanted, over the same windows: those beside the longest hypothesis of the whole taxonomy.

A prompt, which some checkpoints were trained to see before each text to embed, is tokenised together with the text, as
sentence-transformers does, and neither truncated nor left out of a window.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from worker.errors import CheckpointError, Reason, Rejection
from worker.inference.checkpoint_files import is_failure
from worker.inference.model import Checkpoint
from worker.inference.pairs import Pairs, frame_of, reject, row_of
from worker.inference.segmenter import Places, TokenIds, segmenter
from worker.inference.tree import Tree
from worker.messages import Encoded, LongText, Request, Row, Span, Task, Taxonomy

_STRANGE = "ß 文 \U0001f40d \u0378"  # of these some vocabulary lacks each; the last is no character at all
_TREES: Final = 32  # taxonomies that are kept unfolded: a megabyte each at 4,096 labels


class Tokens:
    """Encodes requests for one checkpoint. Several threads may use it at once.

    Args:
        checkpoint: whose tokenizer, window and languages apply.
        max_request_tokens: how many tokens the rows of one request may have together; None: any number.
        cache_hypotheses: how many hypotheses to cache, each at most a window long.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, max_request_tokens: int | None = None, cache_hypotheses: int = 10_000
    ) -> None:
        self.max_request_tokens = max_request_tokens
        self._segmenter = segmenter(checkpoint.tokenizer)
        self._segment = self._segmenter.ids
        self._max_length = checkpoint.max_length
        self._languages = checkpoint.languages
        self._default_language = checkpoint.default_language
        # Of what was detected and is none of the checkpoint's: where no default is set, requests are detected too.
        self._otherwise = self._default_language or ("en" if "en" in self._languages else None)
        self._classifies = checkpoint.order is not None
        self._name = checkpoint.identity.name
        try:
            self._single, self._pair = (frame_of(checkpoint.tokenizer, pair=pair) for pair in (False, True))
            self._segment(_STRANGE)  # a vocabulary without its token for the unknown fails here, and not at a message
            self._prompt, self._prompt_ids = checkpoint.prompt, self._segment(checkpoint.prompt)
        except BaseException as error:
            if isinstance(error, CheckpointError) or not is_failure(error):
                raise
            raise CheckpointError(
                f"the tokenizer of {self._name} cannot read a text ({type(error).__name__}: {error}): it is damaged, "
                "or not the one that belongs to the model; copy or download it again"
            ) from error
        self._pairs = Pairs(
            self._pair,
            self._segment,
            self._max_length,
            keeps_end=checkpoint.tokenizer.truncation_side == "left",
            cache_hypotheses=cache_hypotheses,
        )
        self._tail = self._pairs.tail
        self._unfold = functools.lru_cache(maxsize=_TREES)(functools.partial(_unfolded, self._tail))

    @property
    def pairs(self) -> Pairs:
        """How a text's tokens and a hypothesis become a row."""
        return self._pairs

    def encode(self, request: Request) -> Encoded:
        """Tokenise a request.

        Returns:
            Rows in the order [hypothesis][window]. ``truncated`` says that some row saw less than the whole text.

        Raises:
            Rejection: (invalid) the checkpoint has no classification head, does not know the language, or a hypothesis
                leaves no room for the text; (too_large) its rows together have more tokens than one request may have.
        """
        if request.task is not Task.EMBED and not self._classifies:
            reject(f"{self._name} has no classification head: it serves EMBED, not {request.task}")
        language_id = self._language_id(request)
        if request.taxonomy is not None and request.task is Task.CLASSIFY:
            return self._encode_top(request, request.taxonomy)
        spans: tuple[Span, ...] = ()
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
            self._pairs.require_room(request, rooms, 1)
            self._require_work(len(tails), around + sum(min(room, len(text)) for room in rooms))
            cuts = [self._pairs.cut(text, room) for room in rooms]
            heads, truncated = [[np.concatenate((before, cut))] for cut in cuts], True
        else:
            # Windows of fewer tokens than a quarter of the model's say little, and each costs a row of the forward.
            self._pairs.require_room(request, rooms, self._max_length // 4)
            starts = _window_starts(len(text), least)
            self._require_work(len(tails) * len(starts), len(starts) * (around + least * len(tails)))
            spans = self._spans(request, starts, least)
            windows = [text[start : start + least] for start in starts]
            heads, truncated = [[np.concatenate((before, window)) for window in windows]] * len(tails), False
        rows = [
            row_of(frame, head, tail, language_id)
            for tail, windows_of_tail in zip(tails, heads, strict=True)
            for head in windows_of_tail
        ]
        premise = text if request.evidence and request.task is Task.CLASSIFY else None
        return Encoded(
            tuple(rows), len(heads[0]), truncated, sum(len(row.token_ids) for row in rows), premise=premise, spans=spans
        )

    def _encode_top(self, request: Request, taxonomy: Taxonomy) -> Encoded:
        """The rows of a taxonomy's top level, once the dearest way down it is known to be within the limit."""
        tree, lengths = self._unfold(request.hypotheses, taxonomy)
        before, text = len(self._pair.before), self._segment(request.text)
        rooms = self._max_length - before - lengths
        least = int(rooms.min())
        spans: tuple[Span, ...] = ()
        windows, is_cut = 1, False
        read = np.minimum(rooms, len(text))
        if len(text) > least:
            is_cut = request.long_text is LongText.TRUNCATE
            self._pairs.require_room(request, rooms.tolist(), 1 if is_cut else self._max_length // 4)
            if not is_cut:
                starts = _window_starts(len(text), least)
                windows, read = len(starts), np.full_like(rooms, least)
        most = tree.most(windows * (before + lengths + read), multi_label=request.multi_label)
        self._require_work(tree.most(np.full_like(rooms, windows), multi_label=request.multi_label), most)
        if windows > 1:
            spans = self._spans(request, starts, least)
        encoded = Encoded((), windows, is_cut, 0, premise=text, spans=spans)
        rows = self.rows(request, taxonomy, encoded, tree.top)
        return replace(encoded, rows=tuple(rows), tokens=sum(len(row.token_ids) for row in rows))

    def tree(self, request: Request, taxonomy: Taxonomy) -> Tree:
        """The taxonomy of a request, unfolded."""
        return self._unfold(request.hypotheses, taxonomy)[0]

    def rows(self, request: Request, taxonomy: Taxonomy, encoded: Encoded, nodes: Iterable[int]) -> list[Row]:
        """Rows of some nodes of an encoded request's taxonomy, in the order [node][window]."""
        before, text = self._pair.before, _premise(encoded)
        language_id = self._language_id(request)
        if encoded.windows == 1:
            return [self._pairs.row(text, request.hypotheses[node], language_id) for node in nodes]
        _, lengths = self._unfold(request.hypotheses, taxonomy)
        least = self._max_length - len(before) - int(lengths.max())
        heads = [np.concatenate((before, text[start : start + least])) for start in _window_starts(len(text), least)]
        tails = [self._tail(request.hypotheses[node]) for node in nodes]
        return [row_of(self._pair, head, tail, language_id) for tail in tails for head in heads]

    def seen(self, request: Request, encoded: Encoded, hypotheses: Sequence[str]) -> list[Span | None]:
        """What of the text is read in one window beside each hypothesis. None where the tokenizer does not tell."""
        length, whole = len(_premise(encoded)), Span(0, len(request.text))
        rooms = [self._pairs.room(self._tail(hypothesis)) for hypothesis in hypotheses]
        if min(rooms) >= length:
            return [whole] * len(rooms)
        places = self._segmenter.places(request.text)
        if places is None:
            return [whole if room >= length else None for room in rooms]
        return [whole if room >= length else _extent(self._pairs.cut(places, room)) for room in rooms]

    def all_ids(self, texts: Sequence[str]) -> list[TokenIds]:
        """The tokens of each of several texts, without special ones."""
        return self._segmenter.all_ids(texts)

    def _spans(self, request: Request, starts: Sequence[int], size: int) -> tuple[Span, ...]:
        """Where windows of ``size`` tokens stand in the text; empty where nobody asks, or nobody knows."""
        is_asked = request.long_text is LongText.WINDOW_MAX or request.evidence
        if request.task is Task.EMBED or not is_asked or (places := self._segmenter.places(request.text)) is None:
            return ()
        return tuple(_extent(places[start : start + size]) for start in starts)

    def _after_prompt(self, before: TokenIds, text: str) -> tuple[TokenIds, TokenIds]:
        """What stands before a text to embed, the prompt's tokens with it, and the text's own."""
        ids = self._segment(self._prompt + text)
        most = min(len(ids), len(self._prompt_ids))
        # Where the two meet they may have become one token, which counts as the text's.
        differs = np.flatnonzero(ids[:most] != self._prompt_ids[:most])
        own = int(differs[0]) if len(differs) else most
        return np.concatenate((before, ids[:own])), ids[own:]

    def _require_work(self, rows: int, tokens: int) -> None:
        """Refuse too much work, before any of the rows is made: they may be gigabytes."""
        limit = self.max_request_tokens
        if limit is not None and tokens > limit:
            raise Rejection(
                Reason.TOO_LARGE,
                "encode",
                f"{tokens} tokens in {rows} rows (one for each hypothesis and window); limits.max_tokens is {limit}; "
                "send a shorter text or fewer labels, let it be truncated, or raise the limit",
            )

    def _language_id(self, request: Request) -> int | None:
        if not self._languages:
            return None
        wanted = request.language if request.language is not None else self._default_language
        if request.detected is not None and wanted not in self._languages:
            wanted = self._otherwise or wanted  # nobody named it: that is no reason to refuse the text
        known = ", ".join(sorted(self._languages))
        if wanted is None:
            reject(f"{self._name} has language embeddings and the request names no language; it knows {known}")
        if wanted not in self._languages:
            reject(f"{self._name} does not know the language {wanted!r}; it knows {known}")
        return self._languages[wanted]


def _unfolded(
    tail: Callable[[str], TokenIds], hypotheses: tuple[str, ...], taxonomy: Taxonomy
) -> tuple[Tree, npt.NDArray[np.intp]]:
    """A taxonomy's nodes, and how many tokens follow the premise for each."""
    return Tree(taxonomy), np.array([len(tail(hypothesis)) for hypothesis in hypotheses], dtype=np.intp)


def _premise(encoded: Encoded) -> TokenIds:
    if encoded.premise is None:
        raise ValueError("the tokens of the text are kept only for a taxonomy or for evidence")
    return encoded.premise


def _extent(places: Places) -> Span:
    """From where the first of some tokens begins to where the last ends. Tokens that stand for nothing do not count."""
    real = places[places[:, 1] > places[:, 0]]
    return Span(int(real[:, 0].min()), int(real[:, 1].max())) if len(real) else Span(0, 0)


def _window_starts(length: int, window: int) -> list[int]:
    """Where windows over ``length`` tokens begin: a quarter shared with the one before, the last ending at the end."""
    step = max(window - window // 4, 1)
    return [*range(0, length - window, step), length - window]
