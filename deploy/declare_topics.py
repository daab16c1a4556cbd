"""Make a cluster match schemas/topics.yaml: topics, and their schemas in a registry.

What is missing is created. What exists is compared and never changed, for repartitioning moves keys and a shorter
retention deletes: a difference is reported and ends with exit code 1. Running it again is harmless.
"""  # noqa: INP001 (a program to run, not a package to import)

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError

TIMEOUT_S = 30
TOPICS = Path(__file__).resolve().parents[1] / "schemas" / "topics.yaml"


@dataclass(frozen=True, slots=True)
class Topic:
    """One declared topic."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]
    schema: str | None
    compatibility: str | None


def read(declarations: Path, replication: int | None) -> list[Topic]:
    """The declared topics; ``replication`` replaces what they say, for clusters with fewer brokers."""
    topics = []
    for entry in yaml.safe_load(declarations.read_text(encoding="utf-8"))["topics"]:
        replicas = replication or entry["replication"]
        config = {key: str(value) for key, value in entry["config"].items()}
        # More in-sync replicas than there are would refuse every write; one fewer than all lets a broker restart.
        in_sync = min(int(config["min.insync.replicas"]), max(1, replicas - 1))
        config["min.insync.replicas"] = str(in_sync)
        schema = (declarations.parent / entry["schema"]).read_text(encoding="utf-8") if entry["schema"] else None
        topics.append(Topic(entry["name"], entry["partitions"], replicas, config, schema, entry["compatibility"]))
    return topics


def declare_topic(admin: AdminClient, topic: Topic) -> list[str]:
    """Create the topic, or list how the existing one differs from its declaration."""
    existing = admin.list_topics(timeout=TIMEOUT_S).topics.get(topic.name)
    if existing is None:
        new = NewTopic(topic.name, topic.partitions, topic.replication, config=topic.config)
        admin.create_topics([new])[topic.name].result(timeout=TIMEOUT_S)
        return []
    differences = []
    if (found := len(existing.partitions)) != topic.partitions:
        differences.append(f"{topic.name}: has {found} partitions, declared are {topic.partitions}")
    resource = ConfigResource(ResourceType.TOPIC, topic.name)
    actual = admin.describe_configs([resource])[resource].result(timeout=TIMEOUT_S)
    differences += [
        f"{topic.name}: {key} is {actual[key].value}, declared is {value}"
        for key, value in topic.config.items()
        if actual[key].value != value
    ]
    return differences


def declare_schema(registry: SchemaRegistryClient, topic: Topic) -> None:
    """Register the topic's schema under its compatibility; the registry refuses one that breaks it."""
    if topic.schema is None or topic.compatibility is None:
        return
    subject = f"{topic.name}-value"
    registry.register_schema(subject, Schema(topic.schema, schema_type="AVRO"))
    registry.set_compatibility(subject, topic.compatibility)


def main() -> int:
    """Exit code 0: the cluster matches; 1: it differs, or could not be reached."""
    parser = argparse.ArgumentParser(description="Create the topics and register the schemas of xnli-worker.")
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--schema-registry", help="URL; schemas are registered only with it")
    parser.add_argument("--replication-factor", type=int, help="in place of the declared one")
    parser.add_argument("--topics", type=Path, default=TOPICS)
    arguments = parser.parse_args()

    # 4: warnings and worse.
    admin = AdminClient({"bootstrap.servers": arguments.bootstrap_servers, "log_level": 4})
    registry = SchemaRegistryClient({"url": arguments.schema_registry}) if arguments.schema_registry else None
    differences: list[str] = []
    try:
        for topic in read(arguments.topics, arguments.replication_factor):
            differences += declare_topic(admin, topic)
            if registry is not None:
                declare_schema(registry, topic)
    except KafkaException as error:
        differences.append(f"{arguments.bootstrap_servers}: {error.args[0].str()}")
    except SchemaRegistryError as error:
        differences.append(f"{arguments.schema_registry}: {error}")
    for difference in differences:
        sys.stderr.write(f"{difference}\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
