"""Labelled examples: texts, their candidate labels, and those of them that hold.

Two forms are read. JSON lines have the fields of a request, and ``expected``: a label or an array of them; where that
is missing, the attribute ``expected`` says it, as for requests of a topic. CSV has a text and its label; a first line
may name the columns ``text``, ``label``, and ``language`` or ``id`` too. Labels of one cell stand between bars.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field

from worker.avro.excerpt import clip, excerpt
from worker.avro.json_request import JsonRequest, Text, Texts, validated
from worker.errors import Rejection, SettingsError
from worker.messages import LongText, Task
from worker.rules.blank import is_blank
from worker.rules.hypothesis_template import TEMPLATE_RULE, is_template

EXPECTED: Final = "expected"
"""The field, and the attribute of a request, that says which labels hold."""

MAX_EXAMPLES: Final = 1_000_000  # they are kept in memory
_LINE_BYTES: Final = 64 * 1024 * 1024  # /dev/zero is one line without end
_CELL_CHARS: Final = 16 * 1024 * 1024
_BETWEEN_LABELS: Final = "|"
_SHOWN: Final = 5  # findings that are told at once
_OPTIONAL: Final = ("language", "hypothesis_template", "long_text", "threshold", "abstain_on_neutral")
_LABEL_COLUMNS: Final = frozenset({"label", "labels", EXPECTED})
_OTHER_COLUMNS: Final = frozenset({"text", "language", "id"})


@dataclass(frozen=True, slots=True)
class Example:
    """A text of which it is known which labels hold.

    Attributes:
        id: its name; where the file gives none, the line it stands in.
        text: the premise.
        labels: the candidates, each once; empty with a ``label_set``, which has them.
        expected: those that hold, in the order of the source: exactly one where labels compete.
        language: its code, or None.
        hypothesis_template: in place of the worker's, or None.
        multi_label: whether each label is judged on its own. One candidate alone always is.
        label_set: the name of the set that the labels come from, or None.
        long_text: in place of the worker's, or None.
        threshold: in place of any other, or None.
        abstain_on_neutral: likewise.
        place: where it was read, as FILE:LINE, for messages.
    """

    id: str
    text: str
    labels: tuple[str, ...]
    expected: tuple[str, ...]
    language: str | None = None
    hypothesis_template: str | None = None
    multi_label: bool = False
    label_set: str | None = None
    long_text: LongText | None = None
    threshold: float | None = None
    abstain_on_neutral: float | None = None
    place: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """The request that asks about it, as a JSON object."""
        found: dict[str, Any] = {"id": self.id, "text": self.text, "multi_label": self.multi_label}
        found |= {"label_set": self.label_set} if self.label_set is not None else {"labels": list(self.labels)}
        return found | {name: value for name in _OPTIONAL if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What an example means that does not say. No ``labels``: all that are expected anywhere in the source."""

    labels: tuple[str, ...] = ()
    label_set: str | None = None
    multi_label: bool = False
    hypothesis_template: str | None = None
    language: str | None = None


class _JsonExample(JsonRequest):
    """A line of JSON: a request, and what is right. ``top_k`` and ``evidence`` are not used."""

    id: Text = ""
    expected: Annotated[Text | Texts | None, Field(union_mode="left_to_right")] = None


def read(path: Path | str, defaults: Defaults = Defaults()) -> list[Example]:
    """The examples of a file, or of stdin, which is called "-".

    Args:
        path: JSON lines, or CSV: by the suffix ``.csv``, else where the first character is no brace.
        defaults: What examples mean that do not say.

    Raises:
        SettingsError: the file cannot be read, or holds a line that is no example; it says which, and how to mend it.
    """
    name = "stdin" if str(path) == "-" else str(path)
    lines = list(_lines(path, name))
    begin = next((shown for line in lines if (shown := line.removeprefix(codecs.BOM_UTF8).strip())), b"")
    of = _of_json if begin[:1] in {b"{", b"["} and not name.lower().endswith(".csv") else _of_csv
    found: list[Example] = []
    findings: list[str] = []
    for one in of(lines, name, defaults):
        if isinstance(one, Example):
            found.append(one)
            continue
        findings.append(one)
        if len(findings) >= _SHOWN:
            break
    if findings:
        raise SettingsError("\n".join(findings))
    if not found:
        raise SettingsError(f'{name}: holds no examples; write {{"text": ..., "expected": ...}} or text,label a line')
    return completed(found, defaults)


