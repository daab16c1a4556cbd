"""Wire: the steps of the pipeline, made and given to each other."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from worker.http.calls import Gate
from worker.http.health import Health
from worker.kafka.consumer import Consumer
from worker.kafka.publisher import Publisher
from worker.kafka.topic_ids import TopicIds
from worker.pipeline.admit import Admission, Encode, ReadRequest
from worker.pipeline.batch import BATCHES_IN_HAND, BatchPolicy
from worker.pipeline.clocks import Clocks
from worker.pipeline.fetch import Fetcher
from worker.pipeline.handoff import Handoff
from worker.pipeline.infer import InferenceThread
from worker.pipeline.loop import Loop
from worker.pipeline.partition import Partitions
from worker.pipeline.publish import Publication
from worker.pipeline.quarantine import WINDOW_BATCHES, OneAtATime, Quarantine
from worker.pipeline.report import Report
from worker.pipeline.resolve import Policy, Refusal, Resolver, WriteResult
from worker.pipeline.set_wait import KnownSets, SetWait
from worker.pipeline.topic_watch import TopicWatch
from worker.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from worker.telemetry.traces import Traces


# size: one flat list of what is given to whom; to split it would hide just that.
def open_loop(
    *,
    consumer: Consumer,
    publisher: Publisher,
    inference: InferenceThread,
    read: ReadRequest,
    encode: Encode,
    write: WriteResult,
    refusal: Refusal,
    batch: BatchPolicy,
    policy: Policy,
    max_age_s: float | None,
    metrics: Metrics,
    health: Health,
    topic_ids: TopicIds | None = None,
    label_sets: tuple[KnownSets, float] | None = None,
    gate: Gate | None = None,
    clocks: Clocks | None = None,
    seed: int | None = None,
    traces: Traces | None = None,
) -> Loop:
    """The steps of the pipeline, wired together. ``label_sets``: those known, and how long requests wait for others."""
    clocks = clocks or Clocks()
    gate = gate or Gate()
    if traces is not None:
        encode, write = traces.encoding(encode), traces.writing(write)
    jitter = random.Random(seed)  # noqa: S311 (back-off, not a secret)
    partitions = Partitions()
    handoff = Handoff(inference, batch, clocks)
    if inference.shadow is not None:
        inference.shadow.attend(gate, lambda: handoff.has_waiting)
    resolver = Resolver(
        partitions=partitions,
        write=write,
        refusal=refusal,
        policy=policy,
        metrics=metrics,
        clocks=clocks,
        jitter=jitter,
        continue_trace=None if traces is None else traces.dead_letter,
    )
    admission = Admission(
        read=read,
        encode=encode,
        partitions=partitions,
        handoff=handoff,
        resolver=resolver,
        batch=batch,
        retry=policy.retry,
        max_age_s=max_age_s,
        metrics=metrics,
        clocks=clocks,
        jitter=jitter,
        set_wait=None if label_sets is None else SetWait(*label_sets, metrics, clocks),
    )
    quarantine = Quarantine(
        consumer,
        partitions,
        clocks,
        window=WINDOW_BATCHES * batch.max_messages,
        # What is held before fetching pauses, and a poll more.
        horizon=(BATCHES_IN_HAND + 1) * batch.max_messages,
    )
    report = Report(
        partitions=partitions,
        consumer=consumer,
        handoff=handoff,
        transactional=publisher.transactional,
        metrics=metrics,
        health=health,
        clocks=clocks,
        traces=traces,
    )
    return Loop(
        consumer=consumer,
        publisher=publisher,
        partitions=partitions,
        fetcher=Fetcher(
            consumer=consumer,
            partitions=partitions,
            quarantine=quarantine,
            handoff=handoff,
            admission=admission,
            batch=batch,
            retry_topics=policy.retry_topics,
            report=report,
            clocks=clocks,
        ),
        admission=admission,
        quarantine=quarantine,
        one_at_a_time=OneAtATime(quarantine, admission, handoff, resolver, gate),
        handoff=handoff,
        resolver=resolver,
        publication=Publication(
            partitions=partitions,
            publisher=publisher,
            consumer=consumer,
            quarantine=quarantine,
            resolver=resolver,
            batch=batch,
            retry=policy.retry,
            report=report,
            clocks=clocks,
            jitter=jitter,
        ),
        report=report,
        health=health,
        clocks=clocks,
        gate=gate,
        traces=traces,
        topic_watch=None if topic_ids is None else TopicWatch(topic_ids, consumer, clocks),
    )
