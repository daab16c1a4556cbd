"""Requests as people have them: JSON lines, JSON arrays, pretty-printed objects one after another, and CSV.

All is read as a stream: a file may be larger than memory, and a typing error costs the request that it is in.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from worker.avro.excerpt import excerpt
from worker.errors import Reason, Rejection, SettingsError

# A value that is not whole after so many characters is none: the rest of the file would be read in search of its end.
_LONGEST_CHARS: Final = 16 * 1024 * 1024
_BETWEEN_LABELS: Final = "|"  # between the labels of a cell
_COLUMNS: Final = ("id", "text", "labels", "label_set", "hypothesis_template", "multi_label", "task", "language")
_BYTE_ORDER_MARK: Final = "\N{ZERO WIDTH NO-BREAK SPACE}"  # some editors begin a file with one
_MEND: Final = (
    "write JSON objects in UTF-8, one a line or one after another, an array of them, or CSV with a column text"
)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. One with two values for a key means one of them, and nobody can tell which: Rejection."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Rejection(Reason.INVALID, "encode", f"{excerpt(twice)} stands there twice; leave one of them out")
    return found


_JSON: Final = json.JSONDecoder(object_pairs_hook=_object)


@dataclass(frozen=True, slots=True)
class Given:
    """A request as it was given, or why there is none. ``size_bytes`` of the source led to it."""

    line: int
    size_bytes: int
    fields: dict[str, Any] | None = None
    refused: Rejection | None = None


def labels_of(option: str) -> list[str]:
    """Labels from a command line: with commas between, or a JSON array where they hold commas themselves.

    Raises:
        SettingsError: it begins as a JSON array and is none of texts.
    """
    if not option.lstrip().startswith("["):
        return [label for part in option.split(",") if (label := part.strip())]
    try:
        found = json.loads(option)
    except ValueError as error:
        raise SettingsError(f'--labels: is no JSON ({error}); write ["a", "b, c"], or a,b') from None
    if not all(isinstance(label, str) for label in found):
        raise SettingsError('--labels: write texts, as in ["a", "b, c"]')
    return list(found)


def labels_of_file(file: Path) -> list[str]:
    """The labels of a file: a JSON array of texts, as the value of a record in the topic of label sets.

    Raises:
        SettingsError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}; name a file with a JSON array of labels") from None
    except (ValueError, RecursionError) as error:
        raise SettingsError(f'{file}: is no JSON ({error}); write ["a", "b"]') from None
    if not isinstance(found, list) or not found or not all(isinstance(label, str) for label in found):
        raise SettingsError(f'{file}: is no list of labels; write ["a", "b"]')
    return found


def read(source: Iterable[bytes], labels: Sequence[str]) -> Iterator[Given]:
    """The requests of a source, whose lines are given.

    Args:
        source: Lines, each with its end.
        labels: For requests that name none; empty: they stay as they are.
    """
    lines = iter(source)
    head: list[bytes] = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    begin = head[-1].decode("utf-8", "replace").lstrip(_BYTE_ORDER_MARK).lstrip() if head else ""
    rest = _chained(head, lines)
    is_csv = begin[:1] not in {"{", "["} and "text" in _names(begin)
    for given in _of_csv(rest) if is_csv else _Json(rest):
        fields = given.fields
        if labels and fields is not None and not fields.get("labels") and fields.get("label_set") is None:
            fields["labels"] = list(labels)
        yield given


def _chained(head: Iterable[bytes], lines: Iterator[bytes]) -> Iterator[bytes]:
    yield from head
    yield from lines


def _no_json(why: object) -> Rejection:
    if isinstance(why, json.JSONDecodeError):
        why = f"{why.msg} at column {why.colno}"
    return Rejection(Reason.MALFORMED, "encode", f"no JSON: {why}; {_MEND}")