def example(fields: Mapping[str, Any], defaults: Defaults, *, place: str, otherwise: str) -> Example:
    """An example of the fields of a request and ``expected``, not yet completed.

    Args:
        fields: As JSON has them.
        defaults: What it means where it does not say.
        place: Where it was read.
        otherwise: Its id if it has none.

    Raises:
        Rejection, ValueError: it is none; the message names field and value.
    """
    given = validated(_JsonExample, fields, "the line")
    if given.task != Task.CLASSIFY:
        raise ValueError(f"task = {given.task}: examples are of CLASSIFY; leave the field out")
    if given.labels and given.label_set is not None:
        raise ValueError(f"label_set = {excerpt(given.label_set)}: labels are given too; keep one of the two")
    own = given.labels or ([] if given.label_set is not None else defaults.labels)
    expected = given.expected
    if expected is None and (said := given.attributes.get(EXPECTED)) is not None:
        expected = expected_in(said, own)
    if expected is None:
        raise ValueError('expected is missing; name the labels that hold: "expected": "sport", or ["sport", "news"]')
    return Example(
        id=given.id or otherwise,
        text=given.text,
        labels=tuple(own),
        expected=(expected,) if isinstance(expected, str) else tuple(expected),
        language=given.language if given.language is not None else defaults.language,
        hypothesis_template=defaults.hypothesis_template
        if given.hypothesis_template is None
        else given.hypothesis_template,
        multi_label=given.multi_label or defaults.multi_label,
        label_set=given.label_set if given.label_set is not None or own else defaults.label_set,
        long_text=None if given.long_text is None else LongText(given.long_text),
        threshold=given.threshold,
        abstain_on_neutral=given.abstain_on_neutral,
        place=place,
    )


def expected_in(attribute: str, candidates: Sequence[str]) -> list[str]:
    """Labels as the attribute ``expected`` of a request says them: one candidate, a JSON array, or with commas between.

    Raises:
        ValueError: it begins as a JSON array and is none of texts.
    """
    if attribute in candidates:
        return [attribute]
    if attribute.lstrip().startswith("["):
        try:
            found = json.loads(attribute)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
            raise ValueError(f'attributes.expected = {excerpt(attribute)}: is no JSON array of texts; write ["a", "b"]')
        return found
    return [label for part in attribute.split(",") if (label := part.strip())]


def completed(examples: Sequence[Example], defaults: Defaults) -> list[Example]:
    """The examples with the candidates that they do not name, and checked.

    Raises:
        SettingsError: an example asks for what no request may, or expects what is no candidate.
    """
    seen: dict[str, None] = {}
    if not defaults.labels and any(not one.labels and one.label_set is None for one in examples):
        seen = dict.fromkeys(label for one in examples if one.label_set is None for label in one.expected)
    found, findings = [], []
    for one in examples:
        whole = one if one.labels or one.label_set is not None else replace(one, labels=tuple(seen))
        if problem := _problem(whole):
            findings.append(f"{one.place}: {problem}")
            if len(findings) >= _SHOWN:
                break
        found.append(whole)
    if findings:
        raise SettingsError("\n".join(findings))
    return found


def _problem(one: Example) -> str | None:
    if is_blank(one.text):
        return f"text = {excerpt(one.text)}: nothing of it can be seen; leave the example out"
    if one.hypothesis_template is not None and not is_template(one.hypothesis_template):
        return f"hypothesis_template = {excerpt(one.hypothesis_template)}: {TEMPLATE_RULE}"
    for field, labels in (("labels", one.labels), (EXPECTED, one.expected)):
        if (blank := next((label for label in labels if is_blank(label)), None)) is not None:
            return f"{field} holds {excerpt(blank)}: leave blank labels out"
        if len(set(labels)) < len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            return f"{field} holds {excerpt(twice)} twice; name each label once"
    if one.label_set is not None:
        return None  # whoever has the set knows its labels
    return unexpected(one.expected, one.labels, is_apart=one.multi_label or len(one.labels) == 1)


