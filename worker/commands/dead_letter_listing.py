"""Dead letters on stdout: a table on a terminal, JSON lines in a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any, Final

from worker import terminal
from worker.commands.json_lines import json_line, timestamp_of
from worker.rules.replay import DeadLetterRecord

# Rows of one table on a terminal: enough for columns that fit, few enough that the first appear soon.
_PAGE_ROWS: Final = 200
_COLUMNS: Final = ("position", "reason", "stage", "origin", "age", "attempts", "replays")
_LEAST_MESSAGE_CHARS: Final = 20
# The units of ages, as `--since` takes them too.
UNITS_S: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


class Listing:
    """Writes dead letters one by one. ``close`` writes what is left.

    On a terminal a page of rows is held for its columns to fit, and has a head of its own. Only the message is cut to
    the terminal's width: a position or a topic that is not whole is of no use.
    """

    def __init__(self, remark: str | None = None) -> None:
        self._head = [*_COLUMNS, *([remark] if remark is not None else []), "message"]
        self._remark = remark  # name of a further column
        self._page: list[list[str]] = []
        self._as_table = sys.stdout.isatty()

    def write(self, dead_letter: DeadLetterRecord, remark: str = "") -> None:
        """One dead letter, with what is to be said in the further column."""
        shown = summary(dead_letter)
        if not self._as_table:
            sys.stdout.buffer.write(json_line(shown if self._remark is None else shown | {self._remark: remark}))
            return
        said = dead_letter.said
        cells = [
            shown["position"],
            said.get("reason", "?"),
            said.get("stage", "?"),
            f"{said.get('topic', '?')}/{said.get('partition', '?')}/{said.get('offset', '?')}",
            _age(dead_letter.record.timestamp_ms),
            said.get("attempts", "?"),
            str(dead_letter.replays),
            *([remark] if self._remark is not None else []),
            dead_letter.record.unreadable or said.get("message", ""),
        ]
        self._page.append([terminal.harmless(cell) for cell in cells])
        if len(self._page) == _PAGE_ROWS:
            self.close()

    def close(self) -> None:
        """Write what waits for its page to fill."""
        if self._page:
            rows = [self._head, *self._page]
            widths = [max(map(len, column)) + 2 for column in zip(*(row[:-1] for row in rows), strict=True)]
            left = max(_LEAST_MESSAGE_CHARS, shutil.get_terminal_size().columns - sum(widths))
            for row in rows:
                cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True)]
                sys.stdout.write("".join(cells) + row[-1][:left] + "\n")
            self._page.clear()
        sys.stdout.flush()


def summary(dead_letter: DeadLetterRecord) -> dict[str, Any]:
    """A dead letter as one JSON object without its payload. What its headers do not say is null."""
    record, said = dead_letter.record, dead_letter.said
    partition = record.position.partition
    return {
        "position": f"{partition.number}:{record.position.offset}",
        "timestamp": timestamp_of(record),
        "key": dead_letter.key,
        **{name: said.get(name) for name in ("reason", "stage", "error", "message")},
        "origin": {"topic": said.get("topic")}
        | {name: dead_letter.number(name) for name in ("partition", "offset", "timestamp")},
        "attempts": dead_letter.number("attempts"),
        "replays": dead_letter.replays,
        "group": said.get("group"),
        "worker": said.get("worker"),
        "truncated": dead_letter.number("truncated"),
        "unreadable": dead_letter.record.unreadable or None,
    }


def _age(timestamp_ms: int) -> str:
    if timestamp_ms < 0:
        return "?"
    seconds = max(0, int(time.time() - timestamp_ms / 1000))
    unit = next((unit for unit, length_s in UNITS_S.items() if seconds >= 2 * length_s), "s")
    return f"{seconds // UNITS_S[unit]}{unit}"
