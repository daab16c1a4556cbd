"""Against a real registry. What concerns GUIDs and outages is in tests/unit/avro: it cannot show those."""

from __future__ import annotations

import json
import struct
import uuid

import pytest
from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient

from tests.brokers.answering import answering, redirecting
from tests.brokers.registry import Apicurio
from tests.builders import as_written
from worker.avro import json_request
from worker.avro.codec import REQUEST, RESULT, Codecs, schema_folder
from worker.errors import Reason, RegistryAway, Rejection, SettingsError

pytestmark = pytest.mark.kafka  # needs what Kafka needs: Java and Maven

REQUEST_TEXT = (schema_folder() / REQUEST).read_text("utf-8")
DATUM = json_request.request({"id": "1", "text": "hello", "labels": ["a"], "task": "ENTAIL"})
RESULT_DATUM = json.loads((schema_folder() / "examples" / "result-classification.json").read_text("utf-8"))


@pytest.fixture
def topic() -> str:
    return f"topic-{uuid.uuid4().hex[:8]}"


def never(_: float) -> None:
    pytest.fail("waited")


def with_id(number: int, payload: bytes) -> bytes:
    return b"\x00" + struct.pack(">I", number) + payload


def test_our_schemas_are_missing_then_registered_then_found(schema_registry: Apicurio, topic: str) -> None:
    strict = Codecs(schema_registry.url, sleep=never)
    with pytest.raises(SettingsError, match=f"{topic}-value"):
        strict.open(result_topic=topic)
    Codecs(schema_registry.url, auto_register=True, sleep=never).open(result_topic=topic, request_topic=f"{topic}-in")
    strict.open(result_topic=topic, request_topic=f"{topic}-in")
    value, headers = strict.encode_result(as_written(RESULT_DATUM))
    assert value[0] == 0
    reader = Codecs(schema_registry.url)
    assert reader.read_result(value, headers) == RESULT_DATUM
    assert reader.read_request(*strict.encode_request(DATUM)) == DATUM


def test_our_schema_is_found_among_other_versions(schema_registry: Apicurio, topic: str) -> None:
    older = json.loads((schema_folder() / RESULT).read_text("utf-8"))
    older["fields"] = [field for field in older["fields"] if field["name"] != "windows"]
    with SchemaRegistryClient({"url": schema_registry.url}) as client:
        first = client.register_schema(f"{topic}-value", Schema(json.dumps(older), "AVRO"))
    strict = Codecs(schema_registry.url, sleep=never)
    with pytest.raises(SettingsError, match="no version equal to"):
        strict.open(result_topic=topic)
    Codecs(schema_registry.url, auto_register=True, sleep=never).open(result_topic=topic)
    strict.open(result_topic=topic)
    assert strict.encode_result(as_written(RESULT_DATUM))[0][:5] != with_id(first, b"")


def test_a_schema_that_refers_to_others_is_put_together(schema_registry: Apicurio, topic: str) -> None:
    """Task in a schema of its own, and Note which refers to Author: two levels."""
    request = json.loads(REQUEST_TEXT)
    task = next(field for field in request["fields"] if field["name"] == "task")
    task_type, task["type"] = task["type"], "xnli.Task"
    request["fields"].append({"name": "note", "type": "n.Note"})
    author = {"type": "record", "name": "n.Author", "fields": [{"name": "name", "type": "string"}]}
    note = {"type": "record", "name": "n.Note", "fields": [{"name": "by", "type": "n.Author"}]}
    with SchemaRegistryClient({"url": schema_registry.url}) as client:
        client.register_schema(f"{topic}-task", Schema(json.dumps(task_type | {"namespace": "xnli"}), "AVRO"))
        client.register_schema(f"{topic}-author", Schema(json.dumps(author), "AVRO"))
        to_author = SchemaReference("n.Author", f"{topic}-author", 1)
        client.register_schema(f"{topic}-note", Schema(json.dumps(note), "AVRO", [to_author]))
        to_others = [SchemaReference("xnli.Task", f"{topic}-task", 1), SchemaReference("n.Note", f"{topic}-note", 1)]
        number = client.register_schema(f"{topic}-value", Schema(json.dumps(request), "AVRO", to_others))
    payload = Codecs().encode_request(DATUM)[0][10:] + b"\x06bob"
    assert Codecs(schema_registry.url).read_request(with_id(number, payload), ()) == DATUM


def test_a_schema_of_another_kind_is_refused(schema_registry: Apicurio, topic: str) -> None:
    with SchemaRegistryClient({"url": schema_registry.url}) as client:
        schema = Schema('{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}', "JSON")
        number = client.register_schema(f"{topic}-value", schema)
    with pytest.raises(Rejection, match=f"schema id {number} is a schema of type JSON") as caught:
        Codecs(schema_registry.url).read_request(with_id(number, b"{}"), ())
    assert caught.value.reason is Reason.SCHEMA


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_it_is_found_behind_a_redirect(schema_registry: Apicurio, topic: str, status: int) -> None:
    with answering(redirecting(status, schema_registry.url)) as url:
        codecs = Codecs(url, auto_register=True, sleep=never)
        codecs.open(result_topic=topic, request_topic=f"{topic}-in")
        assert codecs.read_request(*codecs.encode_request(DATUM)) == DATUM


def test_an_unknown_id_is_the_messages_fault(schema_registry: Apicurio) -> None:
    with pytest.raises(Rejection, match="knows no schema id 999999") as caught:
        Codecs(schema_registry.url).read_request(with_id(999_999, b""), ())
    assert caught.value.reason is Reason.SCHEMA


def test_a_wrong_path_is_not(schema_registry: Apicurio) -> None:
    with pytest.raises(RegistryAway):
        Codecs(f"{schema_registry.url}/nowhere").read_request(with_id(1, b""), ())