class _Json:
    """JSON values from lines. Iterating yields each request, and each line or lines that are none."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines = lines
        self._number = 0  # of the last line that was taken
        self._held: list[tuple[int, bytes, str]] = []  # lines of a value that is not whole yet
        self._in_array = False

    def __iter__(self) -> Iterator[Given]:
        for raw in self._lines:
            self._number += 1
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                yield from self._give_up(f"line {self._held[0][0]} is not closed" if self._held else "")
                yield Given(self._number, len(raw), refused=_no_json(error))
                continue
            yield from self._take(raw, text.removeprefix(_BYTE_ORDER_MARK) if self._number == 1 else text)
        if self._held:
            yield from self._give_up("it ends before its end")

    def _take(self, raw: bytes, text: str) -> Iterator[Given]:
        if self._held and _is_object(text):
            # Whole by itself, so what is held was never closed, and this is the next.
            yield from self._give_up("it is not closed before the next begins")
        elif not self._held and not text.strip():
            yield Given(self._number, len(raw))
            return
        self._held.append((self._number, raw, text))
        joined = "".join(held for _, _, held in self._held)
        try:
            values, rest = self._values(joined)
        except (ValueError, RecursionError, Rejection) as error:
            yield from self._refuse_first(error)
            return
        if rest:
            if len(joined) > _LONGEST_CHARS:
                yield from self._refuse_first(f"a value of more than {_LONGEST_CHARS:,} characters")
            elif values:  # a part of the line belongs to the next value
                yield from self._requests(values, held=[(self._number, b"", rest)])
            return
        yield from self._requests(values, held=[])

    def _requests(self, values: list[Any], held: list[tuple[int, bytes, str]]) -> Iterator[Given]:
        line, size_bytes = self._held[0][0], sum(len(raw) for _, raw, _ in self._held)
        self._held = held
        flat = [part for value in values for part in (value if isinstance(value, list) else [value])]
        for index, value in enumerate(flat):
            size = size_bytes if index == 0 else 0
            if isinstance(value, dict):
                yield Given(line, size, value)
            else:
                why = Rejection(Reason.INVALID, "encode", 'no JSON object; write {"id": ..., "text": ..., ...}')
                yield Given(line, size, refused=why)
        if not flat:
            yield Given(line, size_bytes)

    def _values(self, text: str) -> tuple[list[Any], str]:
        """The values that a text begins with, and what follows: the beginning of a value that is not whole.

        Raises:
            ValueError, RecursionError: it is no JSON, whatever may follow.
        """
        values: list[Any] = []
        at, end = 0, len(text.rstrip())
        while True:
            while at < end and (text[at].isspace() or (self._in_array and text[at] in ",]")):
                self._in_array = self._in_array and text[at] != "]"
                at += 1
            if at >= end:
                return values, ""
            try:
                value, at = _JSON.raw_decode(text, at)
            except json.JSONDecodeError as error:
                if error.pos < end:
                    raise
                if text[at] == "[":  # one element after the other, however long the array
                    self._in_array, at = True, at + 1
                    continue
                return values, text[at:]
            values.append(value)

    def _refuse_first(self, why: object) -> Iterator[Given]:
        """The first of the lines held is no JSON; those behind it are looked at anew."""
        (line, raw, _), *behind = self._held
        self._held = []
        yield Given(line, len(raw), refused=why if isinstance(why, Rejection) else _no_json(why))
        number = self._number
        for self._number, again, text in behind:
            yield from self._take(again, text)
        self._number = number

    def _give_up(self, why: str) -> Iterator[Given]:
        """What is held will never be whole."""
        if self._held:
            line, size_bytes = self._held[0][0], sum(len(raw) for _, raw, _ in self._held)
            self._held = []
            yield Given(line, size_bytes, refused=_no_json(why))


def _is_object(text: str) -> bool:
    """Whether a line holds an object of its own, as JSON lines do."""
    stripped = text.strip()
    if not (stripped.startswith("{") and stripped.endswith("}")):
        return False
    try:
        return isinstance(_JSON.decode(stripped), dict)
    except Rejection:
        return True  # of which one name stands there twice
    except (ValueError, RecursionError):
        return False


def _names(line: str) -> list[str]:
    """The columns that a first line names, if it is one of CSV."""
    return [name.strip() for name in next(csv.reader([line]), [])]


def _of_csv(lines: Iterator[bytes]) -> Iterator[Given]:
    """Rows with the columns of `_COLUMNS`, of which ``text`` is required; other columns become attributes.

    Labels of a cell stand between bars. A row without an id is called by its number.
    """
    sizes: list[int] = []

    def texts() -> Iterator[str]:
        for raw in lines:
            sizes.append(len(raw))
            yield raw.decode("utf-8", "replace").removeprefix(_BYTE_ORDER_MARK)

    csv.field_size_limit(_LONGEST_CHARS)
    rows = csv.reader(texts(), strict=True)
    names: list[str] = []
    number = 0
    while True:
        begun = len(sizes)
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Given(
                begun + 1, sum(sizes[begun:]), refused=Rejection(Reason.MALFORMED, "encode", f"no CSV: {error}")
            )
            continue
        size_bytes = sum(sizes[begun:])
        if not any(cell.strip() for cell in row):
            yield Given(begun + 1, size_bytes)
        elif not names:
            names = [name.strip() for name in row]
            yield Given(begun + 1, size_bytes)
        elif len(row) != len(names):
            why = f"has {len(row)} cells, the first line names {len(names)}; quote cells that hold commas"
            yield Given(begun + 1, size_bytes, refused=Rejection(Reason.MALFORMED, "encode", why))
        else:
            number += 1
            yield Given(begun + 1, size_bytes, _request(dict(zip(names, row, strict=True)), number))


def _request(cells: dict[str, str], number: int) -> dict[str, Any]:
    fields: dict[str, Any] = {name: cells[name] for name in _COLUMNS if cells.get(name)}
    fields.setdefault("id", f"row-{number}")
    fields.setdefault("text", "")
    if "labels" in fields:
        fields["labels"] = [label.strip() for label in fields["labels"].split(_BETWEEN_LABELS)]
    if "multi_label" in fields:
        fields["multi_label"] = fields["multi_label"].strip().lower() in {"1", "true", "yes"}
    attributes = {name: cell for name, cell in cells.items() if name not in _COLUMNS and cell}
    if attributes:
        fields["attributes"] = attributes
    return fields
