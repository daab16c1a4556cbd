"""Dead letters on stdout: on a terminal two lines for each, JSON lines in a pipe."""

from __future__ import annotations

import sys
import time
from typing import Any, Final

from worker import screen, terminal
from worker.avro.codec import Codecs
from worker.commands.json_lines import describe, is_wanted, json_line, timestamp_of
from worker.errors import RegistryAway
from worker.rules.replay import DeadLetterRecord
from worker.screen import Cell, Screen

# Letters of one page on a terminal: enough for columns that fit, few enough that the first appear soon.
_PAGE: Final = 100
_HEAD: Final = ("position", "reason", "age", "tries", "key", "id")
_LONGEST: Final = 30  # of a column
_INDENT: Final = "    "
# The units of ages, as `--since` takes them too.
UNITS_S: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


class Listing:
    """Writes dead letters one by one. ``close`` writes what is left.

    On a terminal the message has a line of its own, and is never cut: it says how to mend what is wrong. A page is held
    for its columns to fit.

    Args:
        codecs: Read the requests, for their ids.
        remark: Name of a further column.
        as_json: JSON on a terminal too.
    """

    def __init__(self, codecs: Codecs, remark: str | None = None, *, as_json: bool = False) -> None:
        self._codecs: Codecs | None = codecs
        self._remark = remark
        self._screen = None if is_wanted(as_json) else Screen()
        self._page: list[tuple[list[str], str]] = []

    def write(self, dead_letter: DeadLetterRecord, remark: str = "") -> None:
        """One dead letter, with what is to be said in the further column."""
        shown = summary(dead_letter) | {"id": self._id(dead_letter)}
        if self._remark is not None:
            shown[self._remark] = remark
        if self._screen is None:
            sys.stdout.buffer.write(json_line(shown))
            return
        said = dead_letter.said
        tries = f"{said.get('attempts', '?')}" + (f"+{dead_letter.replays}" if dead_letter.replays else "")
        cells = [
            str(shown["position"]),
            said.get("reason", "?"),
            age(dead_letter.record.timestamp_ms),
            tries,
            shown["key"] if shown["key"] is not None else "-",
            shown["id"] or "-",
            *([remark] if self._remark is not None else []),
        ]
        message = dead_letter.record.unreadable or said.get("message", "")
        self._page.append(([terminal.harmless(cell) for cell in cells], terminal.harmless(message)))
        if len(self._page) == _PAGE:
            self.close()

    def close(self) -> None:
        """Write what waits for its page to fill."""
        if self._page and self._screen is not None:
            out = self._screen
            head = [*_HEAD, *([self._remark] if self._remark is not None else [])]
            rows = [head, *(cells for cells, _ in self._page)]
            widths = [min(_LONGEST, max(map(screen.width, column))) for column in zip(*rows, strict=True)][:-1]
            out.row([Cell(name, screen.DIM) for name in head], widths)
            for cells, message in self._page:
                out.row([Cell(cells[0], screen.BOLD), Cell(cells[1], screen.YELLOW), *cells[2:]], widths)
                for line in screen.wrapped(message, out.columns - len(_INDENT)):
                    out.line(_INDENT + screen.isolated(line))
            self._page.clear()
        sys.stdout.flush()

    def _id(self, dead_letter: DeadLetterRecord) -> str | None:
        """The request's id, where the request can be read."""
        if self._codecs is None:
            return None
        try:
            request = describe(dead_letter.record, self._codecs, dead_letters=True).get("request")
        except RegistryAway:
            self._codecs = None  # the list need not wait for it once for each letter
            return None
        found = request.get("id") if isinstance(request, dict) else None
        return found if isinstance(found, str) else None


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


def age(timestamp_ms: int) -> str:
    """How long ago a moment was, in its largest unit; ? for a record without a timestamp."""
    if timestamp_ms < 0:
        return "?"
    seconds = max(0, int(time.time() - timestamp_ms / 1000))
    unit = next((unit for unit, length_s in UNITS_S.items() if seconds >= 2 * length_s), "s")
    return f"{seconds // UNITS_S[unit]}{unit}"
