"""Which dead letters are replayed, and as what: the rules of `xnli-worker dead-letters`, without Kafka and clock.

A replayed record is a new request with the old key, value and headers. Three things are not as they came:

- Of our headers only the first origin, the count of replays and the campaign's name remain. The origin has to travel,
  because a record that dies again must name where it *first* came from, and `worker.rules.dead_letter` knows that only
  from the record; the other two have to travel, because they end loops. Results carry none of them.
- The timestamp is left to the producer. The old one would let ``limits.max_age_s`` and the topic's retention end the
  record on arrival; it stays readable as ``xnli.dlq.timestamp``.
- The partition follows from the key, as `xnli-worker send` and Java's producers have it, and not from the origin: if
  the topic has grown meanwhile, that is where the key's other requests are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from worker.messages import Headers, Output, OutputKind, Record
from worker.rules import retry_headers
from worker.rules.dead_letter import CAMPAIGN, ORIGIN, PREFIX, foreign

# A count with more digits was not written by us.
_MAX_DIGITS: Final = 18
_ORIGIN: Final = frozenset(f"{PREFIX}{name}" for name in ORIGIN)


@dataclass(frozen=True, slots=True)
class DeadLetterRecord:
    """A record of the dead-letter topic. Anybody may have written it, so what it says of itself may be missing."""

    record: Record
    said: dict[str, str] = field(init=False)  # our headers without their prefix

    def __post_init__(self) -> None:
        ours = {
            name.removeprefix(PREFIX): value.decode("utf-8", "backslashreplace")
            for name, value in self.record.headers
            if name.startswith(PREFIX) and value is not None
        }
        object.__setattr__(self, "said", ours)

    def number(self, name: str) -> int | None:
        """A header as a number; None where there is none."""
        text = self.said.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS else None

    @property
    def key(self) -> str | None:
        """The record's key as it is shown: bytes that are no UTF-8 are escaped."""
        return None if self.record.key is None else self.record.key.decode("utf-8", "backslashreplace")

    @property
    def replays(self) -> int:
        """How often the request was replayed before it died this time. What is no number was not written by us."""
        return self.number("replays") or 0


@dataclass(frozen=True, slots=True)
class Selection:
    """The dead letters somebody asks for: those that pass every filter that is set.

    ``since_ms`` (included) and ``until_ms`` (excluded) bound the record's timestamp: the time of its death where the
    topic stamps arrivals (as schemas/topics.yaml has it), else the request's own; a record without one passes neither.
    ``topic`` and ``partition`` are of the first origin, ``replays`` is exact.

    No answer depends on when it is asked, so a dead letter passed over once is passed over for good.
    """

    reasons: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    topic: str | None = None
    partition: int | None = None
    key: str | None = None
    replays: int | None = None

    def takes(self, dead_letter: DeadLetterRecord) -> bool:
        """True if it passes."""
        at_ms = dead_letter.record.timestamp_ms
        return (
            (not self.reasons or dead_letter.said.get("reason") in self.reasons)
            and (self.since_ms is None or at_ms >= self.since_ms)
            and (self.until_ms is None or 0 <= at_ms < self.until_ms)
            and (self.topic is None or dead_letter.said.get("topic") == self.topic)
            and (self.partition is None or dead_letter.number("partition") == self.partition)
            and (self.key is None or dead_letter.key == self.key)
            and (self.replays is None or dead_letter.replays == self.replays)
        )


class Cause(StrEnum):
    """Why a dead letter is not replayed though it was asked for."""

    LOOP = "loop"  # it was replayed too often
    TRUNCATED = "truncated"  # the rest of the value is gone
    ORIGIN = "origin"  # it names none of the worker's input topics
    TOO_LARGE = "too_large"  # the destination refuses its size
    RETURNED = "returned"  # the same campaign sent it before, and it died again
    UNREADABLE = "unreadable"  # its headers, or all of the request, could not be read


@dataclass(frozen=True, slots=True)
class Refusal:
    """A dead letter that stays where it is. ``message`` says what would let it go."""

    cause: Cause
    message: str


def replayed(
    dead_letter: DeadLetterRecord,
    *,
    to: str | None,
    inputs: Collection[str],
    max_replays: int,
    campaign: str = "",
) -> Output | Refusal:
    """The record that puts a dead letter's request on its way again.

    Args:
        dead_letter: The dead letter.
        to: Destination; None for the topic the request first came from.
        inputs: The worker's input topics. Only these are believed to be an origin: the origin is a header, which
            whoever wrote the request could have written, and a replay must not carry records to topics of his choice.
        max_replays: One that was replayed so often before is refused.
        campaign: Who sends it. What this campaign sent before, and what died again, is refused: it would go round and
            round, a run of the campaign a round.
    """
    if dead_letter.record.unreadable:
        return Refusal(Cause.UNREADABLE, f"{dead_letter.record.unreadable}; send the request again")
    if dead_letter.record.value is None:
        return Refusal(Cause.UNREADABLE, "holds no request, whose bytes could not be read; send the request again")
    if "truncated" in dead_letter.said:
        return Refusal(
            Cause.TRUNCATED,
            f"only the head of its value was kept, of {dead_letter.number('truncated')} bytes; send the request again",
        )
    if dead_letter.replays >= max_replays:
        return Refusal(
            Cause.LOOP,
            f"was replayed {dead_letter.replays} times and died again; mend the cause, then replay it with "
            f"--replays {dead_letter.replays} --max-replays {dead_letter.replays + 1}",
        )
    if campaign and dead_letter.said.get(CAMPAIGN) == campaign:
        return Refusal(
            Cause.RETURNED,
            f"was sent by this campaign ({campaign}) and died again, {dead_letter.said.get('reason', 'of what')}: mend "
            "the cause, then replay it with another --campaign",
        )
    origin = dead_letter.said.get("topic")
    destination = to if to is not None else origin
    if destination is None:
        return Refusal(Cause.ORIGIN, "names no origin; say where to with --to")
    if to is None and origin not in inputs:
        return Refusal(
            Cause.ORIGIN,
            f"says that it came from {origin!r}, which is none of topics.input; if so, name that topic with --topic "
            "and with --to",
        )
    record = dead_letter.record
    kept = foreign(retry_headers.without(record.headers))
    kept += tuple(header for header in record.headers if header[0] in _ORIGIN)
    marks: Headers = ((f"{PREFIX}replays", b"%d" % (dead_letter.replays + 1)),)
    if campaign:
        marks = (*marks, (f"{PREFIX}{CAMPAIGN}", campaign.encode()))
    return Output(OutputKind.REQUEST, destination, record.key, record.value, kept + marks)
