from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import label_sets
from worker.avro import binary, json_request, request, schema_walk
from worker.avro.codec import REQUEST, RESULT, schema_folder
from worker.errors import Reason, Rejection
from worker.messages import LongText, Pooling, Task

FOLDER = schema_folder()
EXAMPLES = FOLDER / "examples"
REQUEST_READER = schema_walk.schema((FOLDER / REQUEST).read_text("utf-8"), reader=True)
RESULT_READER = schema_walk.schema((FOLDER / RESULT).read_text("utf-8"), reader=True)


def raw(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / name).read_text("utf-8"))
    return loaded


def field(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return next(f for f in schema["fields"] if f["name"] == name)


def every(node: Any) -> list[dict[str, Any]]:
    """All JSON objects of a schema, outermost first."""
    if isinstance(node, list):
        return [found for item in node for found in every(item)]
    if isinstance(node, dict):
        return [node, *(found for key, item in node.items() if key != "default" for found in every(item))]
    return []


def named(schema: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {node["name"]: node for node in every(schema) if "symbols" in node or "fields" in node}


def resolve(datum: dict[str, Any], writer: dict[str, Any], reader: schema_walk.Schema) -> dict[str, Any]:
    compiled = schema_walk.schema(json.dumps(writer))
    return binary.decode(binary.to_bytes(datum, compiled), compiled, reader)


@pytest.mark.parametrize("name", [REQUEST, RESULT])
def test_every_field_and_type_says_what_it_means(name: str) -> None:
    for node in every(raw(name)):
        if "name" in node:
            assert len(node.get("doc", "")) > 8, node["name"]


def test_a_request_needs_an_id_and_a_text_and_nothing_else() -> None:
    assert [f["name"] for f in raw(REQUEST)["fields"] if "default" not in f] == ["id", "text"]


def test_types_of_one_name_are_one_type_in_both_schemas() -> None:
    request, result = named(raw(REQUEST)), named(raw(RESULT))
    shared = request.keys() & result.keys()
    assert shared == {"Task", "Pooling"}
    assert all(request[name] == result[name] for name in shared)


def test_symbols_are_those_of_the_code() -> None:
    types = named(raw(REQUEST))
    assert types["Task"]["symbols"] == [task.value for task in Task]
    assert types["LongText"]["symbols"] == [rule.value for rule in LongText]
    assert types["Pooling"]["symbols"] == [pooling.value for pooling in Pooling]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("request-*.json")), ids=lambda p: p.stem)
def test_request_examples_survive_the_wire(path: Path) -> None:
    example = json.loads(path.read_text("utf-8"))
    datum = json_request.request(example)
    read = binary.decode(binary.to_bytes(datum, REQUEST_READER), REQUEST_READER, REQUEST_READER)
    assert read == datum
    assert example.items() <= read.items()
    request.request(
        read,
        request.Defaults(
            "This example is {}.",
            LongText.TRUNCATE,
            Pooling.MEAN,
            normalize=True,
            label_sets=label_sets(**{"support-ar": ["شكوى", "شكر"]}),
        ),
        request.Limits(1000, 10, 100, 10_000),
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("result-*.json")), ids=lambda p: p.stem)
def test_result_examples_survive_the_wire(path: Path) -> None:
    example = json.loads(path.read_text("utf-8"))
    assert binary.decode(binary.to_bytes(example, RESULT_READER), RESULT_READER, RESULT_READER) == example


def test_there_is_an_example_of_each_task_and_outcome() -> None:
    paths = [path for path in EXAMPLES.glob("*.json") if not path.stem.startswith("label-set")]
    examples = [json.loads(path.read_text("utf-8")) for path in paths]
    assert {e.get("task", "CLASSIFY") for e in examples if "outcome" not in e} == set(Task)
    assert {e["task"] for e in examples if "outcome" in e} == set(Task)


def test_the_oldest_writer_of_requests_still_resolves() -> None:
    writer = raw(REQUEST)
    writer["fields"] = [f for f in writer["fields"] if f["name"] in {"id", "text"}]
    read = resolve({"id": "1", "text": "hello"}, writer, REQUEST_READER)
    assert read == {"id": "1", "text": "hello", **{f["name"]: f["default"] for f in raw(REQUEST)["fields"][2:]}}


def test_field_order_and_promotions_are_the_writers_business() -> None:
    writer = raw(REQUEST)
    field(writer, "threshold")["type"] = ["float", "null"]
    field(writer, "top_k")["type"] = "int"
    field(writer, "id")["type"] = {"type": "string", "logicalType": "uuid"}
    writer["fields"].reverse()
    datum = json_request.request({"id": "no uuid at all", "text": "t", "threshold": 0.5, "top_k": 3})
    read = resolve(datum, writer, REQUEST_READER)
    assert (read["id"], read["threshold"], read["top_k"]) == ("no uuid at all", 0.5, 3)


def test_a_newer_writer_of_requests_resolves() -> None:
    writer = raw(REQUEST)
    named(writer)["LongText"]["symbols"].append("WINDOW_VOTE")
    named(writer)["Task"]["symbols"].append("SUMMARIZE")
    notes = {"type": "record", "name": "Note", "fields": [{"name": "by", "type": "string"}]}
    writer["fields"].insert(
        1, {"name": "notes", "type": {"type": "array", "items": notes}, "default": "not even the right type"}
    )
    datum = json_request.request({"id": "1", "text": "hello", "labels": ["a"]})
    read = resolve(datum | {"notes": [{"by": "x"}, {"by": "y"}], "long_text": "WINDOW_VOTE"}, writer, REQUEST_READER)
    assert read == datum | {"long_text": "TRUNCATE"}


def test_a_task_of_the_future_is_refused_and_not_answered_as_another() -> None:
    writer = raw(REQUEST)
    named(writer)["Task"]["symbols"].append("SUMMARIZE")
    with pytest.raises(Rejection, match="SUMMARIZE") as caught:
        resolve(json_request.request({"id": "1", "text": "hello"}) | {"task": "SUMMARIZE"}, writer, REQUEST_READER)
    assert caught.value.reason is Reason.SCHEMA


def test_results_of_an_older_and_a_newer_worker_resolve() -> None:
    example = json.loads((EXAMPLES / "result-classification.json").read_text("utf-8"))
    older = raw(RESULT)
    older["fields"] = [
        f for f in older["fields"] if f["name"] not in {"attributes", "truncated", "windows", "language"}
    ]
    scored = named(older)["LabelScore"]["fields"]
    assert scored[-1]["name"] == "calibrated"
    del scored[-1]
    read = resolve(example, older, RESULT_READER)
    assert read["outcome"]["labels"][0].pop("calibrated") is None
    read["outcome"]["labels"][0]["calibrated"] = example["outcome"]["labels"][0]["calibrated"]
    assert read == example | {
        "attributes": {},
        "truncated": False,
        "windows": 1,
        "language": None,
    }

    newer = raw(RESULT)
    newer["fields"].append({"name": "cost_ms", "type": "double"})
    named(newer)["LabelScore"]["fields"].append({"name": "confidence", "type": ["null", "double"]})
    for scored in (extended := json.loads(json.dumps(example)))["outcome"]["labels"]:
        scored["confidence"] = 0.25
    assert resolve(extended | {"cost_ms": 1.5}, newer, RESULT_READER) == example
