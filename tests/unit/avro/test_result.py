from __future__ import annotations

from dataclasses import replace
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
    Evidence,
    Job,
    Judgement,
    LabelScore,
    LabelSetVersion,
    ModelIdentity,
    Outcome,
    Pooling,
    Span,
    Step,
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
    probabilities = {"entailment": 0.8, "neutral": 0.15, "contradiction": 0.05}
    label: dict[str, Any] = {"label": "gut", "score": 0.9, **probabilities, "path": [], "evidence": [], "window": None}
    label |= {"calibrated": None}
    assert written(Task.CLASSIFY, Classification((scored, scored), multi_label=True, abstained=False)) == {
        "id": "id-1",
        "task": "CLASSIFY",
        "attributes": {"a": "b"},
        "outcome": {
            "labels": [label] * 2,
            "multi_label": True,
            "abstained": False,
            "evidence_cut": False,
        },
        "model": {"name": "some/model", "revision": "abc123"},
        "truncated": True,
        "windows": 2,
        "window": None,
        "label_set": None,
        "language": None,
        "source": {"topic": "in", "partition": 3, "offset": 2**40, "timestamp": 1_767_225_600_000},
    }


def test_what_few_results_have() -> None:
    made = job(Task.CLASSIFY)
    asked = replace(made.request, label_set=LabelSetVersion("policy", "v1"), detected="de")
    scored = LabelScore(
        *("gut", 0.9, 0.8, 0.15, 0.05),
        path=(Step("alles", 0.95), Step("gut", 0.9)),
        evidence=(Evidence(Span(3, 8), 0.5),),
        window=Span(0, 90),
        calibrated=0.75,
    )
    outcome = Classification((scored,), multi_label=True, abstained=False, evidence_cut=True)
    payload = to_bytes(result.result(replace(made, request=asked), outcome, MODEL), SCHEMA)
    got = decode(payload, SCHEMA, SCHEMA)
    assert (got["label_set"], got["language"]) == ({"name": "policy", "version": "v1"}, "de")
    assert got["window"] == {"start": 0, "end": 90} == got["outcome"]["labels"][0]["window"]
    assert got["outcome"]["labels"][0]["evidence"] == [{"start": 3, "end": 8, "drop": 0.5}]
    assert [step["label"] for step in got["outcome"]["labels"][0]["path"]] == ["alles", "gut"]
    assert got["outcome"]["evidence_cut"]
    assert got["outcome"]["labels"][0]["calibrated"] == 0.75


def test_an_abstention() -> None:
    outcome = written(Task.CLASSIFY, Classification((), multi_label=False, abstained=True))["outcome"]
    assert outcome == {"labels": [], "multi_label": False, "abstained": True, "evidence_cut": False}


def test_an_entailment_keeps_the_order() -> None:
    outcome = written(Task.ENTAIL, Entailment((Judgement("b", 0.1, 0.2, 0.7), Judgement("a", 0.7, 0.2, 0.1))))[
        "outcome"
    ]
    assert [judged["hypothesis"] for judged in outcome["judgements"]] == ["b", "a"]
    probabilities = {"entailment": 0.1, "neutral": 0.2, "contradiction": 0.7}
    assert outcome["judgements"][0] == {"hypothesis": "b", **probabilities, "window": None}


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
