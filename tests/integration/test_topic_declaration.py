"""`topics create` and `check` on a real broker and a real registry."""

from __future__ import annotations

import json
import uuid

import pytest
import yaml
from confluent_kafka.admin import (
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.schema_registry import SchemaRegistryClient

from tests.brokers.kafka import Kafka, KafkaCluster
from tests.brokers.registry import Apicurio
from worker.avro.codec import schema_folder
from worker.commands import topic_declaration

pytestmark = pytest.mark.kafka


@pytest.fixture
def topics(kafka: Kafka, schema_registry: Apicurio, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Names that nobody has, by the setting that has them."""
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("a broker that somebody else runs need not let us create topics")
    unique = uuid.uuid4().hex[:8]
    names = {f"topics.{key}": f"{key}-{unique}" for key in ("input", "output", "dead_letter")}
    for setting, name in names.items():
        monkeypatch.setenv(f"XNLI_{setting.replace('.', '__').upper()}", name)
    monkeypatch.setenv("XNLI_KAFKA__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("XNLI_SCHEMA_REGISTRY__URL", schema_registry.url)
    return names


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_cluster_is_made_to_match_and_differences_are_told(
    kafka: Kafka, schema_registry: Apicurio, topics: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    for status in ("created", "ok"):  # the second run finds what the first one made
        assert topic_declaration.create(None, partitions=None, schemas=True, as_json=False)
        told = [(line["status"], line["topic"]) for line in lines(capsys)]
        registered = [("ok", topics["topics.input"]), ("ok", topics["topics.output"])]
        assert told == [*((status, name) for name in topics.values()), *registered]

    admin = kafka.admin()
    known = admin.list_topics(timeout=30).topics
    client = SchemaRegistryClient({"url": schema_registry.url})
    for entry in yaml.safe_load((schema_folder() / "topics.yaml").read_text(encoding="utf-8"))["topics"]:
        name = topics[entry["setting"]]
        assert len(known[name].partitions) == entry["partitions"]
        resource = ConfigResource(ResourceType.TOPIC, name)
        config = admin.describe_configs([resource])[resource].result(timeout=30)
        declared = {key: str(value) for key, value in entry["config"].items()} | {"min.insync.replicas": "1"}
        assert {key: config[key].value for key in declared} == declared
        if entry["schema"] is not None:
            assert client.get_latest_version(f"{name}-value").version == 1
            assert client.get_compatibility(f"{name}-value") == entry["compatibility"]

    results = topics["topics.output"]
    shorter = ConfigEntry("retention.ms", "1", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, results, incremental_configs=[shorter])
    admin.incremental_alter_configs([resource])[resource].result(timeout=30)
    assert not topic_declaration.check(None, partitions=13, as_json=False)
    assert [(line["status"], line["message"]) for line in lines(capsys)] == [
        ("differs", "has 12 partitions, declared are 13"),
        ("differs", "has 12 partitions, declared are 13; retention.ms is 1, declared is 604800000"),
        ("ok", "as declared"),
    ]
    assert not topic_declaration.create(None, partitions=None, schemas=False, as_json=False)  # and changes nothing
    assert [line["status"] for line in lines(capsys)] == ["ok", "differs", "ok"]
    for name in topics.values():
        kafka.delete_topic(name)
