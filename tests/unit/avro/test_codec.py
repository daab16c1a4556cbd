from __future__ import annotations

import io
import json
import struct
from uuid import UUID

import fastavro
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from tests.brokers.registry import LoopbackRegistry
from tests.builders import as_written
from worker.avro import json_request
from worker.avro.codec import REQUEST, RESULT, Codecs, schema_folder
from worker.avro.schema_walk import schema
from worker.errors import Reason, RegistryAway, Rejection
from worker.settings import SubjectStrategy

DATUM = json_request.request({"id": "1", "text": "hello", "labels": ["a"]})
RESULT_TEXT = (schema_folder() / RESULT).read_text("utf-8")
REQUEST_TEXT = (schema_folder() / REQUEST).read_text("utf-8")
RESULT_DATUM = json.loads((schema_folder() / "examples" / "result-embedding.json").read_text("utf-8"))


def never(_: float) -> None:
    pytest.fail("waited")


def register(registry: LoopbackRegistry, subject: str, text: str) -> int:
    with SchemaRegistryClient({"url": registry.url}) as client:
        return int(client.register_schema(subject, Schema(text, "AVRO")))


def with_id(number: int, payload: bytes = b"") -> bytes:
    return b"\x00" + struct.pack(">I", number) + payload


class TestWithoutRegistry:
    def test_single_object_encoding_there_and_back(self) -> None:
        codecs = Codecs()
        codecs.open(result_topic="out", request_topic="in")
        value, headers = codecs.encode_request(DATUM)
        assert value[:2] == b"\xc3\x01"
        assert value[2:10] == bytes.fromhex(schema(REQUEST_TEXT).fingerprint)
        assert headers == ()
        assert codecs.read_request(value, headers) == DATUM
        assert codecs.read_result(*codecs.encode_result(as_written(RESULT_DATUM))) == RESULT_DATUM

    def test_an_unknown_fingerprint_says_which_are_known(self) -> None:
        with pytest.raises(Rejection, match=r"xnli\.InferenceRequest.*xnli\.InferenceResult") as caught:
            Codecs().read_request(b"\xc3\x01" + bytes(8), ())
        assert caught.value.reason is Reason.SCHEMA

    def test_a_registrys_framing_says_what_to_set(self) -> None:
        with pytest.raises(Rejection, match=r"schema_registry\.url") as caught:
            Codecs().read_request(with_id(1), ())
        assert caught.value.reason is Reason.SCHEMA

    def test_a_result_is_no_request(self) -> None:
        codecs = Codecs()
        with pytest.raises(Rejection, match=r"xnli\.InferenceResult does not resolve") as caught:
            codecs.read_request(*codecs.encode_result(as_written(RESULT_DATUM)))
        assert caught.value.reason is Reason.SCHEMA


class TestOpening:
    @pytest.mark.parametrize(
        ("strategy", "subject"),
        [
            ("topic_name", "out-value"),
            ("record_name", "xnli.InferenceResult"),
            ("topic_record_name", "out-xnli.InferenceResult"),
        ],
    )
    def test_subjects(self, loopback_registry: LoopbackRegistry, strategy: SubjectStrategy, subject: str) -> None:
        register(loopback_registry, "another", REQUEST_TEXT)
        number = register(loopback_registry, subject, RESULT_TEXT)
        codecs = Codecs(loopback_registry.url, subject_strategy=strategy, sleep=never)
        codecs.open(result_topic="out")
        value, headers = codecs.encode_result(as_written(RESULT_DATUM))
        assert (value[:5], headers) == (with_id(number), ())
        assert codecs.read_result(value, headers) == RESULT_DATUM

    def test_registering(self, loopback_registry: LoopbackRegistry) -> None:
        codecs = Codecs(loopback_registry.url, auto_register=True, sleep=never)
        codecs.open(result_topic="out", request_topic="in")
        assert codecs.read_request(*codecs.encode_request(DATUM)) == DATUM
        assert codecs.read_result(*codecs.encode_result(as_written(RESULT_DATUM))) == RESULT_DATUM

    def test_guids(self, loopback_registry: LoopbackRegistry) -> None:
        codecs = Codecs(loopback_registry.url, auto_register=True, framing="guid", sleep=never)
        codecs.open(request_topic="in")
        value, headers = codecs.encode_request(DATUM)
        assert value == Codecs().encode_request(DATUM)[0][10:]
        ((name, schema_id),) = headers
        assert name == "__value_schema_id"
        assert schema_id is not None
        assert schema_id[0] == 1
        asked = f"GET /schemas/guids/{UUID(bytes=schema_id[1:])}"
        assert codecs.read_request(value, headers) == DATUM
        assert codecs.read_request(value, headers) == DATUM
        assert Codecs(loopback_registry.url).read_request(value, headers) == DATUM
        assert loopback_registry.requests.count(asked) <= 2

    def test_an_outage_is_waited_for(self, loopback_registry: LoopbackRegistry) -> None:
        register(loopback_registry, "out-value", RESULT_TEXT)
        loopback_registry.stop()
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                loopback_registry.start()

        codecs = Codecs(loopback_registry.url, sleep=sleep)
        codecs.open(result_topic="out")
        assert len(waits) == 3
        codecs.encode_result(as_written(RESULT_DATUM))

    def test_an_outage_is_not_waited_for_forever(self, loopback_registry: LoopbackRegistry) -> None:
        loopback_registry.available = False
        waits: list[float] = []
        with pytest.raises(RegistryAway, match=f"{loopback_registry.url}.*switched off by the test"):
            Codecs(loopback_registry.url, sleep=waits.append).open(result_topic="out", attempts=4)
        assert len(waits) == 3

    def test_a_stop_ends_the_wait(self, loopback_registry: LoopbackRegistry) -> None:
        class Stopped(Exception):  # noqa: N818 (what happened)
            pass

        def sleep(_: float) -> None:
            raise Stopped

        loopback_registry.available = False
        with pytest.raises(Stopped):
            Codecs(loopback_registry.url, sleep=sleep).open(result_topic="out")


class TestReading:
    def test_shipped_schemas_need_no_registry_even_where_one_is_set(self, loopback_registry: LoopbackRegistry) -> None:
        codecs = Codecs(loopback_registry.url)
        assert codecs.read_request(*Codecs().encode_request(DATUM)) == DATUM
        assert loopback_registry.requests == []

    def test_an_older_writer_resolves(self, loopback_registry: LoopbackRegistry) -> None:
        older = json.loads(REQUEST_TEXT)
        older["fields"] = older["fields"][:2]
        number = register(loopback_registry, "in-value", json.dumps(older))
        read = Codecs(loopback_registry.url).read_request(with_id(number, b"\x021\x0ahello"), ())
        assert read == DATUM | {"labels": []}


def test_requests_of_a_former_schema_are_read_without_a_registry() -> None:
    text = (schema_folder() / "former" / "inference-request-1.avsc").read_text("utf-8")
    payload = io.BytesIO()
    fields = json_request.request({"id": "1", "text": "a", "labels": ["b"]})
    fastavro.schemaless_writer(payload, fastavro.parse_schema(json.loads(text)), fields)
    mark = b"\xc3\x01" + bytes.fromhex(schema(text).fingerprint)
    datum = Codecs().read_request(mark + payload.getvalue(), (), 10_000)
    assert (datum["id"], datum["labels"], datum["evidence"]) == ("1", ["b"], 0)
