"""`xnli-worker topics create` and `check`: the topics of the settings, as ``schemas/topics.yaml`` declares them.

What is missing is created. What exists is compared and never changed, for to repartition moves keys, and a shorter
retention deletes. With ``--schemas`` the schemas of requests and results are registered too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from worker import streams
from worker.avro.codec import open_codecs, schema_folder
from worker.commands import connection
from worker.commands.connection import Reports
from worker.commands.json_lines import is_wanted
from worker.errors import FatalError, SettingsError
from worker.kafka import client_config
from worker.kafka.embedded import is_embedded
from worker.rules import names
from worker.screen import plural
from worker.settings import KafkaSettings, Settings

DECLARATION: Final = "topics.yaml"
_TIMEOUT_S: Final = 10.0
_IN_SYNC: Final = "min.insync.replicas"


@dataclass(frozen=True, slots=True)
class Declared:
    """A topic as it should be. ``setting`` names it; ``schema`` is the file of its values' schema, if they have one."""

    name: str
    setting: str
    partitions: int
    replication: int
    config: dict[str, str]
    schema: str | None
    compatibility: str | None

    def on(self, brokers: int) -> Declared:
        """As it can be on so many brokers: more in-sync replicas than there are would refuse every write."""
        replicas = min(self.replication, brokers)
        in_sync = min(int(self.config.get(_IN_SYNC, "1")), max(1, replicas - 1))
        return replace(self, replication=replicas, config=self.config | {_IN_SYNC: str(in_sync)})


def declared(settings: Settings, partitions: int | None) -> list[Declared]:
    """The topics that these settings name. Retry topics are as the input's are, label sets in one compact partition.

    Args:
        settings: Which names topics have.
        partitions: Of requests, results and retries, in place of what is declared.
    """
    entries = yaml.safe_load((schema_folder() / DECLARATION).read_text(encoding="utf-8"))["topics"]
    found: dict[str, Any] = {entry["setting"]: entry for entry in entries}

    def topic(name: str, setting: str, like: str, count: int | None) -> Declared:
        entry = found[like]
        # A topic that is only like another has values as they came, or none of Avro.
        schema, compatibility = (entry["schema"], entry["compatibility"]) if setting == like else (None, None)
        config = {key: str(value) for key, value in entry["config"].items()}
        return Declared(
            name, setting, count or entry["partitions"], entry["replication"], config, schema, compatibility
        )

    topics = settings.topics
    asked = [topic(name, "topics.input", "topics.input", partitions) for name in topics.input]
    asked.append(topic(topics.output, "topics.output", "topics.output", partitions))
    asked.append(topic(topics.dead_letter, "topics.dead_letter", "topics.dead_letter", None))
    for _, name in names.retry_topics(settings.kafka.group_id, topics.retry):
        asked.append(topic(name, "topics.retry", "topics.input", partitions))
    if topics.label_sets is not None:
        sets = topic(topics.label_sets, "topics.label_sets", "topics.input", 1)
        kept = {key: value for key, value in sets.config.items() if key != "retention.ms"}
        asked.append(replace(sets, config=kept | {"cleanup.policy": "compact"}))
    return asked


def create(config: Path | None, *, partitions: int | None, schemas: bool, as_json: bool) -> bool:
    """Create what is missing, and say what was done. True if all topics are now as declared.

    Args:
        config: The settings' file.
        partitions: Of requests, results and retries, in place of what is declared.
        schemas: Register the schemas of requests and results as well.
        as_json: Write JSON on a terminal too.

    Raises:
        SettingsError: the settings are wrong, or the registry refuses a schema.
        BrokerAway: no broker answers.
        RegistryAway: the registry does not answer.
        FatalError: the broker refuses to create a topic.
    """
    settings = connection.load_settings(config)
    if schemas and settings.schema_registry.url is None:
        raise SettingsError("--schemas: there is no registry for them; set schema_registry.url, or leave --schemas out")
    all_well = _compare(settings, config, partitions, as_json=as_json, may_create=True)
    if schemas:
        _register(settings, as_json=as_json)
    return all_well


def check(config: Path | None, *, partitions: int | None, as_json: bool) -> bool:
    """Say what is missing and what differs. True if all topics are as declared. Raises as `create` does."""
    return _compare(connection.load_settings(config), config, partitions, as_json=as_json, may_create=False)


