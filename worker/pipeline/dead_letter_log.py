"""One warning for each dead letter, so that the log says why there is one; of each reason not more than can be read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import structlog

from worker.messages import Fault, Record

log = structlog.get_logger("worker")

# Lines of one reason in one interval. A broken producer makes thousands a second, and all say the same.
LINES: Final = 10
INTERVAL_S: Final = 10.0
_SHOWN_CHARS: Final = 200
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-|$)")


class DeadLetterLog:
    """Writes event ``dead_letter``. ``held_back`` counts those of its reason that were not written before it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reasons: dict[str, tuple[float, int]] = {}  # begin of the interval, and how many came in it

    def write(self, record: Record, fault: Fault, request_id: str) -> None:
        """A record became a dead letter for ``fault``. ``request_id`` is empty where the request could not be read."""
        now_s = self._clock()
        began_s, count = self._reasons.get(fault.reason, (now_s, 0))
        held_back = 0
        if now_s - began_s >= INTERVAL_S:
            began_s, count, held_back = now_s, 0, max(0, count - LINES)
        self._reasons[fault.reason] = began_s, count + 1
        if count >= LINES:
            return
        partition = record.position.partition
        key = None if record.key is None else record.key.decode("utf-8", "backslashreplace")[:_SHOWN_CHARS]
        log.warning(
            "dead_letter",
            reason=fault.reason,
            message=fault.message,
            topic=partition.topic,
            partition=partition.number,
            offset=record.position.offset,
            key=key,
            id=request_id[:_SHOWN_CHARS] or None,
            stage=fault.stage,
            error=fault.error,
            attempts=record.attempt,
            held_back=held_back,
            **_trace_of(record),
        )


def _trace_of(record: Record) -> dict[str, str]:
    """The id of the trace that the request is part of (header ``traceparent``, W3C), to be found by it."""
    for name, text in record.headers:
        if name == "traceparent" and text is not None and (found := _TRACEPARENT.match(text)) is not None:
            return {"trace_id": found[1].decode()}
    return {}
