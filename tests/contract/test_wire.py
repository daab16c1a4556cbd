"""Our bytes are those of Confluent's own serializers, in both directions and both framings."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka.schema_registry import (
    SchemaRegistryClient,
    dual_schema_id_deserializer,
    header_schema_id_serializer,
    prefix_schema_id_serializer,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.brokers.registry import LoopbackRegistry
from tests.builders import as_written
from worker.avro import json_request
from worker.avro.codec import REQUEST, RESULT, Codecs, schema_folder
from worker.settings import WireFraming

EXAMPLES = schema_folder() / "examples"


def example(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((EXAMPLES / name).read_text("utf-8"))
    return loaded


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("request-*.json")), ids=lambda p: p.stem)
@pytest.mark.parametrize("framing", ["prefix", "guid"])
def test_requests_by_confluents_serializer_are_read_and_written_alike(
    loopback_registry: LoopbackRegistry, framing: WireFraming, path: Any
) -> None:
    datum = json_request.request(example(path.name))
    codecs = Codecs(loopback_registry.url, framing=framing, auto_register=True)
    codecs.open(request_topic="in")
    headers: list[tuple[str, Any]] = []
    writes = prefix_schema_id_serializer if framing == "prefix" else header_schema_id_serializer
    with SchemaRegistryClient({"url": loopback_registry.url}) as client:
        serializer = AvroSerializer(
            client,
            (schema_folder() / REQUEST).read_text("utf-8"),
            conf={"schema.id.serializer": writes, "auto.register.schemas": False, "use.latest.version": True},
        )
        value = serializer(datum, SerializationContext("in", MessageField.VALUE, headers))
    assert value is not None
    assert codecs.read_request(value, tuple(headers)) == datum
    assert codecs.encode_request(datum) == (value, tuple(headers))


@pytest.mark.parametrize("name", ["result-classification.json", "result-entailment.json", "result-embedding.json"])
@pytest.mark.parametrize("framing", ["prefix", "guid"])
def test_our_results_are_read_by_confluents_deserializer(
    loopback_registry: LoopbackRegistry, framing: WireFraming, name: str
) -> None:
    codecs = Codecs(loopback_registry.url, framing=framing, auto_register=True)
    codecs.open(result_topic="out")
    value, headers = codecs.encode_result(as_written(example(name)))
    with SchemaRegistryClient({"url": loopback_registry.url}) as client:
        deserializer = AvroDeserializer(
            client,
            (schema_folder() / RESULT).read_text("utf-8"),
            conf={"schema.id.deserializer": dual_schema_id_deserializer},
        )
        read = deserializer(value, SerializationContext("out", MessageField.VALUE, list(headers)))
    wanted = example(name)
    assert isinstance(read, dict)
    timestamp = read["source"].pop("timestamp")  # theirs is a datetime: the schema says timestamp-millis
    milliseconds = wanted["source"].pop("timestamp")
    assert (timestamp and timestamp.timestamp() * 1000) == milliseconds
    assert read == wanted
