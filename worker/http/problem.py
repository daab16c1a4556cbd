"""Errors over HTTP: problem details as of RFC 9457, with the field to blame."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from starlette.responses import Response

from worker import redaction
from worker.errors import Reason, Rejection
from worker.messages import Fault, FaultKind

CONTENT_TYPE: Final = "application/problem+json"
# When to try again, in seconds: the queue is emptied within a batch or two.
RETRY_AFTER: Final = "1"
_DETAIL_CHARS: Final = 2000


class Kind(StrEnum):
    """What went wrong: the last part of ``type``."""

    MALFORMED = "malformed"  # no JSON
    INVALID = "invalid"  # JSON, but no request that makes sense
    TOO_LARGE = "too-large"
    TOO_SLOW = "too-slow"  # the request did not arrive in time
    MEDIA_TYPE = "media-type"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    METHOD = "method"
    BUSY = "busy"  # too much waits for the device
    UNAVAILABLE = "unavailable"  # starting, draining, or the device is away
    FAILED = "failed"  # the model fails on this text, or we do


_ANSWERS: Final[Mapping[Kind, tuple[int, str]]] = {
    Kind.MALFORMED: (400, "The body is no JSON"),
    Kind.INVALID: (422, "The request makes no sense"),
    Kind.TOO_LARGE: (413, "The request is too large"),
    Kind.TOO_SLOW: (408, "The request did not arrive in time"),
    Kind.MEDIA_TYPE: (415, "The body is of a type that is not read"),
    Kind.UNAUTHORIZED: (401, "A token is needed"),
    Kind.FORBIDDEN: (403, "Not served to strangers"),
    Kind.NOT_FOUND: (404, "There is nothing here"),
    Kind.METHOD: (405, "This method does not apply"),
    Kind.BUSY: (429, "Too much waits for the device"),
    Kind.UNAVAILABLE: (503, "Not now"),
    Kind.FAILED: (500, "It could not be computed"),
}
STATUSES: Final[Mapping[int, str]] = dict(_ANSWERS.values())


class Problem(Exception):  # noqa: N818 (the standard's word)
    """An answer that is an error.

    Args:
        kind: What went wrong.
        detail: For a person: what, and how to mend it.
        field: Of the request, where one is to blame.
        headers: Of the answer.
        more: Members of the body beside those of the standard.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        field: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})
        self.more = dict(more or {})

    def response(self, error: object = None) -> Response:
        """As it is sent. ``error`` is what clients of another API look for under that name."""
        status, title = _ANSWERS[self.kind]
        detail = redaction.in_text(self.detail[:_DETAIL_CHARS])
        body: dict[str, Any] = {
            "type": f"urn:xnli-worker:problem:{self.kind}",
            "title": title,
            "status": status,
            "detail": detail,
        }
        if self.field:
            body["field"] = self.field
        body |= self.more
        if error is not None:
            body["error"] = error
        headers = dict(self.headers)
        if status in {429, 503}:
            headers.setdefault("Retry-After", RETRY_AFTER)
        return Response(json.dumps(body) + "\n", status, headers, CONTENT_TYPE)


def of_rejection(refused: Rejection, item: int | None = None) -> Problem:
    """A request that is at fault itself; ``item`` is its place in a list."""
    kind = Kind.TOO_LARGE if refused.reason is Reason.TOO_LARGE else Kind.INVALID
    return Problem(kind, str(refused), refused.field, more={} if item is None else {"item": item})


def of_fault(fault: Fault) -> Problem:
    """A call that has no outcome."""
    match fault.kind:
        case FaultKind.MESSAGE:
            kind = Kind.TOO_LARGE if fault.reason == Reason.TOO_LARGE else Kind.INVALID
        case FaultKind.OUT_OF_MEMORY:
            kind = Kind.TOO_LARGE
        case FaultKind.TRANSIENT:
            kind = Kind.UNAVAILABLE
        case FaultKind.UNKNOWN:
            kind = Kind.FAILED
    return Problem(kind, f"{fault.error}: {fault.message}" if kind is Kind.FAILED else fault.message)
