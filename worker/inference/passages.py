"""A text as words and passages, in any script, without a dictionary.

- **Words** stand between white space. Where a script sets none between words, a few letters stand for one: two of
  Chinese and Japanese, four of Thai, Lao, Khmer and Burmese. Punctuation belongs to the word before it.
- **Sentences** end with a word that ends with a full stop, a question or exclamation mark of any script (Unicode's
  Sentence_Terminal) and what closes a quotation behind it; at the end of a line; and in Thai and its relatives at a
  space. An abbreviation looks like an end: that makes two parts of one sentence, which harms nobody.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final, NamedTuple

import regex

from worker.messages import Span

LONGEST: Final = 24
"""Words of a passage: a longer sentence is divided."""
PHRASE: Final = 6
"""Words that are not divided any more: few enough to see at a glance, and a short sentence stays whole."""

_PAIRED: Final = r"\p{Han}\p{Hiragana}\p{Katakana}ー々〆〇"
_SPACELESS: Final = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_AFTER: Final = r"[^\p{L}\p{N}\p{M}\p{Ps}\p{Pi}\s]*"  # punctuation, but for what opens a quotation
_WORD: Final = regex.compile(
    rf"[\p{{Ps}}\p{{Pi}}]*(?:[{_PAIRED}]\p{{M}}*){{1,2}}{_AFTER}"
    rf"|[\p{{Ps}}\p{{Pi}}]*(?:[{_SPACELESS}][\p{{M}}\u200b-\u200d]*){{1,4}}{_AFTER}"
    rf"|(?:(?![{_PAIRED}{_SPACELESS}])\S)+"
)
_CLOSING: Final = r"[\p{Pe}\p{Pf}\p{Pi}'\"]*$"
_SENTENCE_END: Final = regex.compile(rf"[\p{{Sentence_Terminal}}…]{_CLOSING}")
_CLAUSE_END: Final = regex.compile(rf"[\p{{Po}}\p{{Pd}}]{_CLOSING}")
_SPACELESS_END: Final = regex.compile(rf"[{_SPACELESS}]$")


class Part(NamedTuple):
    """Words of a text, from the first to the one before the last."""

    first: int
    last: int

    @property
    def words(self) -> int:
        """How many."""
        return self.last - self.first


class Passages:
    """A text, or a part of it, in words. Spans are in code points of the whole text."""

    def __init__(self, text: str, within: Span) -> None:
        self._text = text
        self._within = within
        self._words = [found.span() for found in _WORD.finditer(text, within.start, within.end)]

    def parts(self, least: int) -> list[Part]:
        """The text's sentences in order, long ones divided.

        Where there are fewer than ``least``, the longest are divided further, down to `PHRASE` words.
        """
        found = [(-part.words, part) for part in self._sentences()]
        heapq.heapify(found)
        while found and (-found[0][0] > LONGEST or (len(found) < least and -found[0][0] > PHRASE)):
            part = found[0][1]
            middle = self._middle(part)
            heapq.heapreplace(found, (part.first - middle, Part(part.first, middle)))
            heapq.heappush(found, (middle - part.last, Part(middle, part.last)))
        return sorted(part for _, part in found)

    def without(self, part: Part) -> str:
        """The text without some of its words, and without the white space behind them."""
        words, within = self._words, self._within
        if part.last == len(words):
            return self._text[within.start : words[part.first - 1][1] if part.first else within.start]
        return self._text[within.start : words[part.first][0]] + self._text[words[part.last][0] : within.end]

    def span(self, part: Part) -> Span:
        """Where some words stand, from the first letter to the last."""
        return Span(self._words[part.first][0], self._words[part.last - 1][1])

    def _sentences(self) -> Iterator[Part]:
        first = 0
        for last in range(1, len(self._words) + 1):
            if last == len(self._words) or self._ends_sentence(last - 1):
                yield Part(first, last)
                first = last

    def _ends_sentence(self, word: int) -> bool:
        end, begin = self._words[word][1], self._words[word + 1][0]
        if _SENTENCE_END.search(self._text, self._words[word][0], end):
            return True
        gap = self._text[end:begin]
        return "\n" in gap or bool(gap and _SPACELESS_END.search(self._text, end - 1, end))

    def _middle(self, part: Part) -> int:
        """Where to divide a part: behind the clause that ends nearest the middle, if one ends in the middle half."""
        middle, quarter = (part.first + part.last + 1) // 2, part.words // 4
        for off in range(quarter + 1):
            for at in (middle - off, middle + off):
                if part.first < at < part.last and self._ends_clause(at - 1):
                    return at
        return middle

    def _ends_clause(self, word: int) -> bool:
        return bool(_CLAUSE_END.search(self._text, *self._words[word]))