def _compare(
    settings: Settings, config: Path | None, partitions: int | None, *, as_json: bool, may_create: bool
) -> bool:
    kafka, reports = settings.kafka, Reports()
    admin = connection.connect(AdminClient, client_config.producer(kafka, None), reports)
    cluster = connection.metadata(admin, kafka, reports, _TIMEOUT_S)
    lines = ""
    states: dict[str, str] = {}
    # Results and retries have as many partitions as the requests that are there: keys lie where a join expects them.
    present = [len(cluster.topics[name].partitions) for name in settings.topics.input if name in cluster.topics]
    try:
        for wanted in declared(settings, partitions or max(present, default=None)):
            if is_embedded(cluster.cluster_id):
                state, said = _in_embedded(kafka, wanted.name, reports)
            elif wanted.name in cluster.topics:
                differences = list(
                    _differences(admin, wanted.on(len(cluster.brokers)), len(cluster.topics[wanted.name].partitions))
                )
                state, said = ("differs", "; ".join(differences)) if differences else ("ok", "as declared")
            elif may_create:
                state, said = "created", _create(admin, wanted.on(len(cluster.brokers)))
            else:
                mend = "xnli-worker topics create" + (f" --config {config}" if config else "")
                state, said = "missing", f"create it: {mend}"
            states[wanted.name] = state
            lines += _line(wanted, state, said, as_json=as_json)
    finally:  # what was created before one is refused is told, and stdout decides nothing
        streams.last_words(lines, otherwise=", ".join(f"{name}: {state}" for name, state in states.items()))
    return set(states.values()) <= {"ok", "created"}


def _line(topic: Declared, state: str, said: str, *, as_json: bool) -> str:
    shown = {"topic": topic.name, "setting": topic.setting, "status": state, "message": said}
    return json.dumps(shown) + "\n" if is_wanted(as_json) else f"{state:<8} {topic.name}: {said}\n"


def _register(settings: Settings, *, as_json: bool) -> None:
    codecs = open_codecs(settings.schema_registry)
    lines = ""
    subjects: list[str] = []
    try:
        for topic in declared(settings, None):
            if topic.schema is not None and topic.compatibility is not None:
                subject = codecs.declare(topic.schema, topic.name, topic.compatibility)
                said = f"its schema is registered under {subject!r}, compatibility {topic.compatibility}"
                lines += _line(topic, "ok", said, as_json=as_json)
                subjects.append(subject)
    finally:
        streams.last_words(lines, otherwise=f"registered: {', '.join(subjects)}")


def _create(admin: AdminClient, topic: Declared) -> str:
    new = NewTopic(topic.name, topic.partitions, topic.replication, config=topic.config)
    try:
        admin.create_topics([new])[topic.name].result(timeout=_TIMEOUT_S)
    except KafkaException as error:
        raise FatalError(
            f"{topic.setting}: the broker does not create {topic.name!r}: {error.args[0].str()}; allow this user to "
            "create topics (ACL: Create on the cluster), or ask its operators"
        ) from None
    return f"{plural(topic.partitions, 'partition')}, {plural(topic.replication, 'replica')}"


def _differences(admin: AdminClient, topic: Declared, partitions: int) -> Iterator[str]:
    if partitions != topic.partitions:
        yield f"has {plural(partitions, 'partition')}, declared are {topic.partitions}"
    resource = ConfigResource(ResourceType.TOPIC, topic.name)
    try:
        actual = admin.describe_configs([resource], request_timeout=_TIMEOUT_S)[resource].result()
    except KafkaException as error:
        yield f"does not show its configuration: {error.args[0].str()}"
        return
    for key, value in topic.config.items():
        if actual[key].value != value:
            yield f"{key} is {actual[key].value}, declared is {value}"


def _in_embedded(kafka: KafkaSettings, name: str, reports: Reports) -> tuple[str, str]:
    """The embedded broker makes a topic when a producer asks for it, and knows no settings of topics."""
    producer = connection.connect(Producer, client_config.producer(kafka, None), reports)
    numbers = connection.partitions(producer, kafka, reports, name, _TIMEOUT_S)
    return "ok", f"{plural(len(numbers), 'partition')}, as the embedded broker makes them"
