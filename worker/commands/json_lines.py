"""Records and tallies as JSON lines, as `tail`, `send` and `dead-letters` write them."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any, Final

from worker import streams, terminal
from worker.avro.codec import Codecs
from worker.errors import Rejection
from worker.messages import Headers, Record

# Enough of a value that cannot be decoded to see what it is.
_SHOWN_BYTES: Final = 1024


def describe(record: Record, codecs: Codecs, *, dead_letters: bool) -> dict[str, Any]:
    """A record as one JSON object; see `worker.commands.tail.tail`. Raises RegistryAway."""
    partition, offset = record.position.partition, record.position.offset
    shown: dict[str, Any] = {
        "topic": partition.topic,
        "partition": partition.number,
        "offset": offset,
        "timestamp": timestamp_of(record),
        "key": text_of(record.key),
        "headers": None if record.unreadable else _by_name(record.headers),
    }
    if record.unreadable:
        shown["unreadable"] = record.unreadable
    name, read = ("request", codecs.read_request) if dead_letters else ("result", codecs.read_result)
    try:
        shown[name] = None if record.value is None else read(record.value, record.headers)
    except Rejection as rejection:
        shown["error"] = str(rejection)
        shown["value_base64"] = base64.b64encode((record.value or b"")[:_SHOWN_BYTES]).decode()
    return shown


def _by_name(headers: Headers) -> dict[str, Any]:
    """The headers as text by their names; of a name that several bear, a list of all in their order."""
    found: dict[str, list[str | None]] = {}
    for name, value in headers:
        found.setdefault(name, []).append(text_of(value))
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in found.items()}


def timestamp_of(record: Record) -> int | None:
    """A record's timestamp, in milliseconds since 1970; None where it has none."""
    return record.timestamp_ms if record.timestamp_ms >= 0 else None


def text_of(value: bytes | None) -> str | None:
    """Bytes as text, those that are no UTF-8 escaped."""
    return None if value is None else value.decode("utf-8", "backslashreplace")


def json_line(shown: Mapping[str, Any]) -> bytes:
    """An object as a line of JSON in UTF-8: exact, one line for every reader, and harmless on a terminal."""
    return json_text(shown).encode() + b"\n"


def json_text(shown: Mapping[str, Any], indent: int | None = None) -> str:
    """As `json_line`, over several lines with ``indent``."""
    try:
        text = json.dumps(shown, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:  # a request whose threshold is no number, say; JSON has no word for that, so it becomes text
        text = json.dumps(json.loads(json.dumps(shown), parse_constant=str), ensure_ascii=False, indent=indent)
    return terminal.escaped(text)


def is_wanted(as_json: bool) -> bool:
    """Whether output is JSON: with ``--json``, and wherever stdout is no terminal."""
    return as_json or not sys.stdout.isatty()


def write_tally(tally: Mapping[str, Any], sentence: str, *, as_json: bool) -> None:
    """A command's last line on stdout: JSON where that is wanted, else a sentence; on stderr where stdout is lost."""
    streams.last_words((json.dumps(tally) if is_wanted(as_json) else sentence) + "\n", otherwise=sentence)
