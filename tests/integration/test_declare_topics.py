"""deploy/declare_topics.py on a real broker and a real registry."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka.admin import ConfigResource, ResourceType
from confluent_kafka.schema_registry import SchemaRegistryClient

from tests.brokers.kafka import Kafka
from tests.brokers.registry import Apicurio

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).resolve().parents[2]


def _declare(kafka: Kafka, declarations: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "deploy" / "declare_topics.py"), f"--topics={declarations}"]
    arguments = [f"--bootstrap-servers={kafka.bootstrap_servers}", "--replication-factor=1", *more]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=60)


def _write(path: Path, topics: list[dict[str, Any]]) -> None:
    path.write_text(yaml.safe_dump({"topics": topics}), encoding="utf-8")


def test_a_cluster_is_made_to_match_and_differences_are_told(
    kafka: Kafka, schema_registry: Apicurio, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "schemas", tmp_path / "schemas")
    declarations = tmp_path / "schemas" / "topics.yaml"
    topics = yaml.safe_load(declarations.read_text(encoding="utf-8"))["topics"]
    for topic in topics:
        topic["name"] += f"-{uuid.uuid4().hex[:8]}"
    _write(declarations, topics)

    registry = f"--schema-registry={schema_registry.url}"
    for _ in range(2):  # the second run finds what the first one made
        done = _declare(kafka, declarations, registry)
        assert (done.returncode, done.stderr) == (0, "")

    admin = kafka.admin()
    known = admin.list_topics(timeout=30).topics
    for topic in topics:
        assert len(known[topic["name"]].partitions) == topic["partitions"]
        resource = ConfigResource(ResourceType.TOPIC, topic["name"])
        config = admin.describe_configs([resource])[resource].result(timeout=30)
        declared = {key: str(value) for key, value in topic["config"].items()} | {"min.insync.replicas": "1"}
        assert {key: config[key].value for key in declared} == declared
    client = SchemaRegistryClient({"url": schema_registry.url})
    for topic in topics:
        if topic["schema"] is not None:
            assert client.get_latest_version(f"{topic['name']}-value").version == 1
            assert client.get_compatibility(f"{topic['name']}-value") == topic["compatibility"]

    topics[0]["partitions"] += 1
    topics[1]["config"]["retention.ms"] = 1
    _write(declarations, topics)
    differs = _declare(kafka, declarations)
    assert differs.returncode == 1
    assert differs.stderr.splitlines() == [
        f"{topics[0]['name']}: has 12 partitions, declared are 13",
        f"{topics[1]['name']}: retention.ms is 604800000, declared is 1",
    ]
    for topic in topics:
        kafka.delete_topic(topic["name"])
