"""What a person reads on a terminal: aligned columns, bars, and other people's text that can do no harm.

Terminals do not agree on how wide a letter is: vowel signs of Indic scripts take one column in some and none in others,
and families of emoji two or six. So every column is begun by moving the cursor there, and only what is cut goes by a
width of ours, which takes the larger figure.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.cells import cell_len
from rich.console import Console

from worker.terminal import harmless

GAP: Final = 2  # columns between two cells
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL"})
# The mark behind is for VTE (the terminal of GNOME and Xfce, 0.70), which passes over isolates: it would take two texts
# of a line and the score between them for one, and show the answer before its text.
_ISOLATE, _END = "\N{FIRST STRONG ISOLATE}", "\N{POP DIRECTIONAL ISOLATE}\N{LEFT-TO-RIGHT MARK}"
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"

# Readable on a dark and on a light ground: no yellow, and no bold colours, which many terminals brighten.
BOLD, DIM, GREEN, MAGENTA, RED, CYAN = "1", "2", "32", "35", "31", "36"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and its style: one of the names above, or none."""

    text: str
    style: str = ""


def width(text: str) -> int:
    """Columns that a text takes, at most."""
    return sum(1 if unicodedata.category(letter) == "Mc" else cell_len(letter) for letter in text)


def cut(text: str, columns: int) -> str:
    """A text that takes no more than so many columns, the last an ellipsis if something is left out."""
    if width(text) <= columns:
        return text
    return _beginning(text, columns - 1) + "…"


def _beginning(text: str, columns: int) -> str:
    """As much of a text as fits."""
    used = 0
    for index, letter in enumerate(text):
        used += width(letter)
        if used > columns:
            return text[:index]
    return text


_WORD: Final = re.compile(r"\d[\d.,]* (?:s|ms|kB|MB|GB)(?!\w)\S*|\S+")


def wrapped(text: str, columns: int) -> list[str]:
    """A text over as many lines as it takes, broken between words where there are any; a number keeps its unit."""
    lines: list[str] = []
    line = ""
    for word in _WORD.findall(text):
        joined = f"{line} {word}" if line else word
        if width(joined) <= columns:
            line = joined
            continue
        lines += [line] if line else []
        line = word
        while width(line) > columns:  # longer than a line: broken anywhere, and nothing left out
            head = _beginning(line, columns) or line[0]
            lines.append(head)
            line = line[len(head) :]
    return [*lines, line] if line else lines


def isolated(text: str) -> str:
    """A text that cannot reorder what stands beside it: one with right-to-left letters is set apart."""
    if any(unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT for letter in text):
        return f"{_ISOLATE}{text}{_END}"
    return text


def plural(count: int, noun: str, many: str | None = None) -> str:
    """A count and its noun: ``1 message``, ``2,000 messages``."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


class Screen:
    """stdout, as wide as it is. ``columns`` is that width; 80 where nobody knows."""

    def __init__(self) -> None:
        console = Console(file=sys.stdout)
        self.columns = console.width
        self.lines = console.height
        self._can_steer = console.is_terminal and not console.is_dumb_terminal
        self._has_colour = self._can_steer and console.color_system is not None and not console.no_color
        self._has_blocks = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"

    def bar(self, share: float, columns: int) -> str:
        """A bar of at most so many columns for a share from 0 to 1, an eighth of a column exact."""
        if not self._has_blocks:
            return "#" * round(share * columns)
        whole, eighths = divmod(round(min(1.0, max(0.0, share)) * columns * 8), 8)
        return "█" * whole + (_EIGHTHS[eighths] if eighths else "")

    def row(self, cells: Sequence[Cell | str], widths: Sequence[int]) -> None:
        """A line of cells, each cut to its width. The last takes what is left of the line."""
        line, begin = "", 0
        for cell, columns in zip(cells, [*widths, None], strict=True):
            text, style = (cell.text, cell.style) if isinstance(cell, Cell) else (cell, "")
            shown = cut(text, max(1, self.columns - begin if columns is None else columns))
            line += self._styled(isolated(shown), style)
            if columns is not None:
                begin += columns + GAP
                line += f"\x1b[{begin + 1}G" if self._can_steer else " " * (columns + GAP - width(shown))
        sys.stdout.write(line.rstrip(" ") + "\n")

    def marked(self, before: str, found: str, after: str, style: str) -> str:
        """A passage in its surroundings: in a style, or in brackets where there are no colours."""
        passage = self._styled(found, style) if self._has_colour else f"[{found}]"
        return isolated(f"{before}{passage}{after}")

    def line(self, text: str, style: str = "") -> None:
        """A line that is not cut: a terminal breaks it."""
        sys.stdout.write(self._styled(text, style) + "\n")

    def words(self, text: str, style: str = "", *, indent: int = 0) -> None:
        """As many lines as it takes, broken between words."""
        for line in wrapped(text, self.columns - indent):
            self.line(f"{'':{indent}}{line}", style)

    def _styled(self, text: str, style: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if style and text and self._has_colour else text


@dataclass(frozen=True, slots=True)
class Answer:
    """An outcome in words: the score that counts most, if it has one, and what it is the score of.

    Where a calibration knows the label that is the calibrated score, and the words have the raw one.
    """

    score: float | None
    text: str
    style: str = ""


_VERDICTS: Final = {"entailment": GREEN, "neutral": "", "contradiction": RED}


def answer(outcome: Mapping[str, Any], most: int = 3) -> Answer:
    """The outcome of a result as a line of words. Labels that were scored each by itself are marked.

    Args:
        outcome: The field ``outcome`` of a result.
        most: Labels or hypotheses that are named; the others are counted.
    """
    if "labels" in outcome:
        labels = outcome["labels"]
        mark = "each: " if outcome["multi_label"] else ""
        if not labels:
            return Answer(None, f"{mark}no label reached the threshold", DIM)
        first, *others = labels
        raw = "" if first.get("calibrated") is None else f" (raw {first['score']:.2f})"
        named = [f"{harmless(first['label'])}{raw}"]
        named += [f"{harmless(other['label'])} {_probable(other):.2f}" for other in others[: most - 1]]
        left = [f"+{len(labels) - most}"] if len(labels) > most else []
        return Answer(_probable(first), mark + ", ".join([*named, *left]), GREEN)
    if "judgements" in outcome:
        parts, score, style = [], None, ""
        for judgement in outcome["judgements"][:most]:
            verdict = max(_VERDICTS, key=lambda name: float(judgement[name]))
            score, style = (judgement[verdict], _VERDICTS[verdict]) if score is None else (score, style)
            parts.append(f"{verdict}: {harmless(judgement['hypothesis'])}")
        return Answer(score, " · ".join(parts), style)
    return Answer(None, f"vector of {outcome['dimension']}", CYAN)


def _probable(label: Mapping[str, Any]) -> float:
    """The calibrated score of a label, or the raw one where nothing calibrates it."""
    calibrated = label.get("calibrated")
    return float(label["score"] if calibrated is None else calibrated)
