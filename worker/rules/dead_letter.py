"""A record that cannot be answered, as the dead-letter topic receives it.

Key, value, other headers and timestamp stay as they came. Our headers are replaced and never appended, so that a record
which dies a second time does not grow; where it first came from is written once and kept.
"""

from __future__ import annotations

import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Final

from worker.errors import DeadLetterLimit
from worker.messages import Fault, Headers, Outgoing, Record
from worker.rules import retry_headers

PREFIX: Final = "xnli.dlq."
# Written by the first death and kept by later ones.
ORIGIN: Final = ("topic", "partition", "offset", "timestamp")
TEXT_BYTES: Final = 1024
STACKTRACE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Obituary:
    """Who says so: the topic to write to, the consumer group and the worker's name."""

    topic: str
    group: str
    worker: str


def dead_letter(record: Record, fault: Fault, attempts: int, obituary: Obituary) -> Outgoing:
    """The dead letter of ``record``. Header values are UTF-8 text or decimal numbers."""
    before = {name: value for name, value in record.headers if name.startswith(PREFIX)}
    origin, offset = retry_headers.origin_of(record)
    ours: dict[str, bytes | None] = {
        "reason": fault.reason.encode(),
        "stage": fault.stage.encode(),
        "error": fault.error.encode(),
        "message": _clip(fault.message, TEXT_BYTES),
        "stacktrace": _clip(fault.stacktrace, STACKTRACE_BYTES, keep_end=True),
        "topic": origin.topic.encode(),
        "partition": b"%d" % origin.number,
        "offset": b"%d" % offset,
        "timestamp": b"%d" % record.timestamp_ms,
        "group": obituary.group.encode(),
        "attempts": b"%d" % attempts,
        "replays": before.get(f"{PREFIX}replays") or b"0",
        "worker": obituary.worker.encode(),
    }
    if all(f"{PREFIX}{name}" in before for name in ORIGIN):
        ours.update({name: before[f"{PREFIX}{name}"] for name in ORIGIN})
    kept: Headers = tuple(h for h in retry_headers.without(record.headers) if not h[0].startswith(PREFIX))
    headers = kept + tuple((f"{PREFIX}{name}", value) for name, value in ours.items())
    timestamp_ms = record.timestamp_ms if record.timestamp_ms >= 0 else None
    return Outgoing(obituary.topic, record.key, record.value, headers, timestamp_ms, fault.reason)


def truncated(letter: Outgoing, keep_bytes: int = 4096) -> Outgoing:
    """A dead letter the broker refused for its size, with the head of its value and what identifies the rest.

    ``xnli.dlq.truncated`` is the length of the whole value in bytes, ``xnli.dlq.sha256`` its digest. A foreign header
    over ``keep_bytes`` goes the same way, for it may be what is too large; one with a name over 256 characters goes.
    """
    value = letter.value or b""
    key = letter.key if letter.key is None or len(letter.key) <= keep_bytes else letter.key[:keep_bytes]
    marks: Headers = (
        (f"{PREFIX}truncated", b"%d" % len(value)),
        (f"{PREFIX}sha256", hashlib.sha256(value).hexdigest().encode()),
    )
    small = tuple((name, text if text is None else text[:keep_bytes]) for name, text in letter.headers)
    ours = tuple(h for h in small if h[0].startswith(PREFIX))
    foreign = tuple(h for h in small if not h[0].startswith(PREFIX) and len(h[0]) <= 256)[: keep_bytes // 64]
    return Outgoing(letter.topic, key, value[:keep_bytes], foreign + ours + marks, letter.timestamp_ms, letter.reason)


def is_truncated(letter: Outgoing) -> bool:
    """True for what `truncated` made: there is nothing left to cut."""
    return any(name == f"{PREFIX}truncated" for name, _ in letter.headers)


def _clip(text: str, limit_bytes: int, *, keep_end: bool = False) -> bytes:
    """At most ``limit_bytes`` of UTF-8, cut between characters, at the end or (for a stack trace) at the beginning."""
    data = text.encode("utf-8", "backslashreplace")
    part = data[-limit_bytes:] if keep_end else data[:limit_bytes]
    return part if len(data) <= limit_bytes else part.decode("utf-8", "ignore").encode()


@dataclass(frozen=True, slots=True)
class LetterLimits:
    """How many dead letters are too many: ``max_consecutive`` in a row, ``max_ratio`` of the last `WINDOW` records."""

    max_consecutive: int | None = None
    max_ratio: float | None = None


WINDOW: Final = 1000
# A ratio of fewer records than this says nothing: the first bad message of the day would be 100%.
LEAST: Final = 100


class LetterGauge:
    """Counts answers and dead letters, in the order they are decided, against the operator's limits."""

    def __init__(self, limits: LetterLimits) -> None:
        self._limits = limits
        self._consecutive = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._recent_letters = 0

    def answered(self) -> None:
        """A record got its result."""
        self._consecutive = 0
        if self._limits.max_ratio is not None:
            self._enter(letter=False)

    def buried(self, fault: Fault) -> None:
        """A record is about to become a dead letter.

        Raises:
            DeadLetterLimit: it is one too many. It must not be written, nor its offset committed.
        """
        self._consecutive += 1
        limit = self._limits.max_consecutive
        if limit is not None and self._consecutive > limit:
            raise DeadLetterLimit(
                f"{self._consecutive} dead letters in a row, dead_letter.max_consecutive is {limit}; the last for "
                f"{fault.reason}: {fault.message}. Mend the cause, or raise the limit; nothing was lost"
            )
        if self._limits.max_ratio is not None:
            self._enter(letter=True)
            seen = len(self._recent)
            if seen >= LEAST and self._recent_letters > self._limits.max_ratio * seen:
                raise DeadLetterLimit(
                    f"{self._recent_letters} of the last {seen} records are dead letters, dead_letter.max_ratio is "
                    f"{self._limits.max_ratio:g}; the last for {fault.reason}: {fault.message}. Mend the cause, or "
                    "raise the limit; nothing was lost"
                )

    def _enter(self, *, letter: bool) -> None:
        if len(self._recent) == WINDOW:
            self._recent_letters -= self._recent[0]
        self._recent.append(letter)
        self._recent_letters += letter
