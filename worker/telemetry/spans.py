"""What all spans have in common: where they are sent, the clock they are told by, and contexts read and written.

Nobody imports this module, or OpenTelemetry, but those who make spans.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from typing import Final, Literal

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from worker.messages import Headers

Protocol = Literal["grpc", "http/protobuf"]

# How long the end of the process waits for the last spans to leave: a collector that is away must not hold it.
CLOSE_TIMEOUT_S: Final = 2.0
# The wall clock is not followed for less than this.
_SAME_S: Final = 0.01

_PROPAGATOR: Final = TraceContextTextMapPropagator()


class _HeaderGetter(Getter[Headers]):
    """Reads headers of Kafka or HTTP. A value that is no text is no context: its form refuses what it decodes to."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        found = [text.decode("latin-1") for name, text in carrier if name == key and text is not None]
        return found or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name for name, _ in carrier]


class _HeaderSetter(Setter[dict[str, bytes]]):
    def set(self, carrier: dict[str, bytes], key: str, value: str) -> None:
        carrier[key] = value.encode()


_GETTER: Final = _HeaderGetter()
_SETTER: Final = _HeaderSetter()


def exporter(protocol: Protocol) -> SpanExporter:
    """An exporter of OTLP. Where to, with which headers and certificates, the SDK reads from its own variables."""
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

        return OTLPSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter as HttpSpanExporter,
    )

    return HttpSpanExporter()


def provider(to: SpanExporter, attributes: Mapping[str, str], max_links: int | None) -> TracerProvider:
    """What makes spans and sends them from a thread of its own; what does not fit into its queue is dropped.

    Args:
        to: The exporter.
        attributes: Who we are, as OpenTelemetry's own variables do not say otherwise.
        max_links: Links of one span; None: as its variables say.
    """
    made = TracerProvider(
        resource=Resource.create(dict(attributes)).merge(OTELResourceDetector().detect()),
        span_limits=SpanLimits(max_links=max_links),
        shutdown_on_exit=False,  # the end of the process does not wait for a collector that is away
    )
    made.add_span_processor(BatchSpanProcessor(to))
    return made


def close(source: TracerProvider) -> None:
    """Send what waits, for a moment."""
    sending = threading.Thread(target=source.shutdown, name="traces", daemon=True)
    sending.start()
    sending.join(CLOSE_TIMEOUT_S)


class Spans:
    """Makes spans of times of the pipeline. Any thread.

    Args:
        source: Makes tracers.
        monotonic_s: The clock of the pipeline's times.
        wall_s: Seconds since 1970.
    """

    def __init__(self, source: TracerProvider, monotonic_s: Callable[[], float], wall_s: Callable[[], float]) -> None:
        self.tracer = source.get_tracer("xnli-worker")
        self.monotonic_s = monotonic_s
        self._wall_s = wall_s
        self._offset_s = -math.inf  # of the one clock from the other

    def ns(self, monotonic_s: float) -> int:
        """A time of the pipeline as nanoseconds since 1970."""
        offset_s = self._wall_s() - self.monotonic_s()
        # Two readings are never at once, so no two offsets are the same: a child could end after its parent.
        if abs(offset_s - self._offset_s) > _SAME_S:
            self._offset_s = offset_s
        return int((self._offset_s + monotonic_s) * 1e9)

    def child(
        self,
        parent: Context,
        name: str,
        times_s: tuple[float, float],
        attributes: Attributes,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        """A span that is over, within the one of a context."""
        began_s, ended_s = times_s
        self.tracer.start_span(name, parent, kind, attributes, start_time=self.ns(began_s)).end(self.ns(ended_s))


def context_of(headers: Headers) -> Context | None:
    """The context that a request brought, or None."""
    if not headers:
        return None
    found = _PROPAGATOR.extract(headers, Context(), _GETTER)
    return found if trace.get_current_span(found).get_span_context().is_valid else None


def carrying(headers: Headers, context: Context) -> Headers:
    """Headers with this context in place of the one they have."""
    written: dict[str, bytes] = {}
    _PROPAGATOR.inject(written, context, _SETTER)
    kept = tuple(header for header in headers if header[0] not in _PROPAGATOR.fields)
    return (*kept, *written.items())


def ids_of(span: trace.Span) -> dict[str, str]:
    """The ids that log lines carry."""
    context = span.get_span_context()
    return {"trace_id": trace.format_trace_id(context.trace_id), "span_id": trace.format_span_id(context.span_id)}