def unexpected(expected: Sequence[str], candidates: Sequence[str], *, is_apart: bool) -> str | None:
    """What is wrong with the expected labels, given the candidates and whether each is judged on its own."""
    if not candidates:
        return "there are no candidates; name labels"
    if strange := [label for label in expected if label not in candidates]:
        return (
            f"expected = {excerpt(strange[0])}: is none of the candidates ({excerpt(', '.join(candidates))}); "
            "mend one of the two"
        )
    if not is_apart and len(expected) != 1:
        return (
            f"expected names {len(expected)} labels, and of labels that compete one holds; name one, or say "
            "multi_label (--multi-label)"
        )
    return None


def _lines(path: Path | str, name: str) -> Iterator[bytes]:
    if str(path) == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise SettingsError("stdin holds no examples; name a file, or pipe examples in")
    try:
        with nullcontext(sys.stdin.buffer) if str(path) == "-" else Path(path).open("rb") as source:
            number = 0
            while line := source.readline(_LINE_BYTES + 1):
                number += 1
                if len(line) > _LINE_BYTES:
                    raise SettingsError(f"{name}:{number}: a line of more than {_LINE_BYTES:,} bytes is no example")
                if number > MAX_EXAMPLES:
                    raise SettingsError(f"{name}: holds more than {MAX_EXAMPLES:,} lines; take a sample of them")
                yield line
    except OSError as error:
        raise SettingsError(f"{name}: {error.strerror}; name a file of examples, or - for stdin") from None


def _of_json(lines: Iterable[bytes], name: str, defaults: Defaults) -> Iterator[Example | str]:
    """Examples, and in place of those that are none what is wrong."""
    for number, line in enumerate(lines, 1):
        place = f"{name}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            fields = json.loads(text, object_pairs_hook=_object)
            yield example(fields, defaults, place=place, otherwise=f"line-{number}")
        except UnicodeDecodeError as error:
            yield f"{place}: is no UTF-8 ({error.reason} at byte {error.start}); convert the file"
        except json.JSONDecodeError as error:
            yield (
                f"{place}: is no JSON ({error.msg} at column {error.colno}); write one object a line, or name a file "
                "of text,label .csv"
            )
        except (Rejection, ValueError, RecursionError) as error:
            yield f"{place}: {clip(str(error))}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{excerpt(twice)} stands there twice; leave one of them out")
    return found


def _of_csv(lines: Iterable[bytes], name: str, defaults: Defaults) -> Iterator[Example | str]:
    """As `_of_json`."""
    csv.field_size_limit(_CELL_CHARS)
    rows = csv.reader(_decoded(lines, name), strict=True)
    names: list[str] | None = None
    while True:
        number = rows.line_num + 1
        place = f"{name}:{number}"
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"{place}: is no CSV ({error}); put a text that holds a quote into quotes, and double the quote"
            return  # where the next row begins nobody knows
        if not any(cell.strip() for cell in row):
            continue
        if names is None:
            names = _columns(row)
            if names is not None:
                continue
            names = ["text", "label"]
        if len(row) != len(names):
            yield (
                f"{place}: has {len(row)} cells in place of {len(names)} ({', '.join(names)}); put a text that holds "
                "commas into quotes"
            )
            continue
        cells = dict(zip(names, row, strict=True))
        fields: dict[str, Any] = {key: cells[key] for key in _OTHER_COLUMNS if cells.get(key)}
        fields[EXPECTED] = [label for part in cells["label"].split(_BETWEEN_LABELS) if (label := part.strip())]
        try:
            yield example({"text": ""} | fields, defaults, place=place, otherwise=f"line-{number}")
        except (Rejection, ValueError) as error:
            yield f"{place}: {clip(str(error))}"


def _columns(row: Sequence[str]) -> list[str] | None:
    """The columns that a first row names; None where it is an example already."""
    names = [cell.strip().lower() for cell in row]
    named = ["label" if name in _LABEL_COLUMNS else name for name in names]
    is_header = {"text", "label"} <= set(named) <= _OTHER_COLUMNS | {"label"} and len(set(named)) == len(named)
    return named if is_header else None


def _decoded(lines: Iterable[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise SettingsError(
                f"{name}:{number}: is no UTF-8 ({error.reason} at byte {error.start}); convert the file"
            ) from None
