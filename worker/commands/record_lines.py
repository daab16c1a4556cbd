"""Results and dead letters on stdout: one line each that a person can read, or a line of JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from worker import screen, terminal
from worker.commands.json_lines import is_wanted, json_line
from worker.rules.dead_letter import PREFIX
from worker.screen import Cell, Screen

_BAR_COLUMNS: Final = 10
_LONGEST_KEY: Final = 24


class RecordLines:
    """Writes records that `worker.commands.json_lines.describe` has made objects of, as they come.

    On a terminal: the local time, the key, and the answer; a vector as its size. Elsewhere JSON lines, exact.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._screen = None if is_wanted(as_json) else Screen()

    def write(self, shown: Mapping[str, Any]) -> None:
        """One record. Each line is there at once, for whoever watches."""
        if self._screen is None:
            # In UTF-8, as JSON is, whatever the locale says.
            sys.stdout.buffer.write(json_line(dict(shown)))
            sys.stdout.buffer.flush()
            return
        out = self._screen
        key_columns = min(_LONGEST_KEY, max(8, (out.columns - 30) // 3))
        key = Cell(terminal.harmless(str(shown["key"] if shown["key"] is not None else "-")), screen.BOLD)
        begin: list[Cell | str] = [_time(shown["timestamp"]), key]
        widths = [8, key_columns]
        result = shown.get("result")
        if isinstance(result, Mapping) and isinstance(result.get("outcome"), Mapping):
            found = screen.answer(result["outcome"])
            text = found.text + (" (text cut)" if result.get("truncated") else "")
            if found.score is not None:
                bar = out.bar(found.score, _BAR_COLUMNS)
                cells = [*begin, f"{found.score:.2f}", Cell(bar, found.style), Cell(text, found.style)]
                out.row(cells, [*widths, 4, _BAR_COLUMNS])
            else:
                out.row([*begin, Cell(text, found.style)], widths)
        else:
            out.row([*begin, Cell(*_not_answered(shown))], widths)
        sys.stdout.flush()


def _not_answered(shown: Mapping[str, Any]) -> tuple[str, str]:
    """What a record says that is no result, and its style."""
    headers = shown.get("headers") or {}
    reason = headers.get(f"{PREFIX}reason")
    if reason is not None:
        return (
            f"✗ {terminal.harmless(reason)}: {terminal.harmless(headers.get(f'{PREFIX}message') or '')}",
            screen.MAGENTA,
        )
    if "error" in shown:
        return f"no result: {terminal.harmless(shown['error'])}", screen.RED
    if shown.get("unreadable"):
        return terminal.harmless(shown["unreadable"]), screen.RED
    return ("no value", screen.DIM) if shown.get("result", shown.get("request")) is None else ("a request", "")


def _time(timestamp_ms: int | None) -> str:
    """The local time of today, or the date of another day."""
    if timestamp_ms is None:
        return "-"
    at = datetime.fromtimestamp(timestamp_ms / 1000).astimezone()
    return at.strftime("%H:%M:%S" if at.date() == datetime.now().astimezone().date() else "%y-%m-%d")
