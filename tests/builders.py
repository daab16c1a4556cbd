"""The nouns of `worker.messages` with every field filled in. A test names only the fields that it is about.

A keyword replaces a field of that name. Delivery has words of command instead of texts, in `tests.delivery.doubles`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from worker.kafka.client_config import Properties
from worker.label_sets.stored_sets import StoredSets
from worker.label_sets.topic import FollowedSets
from worker.messages import (
    Encoded,
    Job,
    LongText,
    Output,
    OutputKind,
    Partition,
    Pooling,
    Position,
    Record,
    Request,
    Row,
    Task,
)
from worker.settings import LabelSetSettings
from worker.telemetry.metrics import Metrics


def request(text: str = "text", **fields: Any) -> Request:
    """A request of the task CLASSIFY, without labels yet."""
    made = Request(
        id="id-1",
        task=Task.CLASSIFY,
        text=text,
        labels=(),
        hypotheses=(),
        multi_label=False,
        language=None,
        top_k=None,
        threshold=None,
        long_text=LongText.TRUNCATE,
        pooling=Pooling.MEAN,
        normalize=True,
        attributes={},
    )
    return replace(made, **fields)


def as_written(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as it is read, or stands in an example, as it is written: its outcome names its branch of the union."""
    branches = {"labels": "xnli.Classification", "judgements": "xnli.Entailment", "vector": "xnli.Embedding"}
    outcome = result["outcome"]
    (branch,) = (branches[field] for field in outcome if field in branches)
    return {**result, "outcome": (branch, outcome)}


def classify(text: str, *labels: str, template: str = "{}", **fields: Any) -> Request:
    """Each label becomes a hypothesis by way of ``template``."""
    return request(text, labels=labels, hypotheses=tuple(template.format(label) for label in labels), **fields)


def entail(text: str, *hypotheses: str, **fields: Any) -> Request:
    return request(text, task=Task.ENTAIL, hypotheses=hypotheses, **fields)


def embed(text: str = "text", **fields: Any) -> Request:
    return request(text, task=Task.EMBED, **fields)


def position(offset: int = 0, *, topic: str = "requests", number: int = 0, generation: int = 1) -> Position:
    return Position(Partition(topic, number), offset, generation)


def record(value: bytes | None = b"value", *, at: Position | None = None, **fields: Any) -> Record:
    return replace(Record(at or position(), b"key", value, (), 1_000), **fields)


def output(value: bytes | None = b"value", **fields: Any) -> Output:
    return replace(Output(OutputKind.RESULT, "results", None, value, ()), **fields)


def read_back(sent: Output, *, offset: int = 0, now_ms: int = 1_000) -> Record:
    """What a consumer makes of a record that was produced at ``now_ms``."""
    timestamp_ms = now_ms if sent.timestamp_ms is None else sent.timestamp_ms
    return Record(position(offset, topic=sent.topic), sent.key, sent.value, sent.headers, timestamp_ms)


def row(*token_ids: int, segment_at: int | None = None, language_id: int | None = None) -> Row:
    """A single text, unless ``segment_at`` says where its second segment begins."""
    at = len(token_ids) if segment_at is None else segment_at
    return Row(np.array(token_ids, dtype=np.int32), at, language_id)


def encoded(*rows: Row, **fields: Any) -> Encoded:
    """One window; as many tokens as the rows have."""
    tokens = sum(len(made.token_ids) for made in rows)
    return replace(Encoded(rows, windows=1, truncated=False, tokens=tokens), **fields)


def job(of: Request | None = None, **fields: Any) -> Job:
    """A first attempt at ``of``, without rows."""
    return replace(Job(record(), of or request(), encoded()), **fields)


def label_sets(**values: object) -> StoredSets:
    """Sets by name, of JSON values; those without a template have "This example is {}."."""
    made = StoredSets(1 << 26, "This example is {}.")
    for offset, (name, value) in enumerate(values.items()):
        made.put(name, json.dumps(value).encode(), 0, offset)
    return made


def followed_sets(bootstrap_servers: str, admin: AdminClient, topic: str) -> FollowedSets:
    """The sets of a topic, with the defaults of the settings."""
    properties: Properties = {"bootstrap.servers": bootstrap_servers}
    return FollowedSets(properties, admin, topic, LabelSetSettings(), "{}", Metrics(CollectorRegistry()))


class IgnoreRebalances:
    """A listener of the consumer, where a test is not about partitions that come and go."""

    def assigned(self, generations: Mapping[Partition, int]) -> Collection[Partition]:
        return ()

    def revoked(self, partitions: Sequence[Partition]) -> None: ...

    def lost(self, partitions: Sequence[Partition]) -> None: ...
