"""A text's tokens and a hypothesis become a row: special tokens, room, and what is refused for want of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from worker.errors import CheckpointError, Reason, Rejection
from worker.inference.segmenter import TokenIds, as_ids
from worker.messages import Request, Row

_Number = TypeVar("_Number", np.int32, np.int64)


@dataclass(frozen=True, slots=True)
class Frame:
    """The special tokens around one text or two. ``segment``: where token type 1 begins, counted from ``between``."""

    before: TokenIds
    between: TokenIds
    after: TokenIds
    segment: int | None


class Pairs:
    """Pairs of a text and a hypothesis for one checkpoint. Several threads may use it at once.

    Args:
        frame: the special tokens around a pair.
        segment: text to token ids.
        max_length: tokens of a row.
        keeps_end: whether a text that is cut loses its beginning.
        cache_hypotheses: how many hypotheses to cache, each at most a window long.
    """

    def __init__(
        self,
        frame: Frame,
        segment: Callable[[str], TokenIds],
        max_length: int,
        *,
        keeps_end: bool,
        cache_hypotheses: int,
    ) -> None:
        self._pair = frame
        self._max_length = max_length
        self._keeps_end = keeps_end
        # functools' cache keeps no exception, so it holds no hypothesis longer than the window. (A method's cache would
        # hold its own object: a model that is exchanged has to be let go of without a search for cycles.)
        tail = functools.partial(_tail, frame, segment, max_length)
        self.tail = functools.lru_cache(maxsize=cache_hypotheses)(tail)

    def row(self, text: TokenIds, hypothesis: str, language_id: int | None) -> Row:
        """A text's own tokens with a hypothesis. Text that finds no room is cut."""
        tail = self.tail(hypothesis)
        head = np.concatenate((self._pair.before, self.cut(text, self.room(tail))))
        return row_of(self._pair, head, tail, language_id)

    def room(self, tail: TokenIds) -> int:
        """Tokens of a text that find room before a hypothesis and what surrounds it."""
        return self._max_length - len(self._pair.before) - len(tail)

    def cut(self, tokens: npt.NDArray[_Number], room: int) -> npt.NDArray[_Number]:
        """Tokens, or what belongs to each, of a text that finds no room: the side is the tokenizer's."""
        return tokens[max(len(tokens) - room, 0) :] if self._keeps_end else tokens[:room]

    def require_room(self, request: Request, rooms: Sequence[int], least: int) -> None:
        """Refuse a request whose hypotheses leave less than ``least`` tokens for the text. ``rooms``: one for each."""
        for index, room in enumerate(rooms):
            if room < least:
                if not request.hypotheses:
                    reject(f"a window of {self._max_length} tokens leaves {room} for the text; at least {least} needed")
                hypothesis = request.hypotheses[index]
                tail = len(self.tail(hypothesis))
                _reject_hypothesis(self._pair, self._max_length, hypothesis, tail, least)


def _tail(frame: Frame, segment: Callable[[str], TokenIds], max_length: int, hypothesis: str) -> TokenIds:
    """Everything that follows the premise: separator, hypothesis, end."""
    tail = np.concatenate((frame.between, segment(hypothesis), frame.after))
    if len(frame.before) + len(tail) > max_length:
        _reject_hypothesis(frame, max_length, hypothesis, len(tail))
    return tail


def _reject_hypothesis(frame: Frame, max_length: int, hypothesis: str, tail: int, least: int = 1) -> NoReturn:
    special = len(frame.between) + len(frame.after)
    room = max_length - len(frame.before) - tail
    shown = hypothesis if len(hypothesis) <= 80 else hypothesis[:80] + "…"
    reject(
        f"hypothesis {shown!r} has {tail - special} tokens, which with {special + len(frame.before)} special ones "
        f"leaves {max(room, 0)} of the model's {max_length} for the text; at least {least} needed: shorten the label, "
        "the hypothesis or the template"
    )


def row_of(frame: Frame, head: TokenIds, tail: TokenIds, language_id: int | None) -> Row:
    """A row of all that stands before and behind the border of its segments."""
    ids = np.concatenate((head, tail))
    return Row(ids, len(ids) if frame.segment is None else len(head) + frame.segment, language_id)


def reject(message: str) -> NoReturn:
    """Refuse a request as invalid."""
    raise Rejection(Reason.INVALID, "encode", message)


def frame_of(tokenizer: PreTrainedTokenizerBase, *, pair: bool) -> Frame:
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
    return Frame(as_ids(ids[:first]), as_ids(ids[first_end:second]), as_ids(ids[second_end:]), segment)


def _find(ids: list[int], text: list[int], start: int) -> int:
    for at in range(start, len(ids) - len(text) + 1):
        if text and ids[at : at + len(text)] == text:
            return at
    raise CheckpointError(
        f"the tokenizer turns 'a' into {text} but a text or pair made of it into {ids}: its special tokens cannot be "
        "told from the text; use a checkpoint whose tokenizer transformers supports"
    )
