"""`xnli-worker label-sets list` and `show`: the sets of the compacted topic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from worker import screen, terminal
from worker.commands import connection, label_set_topic
from worker.commands.connection import say
from worker.commands.dead_letter_listing import age
from worker.commands.json_lines import is_wanted, json_line
from worker.commands.label_set_topic import StoredSet
from worker.errors import NoSuchLabelSet
from worker.label_sets.record import Label, LabelSetRecord, nodes
from worker.rules.label_set import worded
from worker.screen import Cell, Screen, plural

_HEAD: Final = ("name", "version", "labels", "levels", "languages", "age")
_LONGEST: Final = 30  # of a column


def list_label_sets(config: Path | None, *, as_json: bool = False) -> None:
    """Write a line for each set: a table on a terminal, JSON lines elsewhere.

    Raises:
        SettingsError: the settings are wrong.
        BrokerAway, TopicMissing: there is nothing to read.
    """
    settings = connection.load_settings(config)
    with label_set_topic.opened(settings) as topic:
        known = topic.read()
    if is_wanted(as_json):
        for stored in known.values():
            sys.stdout.buffer.write(json_line(_summary(stored)))
        sys.stdout.buffer.flush()
        return
    out = Screen()
    rows = [[terminal.harmless(cell) for cell in _cells(stored)] for stored in known.values()]
    widths = [min(_LONGEST, max(map(screen.width, column))) for column in zip(_HEAD, *rows, strict=True)][:-1]
    if rows:
        out.row([Cell(name, screen.DIM) for name in _HEAD], widths)
    for cells, stored in zip(rows, known.values(), strict=True):
        out.row([Cell(cells[0], screen.BOLD), *cells[1:]], widths)
        if stored.refused:
            out.line(f"    refused: {terminal.harmless(stored.refused)}", screen.RED)
    sys.stdout.flush()
    say(plural(len(known), "label set"))


def show(config: Path | None, name: str, *, as_json: bool = False) -> None:
    """Write one set: a tree on a terminal, elsewhere JSON that `put` takes.

    Raises:
        NoSuchLabelSet: it is not there, or is none.
        SettingsError: the settings are wrong.
        BrokerAway, TopicMissing: there is nothing to read.
    """
    settings = connection.load_settings(config)
    with label_set_topic.opened(settings) as topic:
        stored = topic.read().get(name)
        if stored is None:
            raise NoSuchLabelSet(f"{topic.name} has no label set {name!r}; xnli-worker label-sets list shows all")
    if stored.record is None:
        raise NoSuchLabelSet(f"{name}: the worker refuses what lies there: {stored.refused}")
    if is_wanted(as_json):
        value = json.loads(stored.value)
        whole = {"name": name} | (value if isinstance(value, dict) else {"labels": value})
        sys.stdout.buffer.write(json_line(whole))
        sys.stdout.buffer.flush()
        return
    _tree(stored, stored.record)
    sys.stdout.flush()


def _tree(stored: StoredSet, record: LabelSetRecord) -> None:
    out = Screen()
    out.line(f"{terminal.harmless(stored.name)}, version {terminal.harmless(stored.version)}", screen.BOLD)
    said = record.model_dump(mode="json", exclude={"name", "version", "labels"}, exclude_defaults=True)
    for field, value in said.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        out.line(f"{field} = {terminal.harmless(shown)}", screen.DIM)
    for entry, _, level in nodes(record.labels):
        indent = "  " * level
        if not isinstance(entry, Label):
            out.line(f"{indent}{terminal.harmless(entry)}")
            continue
        notes = [] if entry.threshold is None else [f"from {entry.threshold:g}"]
        own = entry.hypothesis
        if own is not None:
            # Of several the default, else the languages that it has one for.
            notes.append(worded(own, None) or ", ".join(sorted(own)))
        more = f"  ({terminal.harmless('; '.join(notes))})" if notes else ""
        out.line(f"{indent}{terminal.harmless(entry.label)}{more}")


def _summary(stored: StoredSet) -> dict[str, Any]:
    record = stored.record
    tree = [] if record is None else nodes(record.labels)
    return {
        "name": stored.name,
        "version": stored.version,
        "labels": len(tree),
        "levels": max((level for _, _, level in tree), default=0),
        "languages": [] if record is None else sorted(record.languages),
        "bytes": len(stored.value),
        "partition": stored.partition,
        "offset": stored.offset,
        "timestamp": stored.timestamp_ms if stored.timestamp_ms >= 0 else None,
        "refused": stored.refused or None,
    }


def _cells(stored: StoredSet) -> list[str]:
    shown = _summary(stored)
    languages = ", ".join(shown["languages"]) or "-"
    return [
        stored.name,
        stored.version,
        f"{shown['labels']}",
        f"{shown['levels']}",
        languages,
        age(stored.timestamp_ms),
    ]
