from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from tests import builders
from worker.avro import request, result
from worker.avro.registry import REQUEST, RESULT, schema_folder
from worker.errors import Reason, Rejection
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

SCHEMA = request.schema((schema_folder() / RESULT).read_text("utf-8"), reader=True)
MODEL = ModelIdentity("some/model", "abc123")


def job(task: Task, timestamp_ms: int = 1_767_225_600_000) -> Job:
    at = builders.position(2**40, topic="in", number=3)
    return builders.job(
        builders.request(task=task, attributes={"a": "b"}),
        record=builders.record(at=at, timestamp_ms=timestamp_ms),
        encoded=builders.encoded(windows=2, truncated=True),
    )


def written(task: Task, outcome: Outcome, timestamp_ms: int = 1_767_225_600_000) -> dict[str, Any]:
    payload = result.to_bytes(result.result(job(task, timestamp_ms), outcome, MODEL), SCHEMA)
    return request.decode(payload, SCHEMA, SCHEMA)


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


def test_json_requests_have_the_fields_and_defaults_of_the_schema() -> None:
    fields = json.loads((schema_folder() / REQUEST).read_text("utf-8"))["fields"]
    read = result.request({"id": "1", "text": "t"})
    assert list(read) == [field["name"] for field in fields]
    assert read == {"id": "1", "text": "t", **{f["name"]: f["default"] for f in fields if "default" in f}}


def test_json_requests_may_ask_for_the_impossible() -> None:
    assert result.request({"id": "", "text": "", "top_k": -1})["top_k"] == -1


def test_a_whole_number_is_a_threshold() -> None:
    assert result.request({"id": "1", "text": "t", "threshold": 1})["threshold"] == 1


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ({"id": "1"}, "text is required"),
        ({"id": "1", "text": "t", "lables": []}, "lables is no field of a request; fields are id, text, task"),
        ({"id": 1, "text": "t"}, "id = 1: "),
        ({"id": "1", "text": "t", "labels": ["a", 2]}, "labels.1 = 2: "),
        ({"id": "1", "text": "t", "task": "classify"}, "task = 'classify': "),
        ({"id": "1", "text": "t", "multi_label": "yes"}, "multi_label = 'yes': "),
        ({"id": "1", "text": "t", "top_k": True}, "top_k = True: "),
        ({"id": "1", "text": "t", "top_k": 2**31}, "top_k = 2147483648: "),
        ({"id": "1", "text": "t", "attributes": {"a": 1}}, "attributes.a = 1: "),
        ({"id": "1", "text": "\ud800"}, r"text = '\ud800': "),
        ({"id": "1", "text": "t", "attributes": {"\udfff": "x"}}, "attributes"),
        (["id", "text"], "the line = ['id', 'text']: "),
        ("hello", "the line = 'hello': "),
    ],
)
def test_json_that_is_no_request_is_refused_by_field(line: object, what: str) -> None:
    with pytest.raises(Rejection) as caught:
        result.request(line)
    assert caught.value.reason is Reason.INVALID
    assert what in str(caught.value)
    str(caught.value).encode()  # can be printed, whatever was in it
