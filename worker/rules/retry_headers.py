"""A record's way through a retry topic, as headers.

The record goes to the topic of its delay with the number of its next attempt, the moment before which it must not be
tried, and where and when it was first read. The main topic never waits for it. The headers are replaced each time, so a
record does not grow, and its key and value stay as they came.

Its timestamp travels as a header too, and the producer stamps the copy anew: a topic's retention counts from the
timestamp, and would delete the copy of an old record before its attempt.

The headers are believed on retry topics alone, where nobody but the group's workers writes. On any other topic a
producer could use them to forge where a result comes from: there they are ignored, and removed from what is produced.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from worker.messages import Headers, Origin, Output, OutputKind, Partition, Record

PREFIX: Final = "xnli.retry."


@dataclass(frozen=True, slots=True)
class RetryHeaders:
    """What a record in a retry topic says of itself.

    ``not_before_ms`` and ``timestamp_ms`` (the first record's; -1 if it had none) are milliseconds since 1970.
    """

    attempt: int
    not_before_ms: int
    origin: Origin
    timestamp_ms: int


def retry_copy(record: Record, topic: str, attempt: int, not_before_ms: int) -> Output:
    """The record as the retry topic receives it. ``attempt`` is the number of the attempt to come."""
    origin = origin_of(record)
    ours: Headers = (
        (f"{PREFIX}attempt", b"%d" % attempt),
        (f"{PREFIX}not-before", b"%d" % not_before_ms),
        (f"{PREFIX}topic", origin.partition.topic.encode()),
        (f"{PREFIX}partition", b"%d" % origin.partition.number),
        (f"{PREFIX}offset", b"%d" % origin.offset),
        (f"{PREFIX}timestamp", b"%d" % record.timestamp_ms),
    )
    headers = without(record.headers) + ours
    return Output(OutputKind.RETRY, topic, record.key, record.value, headers, attempts=attempt - 1)


def parse(record: Record) -> RetryHeaders | None:
    """The retry headers of a record read from a retry topic; None where there are none, or wrong ones."""
    found = {name[len(PREFIX) :]: value or b"" for name, value in record.headers if name.startswith(PREFIX)}
    if not found:
        return None
    try:
        parsed = RetryHeaders(
            attempt=int(found["attempt"]),
            not_before_ms=int(found["not-before"]),
            origin=Origin(Partition(found["topic"].decode(), int(found["partition"])), int(found["offset"])),
            timestamp_ms=int(found["timestamp"]),
        )
    except (KeyError, ValueError):
        return None
    is_sound = (
        1 < parsed.attempt < 1 << 31
        and -1 <= parsed.timestamp_ms < 1 << 63
        and parsed.not_before_ms < 1 << 63
        and 0 <= parsed.origin.partition.number < 1 << 31
        and 0 <= parsed.origin.offset < 1 << 63
    )
    return parsed if is_sound else None


def restored(record: Record, headers: RetryHeaders) -> Record:
    """The record as it was first read, and the number of the attempt to come."""
    return replace(record, timestamp_ms=headers.timestamp_ms, attempt=headers.attempt, origin=headers.origin)


def origin_of(record: Record) -> Origin:
    """Where a record was first read."""
    position = record.position
    return record.origin if record.origin is not None else Origin(position.partition, position.offset)


def without(headers: Headers) -> Headers:
    """The headers that are no retry headers."""
    return tuple([header for header in headers if not header[0].startswith(PREFIX)])
