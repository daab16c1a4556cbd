"""Spans of requests over HTTP. As `worker.telemetry.traces`, nobody imports this module but who has switched them on.

A request is one span of kind SERVER, a child of the context that the caller sent (W3C Trace Context) or the root of a
trace, by the semantic conventions for HTTP. In it stand ``tokenise`` and ``forward``. Its texts carry the context on as
a record does, in headers, so that a batch of the stream in whose forwards they took part is linked to it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, Status, StatusCode

from worker.messages import Headers
from worker.telemetry import spans
from worker.telemetry.spans import Spans

# Methods that the conventions know; what else a client makes up would be a value without bound.
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_FIELDS: Final = (b"traceparent", b"tracestate")

_T = TypeVar("_T")


class CallSpan:
    """The span of one request. `worker.http.inference` tells it what becomes of the request.

    Args:
        made: What makes spans.
        span: The one of the request.
    """

    def __init__(self, made: Spans, span: trace.Span) -> None:
        self._spans = made
        self._span = span
        self._within = trace.set_span_in_context(span)
        self.headers: Headers = spans.carrying((), self._within)

    def reading(self, read: Callable[[], _T]) -> Callable[[], _T]:
        """``read``, which makes tokens of a body, as a span of its own. Any thread may call it."""

        def timed() -> _T:
            began_s = self._spans.monotonic_s()
            try:
                return read()
            finally:
                self._spans.child(self._within, "tokenise", (began_s, self._spans.monotonic_s()), {})

        return timed

    def computed(self, times_s: Sequence[tuple[float, float]], tokens: int) -> None:
        """Its texts went through the model at these times, those that did."""
        self._span.set_attributes({"xnli.requests": len(times_s), "xnli.tokens": tokens})
        known = [times for times in times_s if times[1]]
        if known:
            whole = min(began_s for began_s, _ in known), max(ended_s for _, ended_s in known)
            self._spans.child(self._within, "forward", whole, {"xnli.tokens": tokens})

    def answered(self, status: int, error: str) -> None:
        """This status was sent. ``error``: why not all is well, in one word; a caller's own mistake is none of ours."""
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self.failed(error or str(status))

    def failed(self, error: str) -> None:
        """It ended otherwise than by an answer that was meant."""
        self._span.set_attribute("error.type", error)
        self._span.set_status(Status(StatusCode.ERROR))


class CallTraces:
    """Makes the spans of requests. HTTP thread only, but for `close`.

    Args:
        source: Makes tracers.
        monotonic_s: The clock of the pipeline's times.
        wall_s: Seconds since 1970.
    """

    def __init__(self, source: TracerProvider, monotonic_s: Callable[[], float], wall_s: Callable[[], float]) -> None:
        self._source = source
        self._spans = Spans(source, monotonic_s, wall_s)

    @contextmanager
    def call(self, scope: Mapping[str, Any], route: str) -> Iterator[CallSpan]:
        """The span of a request, while it is answered; every line that its task logs carries its ids.

        Args:
            scope: What ASGI says of the request.
            route: The template of its path.
        """
        found: Headers = tuple((name.decode(), text) for name, text in scope["headers"] if name in _FIELDS)
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        server = scope.get("server") or ("", None)
        span = self._spans.tracer.start_span(
            f"{method} {route}",
            spans.context_of(found) or Context(),
            SpanKind.SERVER,
            {
                "http.request.method": method,
                "http.route": route,
                "url.path": scope["path"],
                "url.scheme": scope["scheme"],
                "network.protocol.version": scope["http_version"],
                "server.address": server[0],
                **({} if server[1] is None else {"server.port": server[1]}),
            },
            start_time=self._spans.ns(self._spans.monotonic_s()),
        )
        call = CallSpan(self._spans, span)
        bound = structlog.contextvars.bind_contextvars(**spans.ids_of(span))
        try:
            yield call
        except Exception as error:
            # The ids stay: uvicorn writes the traceback later, in the same task.
            call.failed(type(error).__name__)
            raise
        else:
            structlog.contextvars.reset_contextvars(**bound)
        finally:
            span.end(self._spans.ns(self._spans.monotonic_s()))

    def close(self) -> None:
        """Send what waits, for a moment."""
        spans.close(self._source)
