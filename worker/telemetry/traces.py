"""Traces by OpenTelemetry, for those who have switched them on. Nobody else imports this module, or the SDK.

A batch is a trace of its own, because its requests come from many: a span ``process TOPIC`` with a link to each request
that brought a context, and in it ``tokenise``, ``forward`` and ``publish TOPIC``. A request with a context (W3C Trace
Context, header ``traceparent``) gets one span more in *its* trace, ``create TOPIC``, from its admission until its
result or dead letter is written; that span is linked to the batch, and is the context which the output carries on.
Calls over HTTP that share a batch's forwards are linked to it as requests are: see `worker.telemetry.call_traces`.
Names and attributes are those of the semantic conventions for messaging.

Spans are made when a batch is computed, from times that were taken before: what runs while it is computed is the same
with traces and without, save for two readings of the clock for each request that is tokenised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Final

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from worker.messages import BatchResult, Encoded, Failed, Fault, Headers, Job, Outcome, Output, Record, Request, value
from worker.telemetry import spans
from worker.telemetry.spans import Spans

_Attributes = dict[str, str | int | float | bool]
Encode = Callable[[Request], Encoded]
Write = Callable[[Job, Outcome], Output]

_KAFKA: Final[Mapping[str, str]] = {"messaging.system": "kafka"}


@value
class _Timed(Encoded):
    """Tokens, and the monotonic times between which they were made."""

    began_s: float = 0.0
    ended_s: float = 0.0


class Traces:
    """Makes the spans. Kafka thread only.

    Args:
        source: Makes tracers.
        group: The consumer group.
        topic: That of results.
        monotonic_s: The clock of the pipeline's times.
        wall_s: Seconds since 1970.
    """

    def __init__(
        self,
        source: TracerProvider,
        group: str,
        topic: str,
        monotonic_s: Callable[[], float],
        wall_s: Callable[[], float],
    ) -> None:
        self._source = source
        self._spans = Spans(source, monotonic_s, wall_s)
        self._group = group
        self._topic = topic
        self._monotonic_s = monotonic_s
        self._batch: trace.Span | None = None  # whose outputs are being written
        self._unpublished: list[trace.Span] = []

    # What the steps are wrapped in ------------------------------------------------------------------------------------

    def encoding(self, encode: Encode) -> Encode:
        """``encode``, timed."""

        def timed(request: Request) -> Encoded:
            began_s = self._monotonic_s()
            encoded = encode(request)
            made = {field.name: getattr(encoded, field.name) for field in fields(encoded)}
            return _Timed(**made, began_s=began_s, ended_s=self._monotonic_s())

        return timed

    def writing(self, write: Write) -> Write:
        """``write``, with the context of the request continued in the result."""

        def continued(job: Job, outcome: Outcome) -> Output:
            output = write(job, outcome)
            began_s = job.encoded.began_s if isinstance(job.encoded, _Timed) else self._monotonic_s()
            return self._continued(job.record, output, began_s)

        return continued

    def dead_letter(self, record: Record, output: Output, fault: Fault) -> Output:
        """A dead letter with the context of its request continued; the span says what was wrong."""
        return self._continued(record, output, self._monotonic_s(), fault)

    def _continued(self, record: Record, output: Output, began_s: float, fault: Fault | None = None) -> Output:
        """The output with a context: of a span in the request's trace, or of the batch where it brought none."""
        parent = spans.context_of(record.headers)
        if parent is None:
            return output if self._batch is None else _carrying(output, trace.set_span_in_context(self._batch))
        links = [] if self._batch is None else [Link(self._batch.get_span_context())]
        span = self._spans.tracer.start_span(
            f"create {output.topic}",
            parent,
            SpanKind.PRODUCER,
            self._operation("create", output.topic) | _place(record),
            links,
            self._spans.ns(began_s),
        )
        if fault is not None:
            span.set_attribute("error.type", fault.reason)
            span.set_status(Status(StatusCode.ERROR, fault.message))
        span.end()
        return _carrying(output, trace.set_span_in_context(span))

    # Batches ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def batch(self, result: BatchResult) -> Iterator[Mapping[str, str]]:
        """The span of a batch that was computed, while its jobs are decided on.

        It yields the ids that its log lines carry, and every line inside carries them. `committed` ends it.
        """
        span = self._begun(result)
        ids = spans.ids_of(span)
        self._batch = span
        self._unpublished.append(span)
        try:
            with structlog.contextvars.bound_contextvars(**ids):
                yield ids
        finally:
            self._batch = None

    def _begun(self, result: BatchResult) -> trace.Span:
        batch, work = result.batch, result.work
        jobs = batch.jobs
        timed = [job.encoded for job in jobs if isinstance(job.encoded, _Timed)]
        began_s = min([batch.opened_at_s, *(each.began_s for each in timed)])
        topics = sorted({job.record.position.partition.topic for job in jobs})
        span = self._spans.tracer.start_span(
            f"process {topics[0]}" if len(topics) == 1 else "process",
            Context(),  # a trace of its own, whatever runs around it
            SpanKind.CONSUMER,
            {
                **self._operation("process", topics[0] if len(topics) == 1 else None),
                "messaging.consumer.group.name": self._group,
                "messaging.batch.message_count": len(jobs),
                "xnli.batch.trigger": batch.trigger.value,
                "xnli.batch.tokens": batch.tokens,
                "xnli.batch.failed": sum(isinstance(each, Failed) for each in result.finished),
            },
            [
                *(link for job in jobs if (link := _link(job.record)) is not None),
                *(link for headers in result.beside if (link := _link_to(headers)) is not None),
            ],
            self._spans.ns(began_s),
        )
        within = trace.set_span_in_context(span)
        if timed:
            busy_s = sum(each.ended_s - each.began_s for each in timed)
            self._spans.child(
                within,
                "tokenise",
                (min(each.began_s for each in timed), max(each.ended_s for each in timed)),
                {"xnli.tokenise.busy_s": busy_s, "xnli.tokens": batch.tokens},
            )
        self._spans.child(
            within,
            "forward",
            (result.began_s, result.ended_s),
            {
                "xnli.pairs": work.rows,
                "xnli.pairs_computed": work.computed,
                "xnli.tokens": work.tokens,
                "xnli.forwards": work.forwards,
                "xnli.splits": result.splits,
            },
        )
        return span

    def committed(self, seconds: float) -> None:
        """What was computed has gone out, in a commit that was begun so long ago: its batches end."""
        now_s = self._monotonic_s()
        for span in self._unpublished:
            self._spans.child(
                trace.set_span_in_context(span),
                f"publish {self._topic}",
                (now_s - seconds, now_s),
                self._operation("publish", self._topic),
                SpanKind.PRODUCER,
            )
            span.end(self._spans.ns(now_s))
        self._unpublished.clear()

    def close(self) -> None:
        """End what is open and send what waits, for a moment."""
        for span in self._unpublished:
            span.end()
        self._unpublished.clear()
        spans.close(self._source)

    def _operation(self, name: str, topic: str | None) -> _Attributes:
        kind = "send" if name == "publish" else name
        found: _Attributes = {
            **_KAFKA,
            "messaging.operation.name": name,
            "messaging.operation.type": kind,
        }
        if topic is not None:
            found["messaging.destination.name"] = topic
        return found


def _place(record: Record) -> _Attributes:
    partition, offset = record.position.partition, record.position.offset
    return {"messaging.destination.partition.id": str(partition.number), "messaging.kafka.offset": offset}


def _link(record: Record) -> Link | None:
    if not record.headers:
        return None
    topic = record.position.partition.topic
    return _link_to(record.headers, {"messaging.destination.name": topic, **_place(record)})


def _link_to(headers: Headers, attributes: _Attributes | None = None) -> Link | None:
    context = spans.context_of(headers)
    if context is None:
        return None
    return Link(trace.get_current_span(context).get_span_context(), attributes)


def _carrying(output: Output, context: Context) -> Output:
    """The output with this context in place of the one it has."""
    return replace(output, headers=spans.carrying(output.headers, context))
