"""Texts to token ids and, where the tokenizer tells, to the places in the text that they stand for.

Special tokens are neither added nor recognised: see `worker.inference.tokens`.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import regex
import tokenizers
from transformers import PreTrainedTokenizerBase

from worker.errors import CheckpointError

TokenIds = npt.NDArray[np.int32]
Places = npt.NDArray[np.int64]

_UNSEEN: Final = regex.compile(r"[\p{C}\s]*")
_WORDS_OF_PYTHON_TOKENIZER: Final = 50_000  # XLM's caches every word without limit; past this the cache is emptied


class Segmenter(Protocol):
    """A tokenizer without its special tokens. Several threads may use it at once."""

    def ids(self, text: str) -> TokenIds:
        """The ids of a text."""

    def all_ids(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each of several texts."""

    def places(self, text: str) -> Places | None:
        """What each token of a text stands for: (tokens, 2), its ``[start, end)`` in code points of the text.

        Several tokens may share a code point that they spell together. None where the tokenizer does not tell.
        """


def segmenter(tokenizer: PreTrainedTokenizerBase) -> Segmenter:
    """What segments as the tokenizer does."""
    return _Fast(_plain_backend(tokenizer)) if tokenizer.is_fast else _InPython(tokenizer)


class _Fast:
    """The batch calls release the GIL, so that another thread computes meanwhile; ``encode`` would keep it."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def ids(self, text: str) -> TokenIds:
        return as_ids(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def all_ids(self, texts: Sequence[str]) -> list[TokenIds]:
        return [as_ids(made.ids) for made in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def places(self, text: str) -> Places:
        # Where a normaliser removes what a text begins with, tokenizers 0.23 tells all places too small by as much.
        begin = _UNSEEN.match(text).end()
        whole, seen, gone = self._backend.encode_batch([text, text[begin:], text[:begin]], add_special_tokens=False)
        made, shift = (seen, begin) if seen.ids == whole.ids and not gone.ids else (whole, 0)
        return np.array(made.offsets, dtype=np.int64).reshape(-1, 2) + shift


class _InPython:
    """XLM's. It tells no places. It keeps the words it has seen, each thread its own: to look is not one step."""

    def __init__(self, tokenizer: Any) -> None:
        self._original = tokenizer
        self._own = threading.local()

    def ids(self, text: str) -> TokenIds:
        tokenizer = self.own
        if len(tokenizer.cache) > _WORDS_OF_PYTHON_TOKENIZER:
            tokenizer.cache.clear()
        return as_ids(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text, split_special_tokens=True)))

    def all_ids(self, texts: Sequence[str]) -> list[TokenIds]:
        return [self.ids(text) for text in texts]

    def places(self, text: str) -> None:  # noqa: ARG002 (see `Segmenter`)
        return None

    @property
    def own(self) -> Any:
        """This thread's tokenizer: the original's parts, and words of its own."""
        if not hasattr(self._own, "tokenizer"):
            self._own.tokenizer = copy.copy(self._original)
            self._own.tokenizer.cache = {}
        return self._own.tokenizer


def as_ids(values: Sequence[int]) -> TokenIds:
    """Ids as rows hold them."""
    return np.array(values, dtype=np.int32)


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
