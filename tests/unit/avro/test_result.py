from __future__ import annotations

from typing import Any

import numpy as np

from tests import builders
from worker.avro import result
from worker.avro.binary import decode, to_bytes
from worker.avro.codec import RESULT, schema_folder
from worker.avro.schema_walk import schema
from worker.messages import (
    Classification,
    Embedding,
    Entailment,
    Job,
    Judgement,
    LabelScore,
    ModelIdentity,
    Outcome,
    Pooling,
    Task,
)

SCHEMA = schema((schema_folder() / RESULT).read_text("utf-8"), reader=True)
MODEL = ModelIdentity("some/model", "abc123")


def job(task: Task, timestamp_ms: int = 1_767_225_600_000) -> Job:
    at = builders.position(2**40, topic="in", number=3)
    return builders.job(
        builders.request(task=task, attributes={"a": "b"}),
        record=builders.record(at=at, timestamp_ms=timestamp_ms),
        encoded=builders.encoded(windows=2, truncated=True),
    )


def written(task: Task, outcome: Outcome, timestamp_ms: int = 1_767_225_600_000) -> dict[str, Any]:
    payload = to_bytes(result.result(job(task, timestamp_ms), outcome, MODEL), SCHEMA)
    return decode(payload, SCHEMA, SCHEMA)


def test_a_classification_with_all_that_surrounds_it() -> None:
    scored = LabelScore("gut", 0.9, 0.8, 0.15, 0.05)
    assert written(Task.CLASSIFY, Classification((scored, scored), multi_label=True, abstained=False)) == {
        "id": "id-1",
        "task": "CLASSIFY",
        "attributes": {"a": "b"},
        "outcome": {
            "labels": [{"label": "gut", "score": 0.9, "entailment": 0.8, "neutral": 0.15, "contradiction": 0.05}] * 2,
            "multi_label": True,
            "abstained": False,
        },
        "model": {"name": "some/model", "revision": "abc123"},
        "truncated": True,
        "windows": 2,
        "source": {"topic": "in", "partition": 3, "offset": 2**40, "timestamp": 1_767_225_600_000},
    }


def test_an_abstention() -> None:
    outcome = written(Task.CLASSIFY, Classification((), multi_label=False, abstained=True))["outcome"]
    assert outcome == {"labels": [], "multi_label": False, "abstained": True}


def test_an_entailment_keeps_the_order() -> None:
    outcome = written(Task.ENTAIL, Entailment((Judgement("b", 0.1, 0.2, 0.7), Judgement("a", 0.7, 0.2, 0.1))))[
        "outcome"
    ]
    assert [judged["hypothesis"] for judged in outcome["judgements"]] == ["b", "a"]
    assert outcome["judgements"][0] == {"hypothesis": "b", "entailment": 0.1, "neutral": 0.2, "contradiction": 0.7}


def test_an_embedding_is_kept_to_the_bit() -> None:
    vector = np.random.default_rng(0).standard_normal(384).astype(np.float32)
    outcome = written(Task.EMBED, Embedding(vector, Pooling.CLS, normalized=False))["outcome"]
    assert (outcome["dimension"], outcome["pooling"], outcome["normalized"]) == (384, "CLS", False)
    assert np.array_equal(np.array(outcome["vector"], dtype=np.float32), vector)


def test_a_record_without_a_timestamp() -> None:
    assert (
        written(Task.CLASSIFY, Classification((), multi_label=False, abstained=False), timestamp_ms=-1)["source"][
            "timestamp"
        ]
        is None
    )
