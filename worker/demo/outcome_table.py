"""What came of the demo's messages, as a table that fits a terminal, or as JSON lines."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from worker import screen, terminal
from worker.errors import Reason
from worker.screen import Cell, Screen, plural

# What the short table shows: of each task and each kind of answer something, in scripts that are hard to align.
TELLING: Final = (
    "en-moderation", "ru-topic", "zh-sentiment", "hi-moderation", "ar-urgency", "de-sentiment", "th-topic",
    "en-multi", "en-entail", "no-labels", "cut-short", "en-embed",
)  # fmt: skip
# Beside what an answer needs: the language, the gaps, and the score.
_LANGUAGE_COLUMNS: Final = 2
_SCORE_COLUMNS: Final = 4
_TEXT_SHARE: Final = 0.52


@dataclass(frozen=True, slots=True)
class Sample:
    """A message to send, and what has to become of it: a result, or a dead letter for ``reason``."""

    key: str
    language: str
    shown: str
    value: bytes
    reason: Reason | None = None


@dataclass(slots=True)
class Answer:
    """What a sample led to."""

    topic: str
    result: dict[str, Any] | None
    reason: str | None
    message: str
    received_s: float


def print_json(sent: Sequence[Sample], answers: Mapping[str, Answer], summary: Mapping[str, Any]) -> None:
    """A line for each message, and one for the whole."""
    for sample in sent:
        answer = answers.get(sample.key)
        line: dict[str, Any] = {"key": sample.key, "language": sample.language, "text": sample.shown}
        if answer is not None and answer.result is not None:
            line["result"] = answer.result
        elif answer is not None:
            line |= {"dead_letter": answer.reason, "message": answer.message}
        # In UTF-8, as JSON is, whatever the locale says.
        text = terminal.escaped(json.dumps(line, ensure_ascii=False, default=str))
        sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.write(json.dumps({"summary": summary}).encode() + b"\n")
    sys.stdout.buffer.flush()


def print_table(
    sent: Sequence[Sample], answers: Mapping[str, Answer], summary: Mapping[str, Any], *, show_all: bool
) -> None:
    """A dozen telling messages, or all of them with the whole advice of each dead letter, and what to type next."""
    out = Screen()
    rows = sent if show_all else [sample for key in TELLING for sample in sent if sample.key == key]
    rows = rows or sent[: len(TELLING)]
    left = out.columns - _LANGUAGE_COLUMNS - _SCORE_COLUMNS - 3 * screen.GAP
    widths = [_LANGUAGE_COLUMNS, int(left * _TEXT_SHARE), _SCORE_COLUMNS]
    out.row([Cell(name, screen.DIM) for name in ("", "text", "", "answer")], widths)
    for sample in rows:
        score, text, style = _answer(answers.get(sample.key))
        out.row(
            [Cell(sample.language, screen.DIM), terminal.harmless(sample.shown), Cell(score, style), Cell(text, style)],
            widths,
        )
        advice = answers[sample.key].message if show_all and sample.key in answers else ""
        for line in screen.wrapped(terminal.harmless(advice), out.columns - 8):
            out.line(f"        {line}", screen.DIM)
    out.line("")
    if summary["wrong"]:
        out.line(
            f"{plural(summary['wrong'], 'message')} of {summary['messages']} did not fare as they should", screen.RED
        )
    else:
        _print_totals(out, sent, answers, summary)
    out.line('next: your own text    xnli-worker classify "I love it." -l praise,complaint', screen.BOLD)
    if not show_all and len(rows) < len(sent):
        out.line("      all messages     xnli-worker demo --all")
    out.line("      your own broker  xnli-worker config init")


def _print_totals(
    out: Screen, sent: Sequence[Sample], answers: Mapping[str, Answer], summary: Mapping[str, Any]
) -> None:
    languages = {sample.language for sample in sent if sample.language}
    reasons = Counter(str(answer.reason) for answer in answers.values() if answer.reason is not None)
    named = ", ".join(f"{count} {terminal.harmless(reason)}" for reason, count in sorted(reasons.items()))
    out.line(
        f"{plural(summary['answered'], 'answer')} in {plural(len(languages), 'language')}: "
        f"{plural(summary['pairs'], 'pair')} in {plural(summary['batches'], 'batch', 'batches')}, "
        f"{summary['messages_per_s']:,.0f} messages/s here"
    )
    if reasons:
        out.line(f"{plural(summary['dead_lettered'], 'dead letter')}, as it should be: {named}")


def _answer(answer: Answer | None) -> tuple[str, str, str]:
    """Score, words and style of what came of a message."""
    if answer is None:
        return "", "no answer", screen.RED
    if answer.result is None:
        return "", f"✗ dead letter: {terminal.harmless(str(answer.reason))}", screen.MAGENTA
    found = screen.answer(answer.result["outcome"], most=2)
    return "" if found.score is None else f"{found.score:.2f}", found.text, found.style
