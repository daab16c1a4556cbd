"""A record's detour through a retry topic, as headers.

The record goes to the topic of its delay with the number of its next attempt, the moment before which it must not be
tried, and where and when it first came from. The main topic never waits for it. Headers are replaced on every detour,
so a record does not grow, and its key and value stay as they came.

Its timestamp travels as a header too, and the producer stamps the copy anew: a topic's retention counts from the
timestamp, and would delete the copy of an old record before its attempt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from worker.messages import Headers, Outgoing, Partition, Record

PREFIX: Final = "xnli.retry."


@dataclass(frozen=True, slots=True)
class Detour:
    """What a record brings back from a retry topic.

    ``not_before_ms`` and ``timestamp_ms`` (the first record's; -1 if it had none) are milliseconds since 1970.
    """

    attempt: int
    not_before_ms: int
    origin: Partition
    origin_offset: int
    timestamp_ms: int


def topics(group: str, delays_s: tuple[float, ...]) -> tuple[tuple[float, str], ...]:
    """Each delay in seconds with the name of its topic: ``GROUP.retry.5s``. They belong to the group that waits."""
    return tuple((delay_s, f"{group}.retry.{delay_s:g}s") for delay_s in sorted(delays_s))


def send_round(record: Record, topic: str, attempt: int, not_before_ms: int) -> Outgoing:
    """The record as the retry topic receives it. ``attempt`` is the number of the attempt to come."""
    origin, offset = origin_of(record)
    ours: Headers = (
        (f"{PREFIX}attempt", b"%d" % attempt),
        (f"{PREFIX}not-before", b"%d" % not_before_ms),
        (f"{PREFIX}topic", origin.topic.encode()),
        (f"{PREFIX}partition", b"%d" % origin.number),
        (f"{PREFIX}offset", b"%d" % offset),
        (f"{PREFIX}timestamp", b"%d" % record.timestamp_ms),
    )
    return Outgoing(topic, record.key, record.value, without(record.headers) + ours)


def come_back(record: Record) -> Record:
    """A record read from a retry topic, under the timestamp it first had."""
    detour = detour_of(record)
    return record if detour is None else replace(record, timestamp_ms=detour.timestamp_ms)


def detour_of(record: Record) -> Detour | None:
    """The detour a record comes from; None for one that took none, or whose headers somebody else wrote wrongly."""
    found = {name[len(PREFIX) :]: value or b"" for name, value in record.headers if name.startswith(PREFIX)}
    if not found:
        return None
    try:
        detour = Detour(
            attempt=int(found["attempt"]),
            not_before_ms=int(found["not-before"]),
            origin=Partition(found["topic"].decode(), int(found["partition"])),
            origin_offset=int(found["offset"]),
            timestamp_ms=int(found["timestamp"]),
        )
    except (KeyError, ValueError):
        return None
    is_sound = detour.attempt > 1 and -1 <= detour.timestamp_ms < 1 << 63 and detour.not_before_ms < 1 << 63
    return detour if is_sound else None


def origin_of(record: Record) -> tuple[Partition, int]:
    """The partition and offset a record was first read at."""
    detour = detour_of(record)
    if detour is None:
        return record.position.partition, record.position.offset
    return detour.origin, detour.origin_offset


def without(headers: Headers) -> Headers:
    """The headers that do not speak of detours."""
    return tuple([header for header in headers if not header[0].startswith(PREFIX)])
