"""The registries of the tests answer Confluent's own client: the real one, and the one that knows GUIDs and outages."""

from __future__ import annotations

import json
import uuid

import httpx2
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

from tests.brokers.registry import Apicurio, LoopbackRegistry

FIRST = Schema(
    json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "string"}]}), schema_type="AVRO"
)
SECOND = Schema(
    json.dumps(
        {
            "type": "record",
            "name": "R",
            "fields": [{"name": "a", "type": "string"}, {"name": "b", "type": "int", "default": 0}],
        }
    ),
    schema_type="AVRO",
)


@pytest.fixture(params=["schema_registry", "loopback_registry"])
def registry(request: pytest.FixtureRequest) -> Apicurio | LoopbackRegistry:
    found: Apicurio | LoopbackRegistry = request.getfixturevalue(request.param)
    return found


def _client(registry: Apicurio | LoopbackRegistry) -> SchemaRegistryClient:
    """A new client each time: it caches."""
    return SchemaRegistryClient({"url": registry.url, "max.retries": 0})


@pytest.mark.kafka
def test_what_is_registered_is_found_by_subject_and_by_id(registry: Apicurio | LoopbackRegistry) -> None:
    subject = f"subject/{uuid.uuid4().hex}"  # a slash has to survive the address
    first = _client(registry).register_schema(subject, FIRST)
    second = _client(registry).register_schema(subject, SECOND)

    assert first != second
    assert _client(registry).register_schema(subject, FIRST) == first
    assert _client(registry).register_schema(f"{subject}-other", FIRST) == first
    assert _client(registry).lookup_schema(subject, FIRST).schema_id == first
    assert json.loads(_client(registry).get_schema(first).schema_str or "") == json.loads(FIRST.schema_str or "")
    latest = _client(registry).get_latest_version(subject)
    assert (latest.schema_id, latest.version) == (second, 2)
    assert subject in _client(registry).get_subjects()


@pytest.mark.kafka
def test_refusals_carry_the_codes_a_client_acts_on(registry: Apicurio | LoopbackRegistry) -> None:
    subject = uuid.uuid4().hex
    with pytest.raises(SchemaRegistryError) as no_subject:
        _client(registry).lookup_schema(subject, FIRST)
    with pytest.raises(SchemaRegistryError) as no_schema:
        _client(registry).get_schema(999_999)
    with pytest.raises(SchemaRegistryError) as no_avro:
        _client(registry).register_schema(subject, Schema('{"type":', schema_type="AVRO"))
    refusals = [no_subject.value, no_schema.value, no_avro.value]
    assert [(r.http_status_code, r.error_code) for r in refusals] == [(404, 40401), (404, 40403), (422, 42201)]


def test_a_guid_finds_its_schema(loopback_registry: LoopbackRegistry) -> None:
    _client(loopback_registry).register_schema("subject", FIRST)
    guid = _client(loopback_registry).lookup_schema("subject", FIRST).guid
    assert guid is not None
    assert _client(loopback_registry).get_schema_by_guid(guid).schema_str == FIRST.schema_str
    with pytest.raises(SchemaRegistryError):
        _client(loopback_registry).get_schema_by_guid(str(uuid.uuid4()))


def test_an_outage_comes_and_goes_and_nothing_is_forgotten(loopback_registry: LoopbackRegistry) -> None:
    number = _client(loopback_registry).register_schema("subject", FIRST)

    loopback_registry.available = False
    with pytest.raises(SchemaRegistryError, match="503"):
        _client(loopback_registry).get_schema(number)
    loopback_registry.stop()
    with pytest.raises(httpx2.ConnectError):
        _client(loopback_registry).get_schema(number)

    loopback_registry.available = True
    loopback_registry.start()
    assert _client(loopback_registry).get_schema(number).schema_str == FIRST.schema_str
