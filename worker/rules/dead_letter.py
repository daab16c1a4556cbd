"""A record that cannot be answered, as the dead-letter topic receives it.

Key, value, other headers and timestamp stay as they came, as far as they can be read. Our headers are replaced and
never appended, so that a record which dies a second time does not grow; where it first came from is written once and
kept.

Where ``dead_letter.header_aliases`` says so, the same is written once more under the names of other tools
(`worker.rules.header_aliases`). The header ``xnli.dlq.aliases`` names the families, so that they are taken out with
ours, and what a request brought along under such a name is told from them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Final

from worker.messages import Fault, Headers, Output, OutputKind, Record
from worker.rules import header_aliases, retry_headers

PREFIX: Final = "xnli.dlq."
# Written by the first death and kept by later ones.
ORIGIN: Final = ("topic", "partition", "offset", "timestamp")
# What a replay marks its requests with, and a second death keeps: which campaign sent it.
CAMPAIGN: Final = "campaign"
_ALIASES: Final = f"{PREFIX}aliases"
TEXT_BYTES: Final = 1024
STACKTRACE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class DeadLetterSource:
    """Who writes dead letters, and where to: the topic, the consumer group and the worker's name.

    ``aliases`` are the families of other tools' header names that are written too.
    """

    topic: str
    group: str
    worker: str
    aliases: tuple[header_aliases.Family, ...] = ()


def dead_letter(record: Record, fault: Fault, attempts: int, source: DeadLetterSource) -> Output:
    """The dead-letter record of ``record``. Header values are UTF-8 text or decimal numbers."""
    before = {name: value for name, value in record.headers if name.startswith(PREFIX) and value is not None}
    origin = retry_headers.origin_of(record)
    ours: dict[str, bytes] = {
        "reason": fault.reason.encode(),
        "stage": fault.stage.encode(),
        "error": fault.error.encode(),
        "message": _clip(fault.message, TEXT_BYTES),
        "stacktrace": _clip(fault.stacktrace, STACKTRACE_BYTES, keep_end=True),
        "topic": origin.partition.topic.encode(),
        "partition": b"%d" % origin.partition.number,
        "offset": b"%d" % origin.offset,
        "timestamp": b"%d" % record.timestamp_ms,
        "group": source.group.encode(),
        "attempts": b"%d" % attempts,
        "replays": before.get(f"{PREFIX}replays") or b"0",
        "worker": source.worker.encode(),
    }
    if all(f"{PREFIX}{name}" in before for name in ORIGIN):
        ours.update({name: before[f"{PREFIX}{name}"] for name in ORIGIN})
    if (campaign := before.get(f"{PREFIX}{CAMPAIGN}")) is not None:
        ours[CAMPAIGN] = campaign[:TEXT_BYTES]
    if record.unreadable:
        ours["headers"] = b"unreadable"  # which is why there are none but ours
    kept = foreign(retry_headers.without(record.headers))
    if source.aliases:
        taken = tuple(header_aliases.PREFIXES[family] for family in source.aliases)
        kept = tuple(header for header in kept if not header[0].startswith(taken))
        kept += header_aliases.headers(source.aliases, ours)
        ours["aliases"] = ",".join(source.aliases).encode()
    headers = kept + tuple((f"{PREFIX}{name}", value) for name, value in ours.items())
    timestamp_ms = record.timestamp_ms if record.timestamp_ms >= 0 else None
    return Output(
        OutputKind.DEAD_LETTER, source.topic, record.key, record.value, headers, timestamp_ms, attempts, fault.reason
    )


def foreign(headers: Headers) -> Headers:
    """The headers that no dead letter of ours has brought: those of a request as it came."""
    written = next((value for name, value in headers if name == _ALIASES), None)
    taken = (PREFIX, *header_aliases.prefixes(written)) if written else PREFIX
    return tuple([header for header in headers if not header[0].startswith(taken)])


def truncated(output: Output, keep_bytes: int = 4096) -> Output:
    """A dead letter the broker refused for its size, with the head of its value and what identifies the rest.

    ``xnli.dlq.truncated`` is the length of the whole value in bytes, ``xnli.dlq.sha256`` its digest. A foreign header
    over ``keep_bytes`` goes the same way, for it may be what is too large; one with a name over 256 characters goes.
    """
    value = output.value or b""
    key = output.key if output.key is None or len(output.key) <= keep_bytes else output.key[:keep_bytes]
    marks: Headers = (
        (f"{PREFIX}truncated", b"%d" % len(value)),
        (f"{PREFIX}sha256", hashlib.sha256(value).hexdigest().encode()),
    )
    small = tuple((name, text if text is None else text[:keep_bytes]) for name, text in output.headers)
    ours = tuple(h for h in small if h[0].startswith(PREFIX))
    foreign = tuple(h for h in small if not h[0].startswith(PREFIX) and len(h[0]) <= 256)[: keep_bytes // 64]
    return replace(output, key=key, value=value[:keep_bytes], headers=foreign + ours + marks)


def is_truncated(output: Output) -> bool:
    """True for what `truncated` made: there is nothing left to cut."""
    return any(name == f"{PREFIX}truncated" for name, _ in output.headers)


def _clip(text: str, limit_bytes: int, *, keep_end: bool = False) -> bytes:
    """At most ``limit_bytes`` of UTF-8, cut between characters, at the end or (for a stack trace) at the beginning."""
    data = text.encode("utf-8", "backslashreplace")
    part = data[-limit_bytes:] if keep_end else data[:limit_bytes]
    return part if len(data) <= limit_bytes else part.decode("utf-8", "ignore").encode()
