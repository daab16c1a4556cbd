"""Section ``kafka``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from worker.rules import addresses, names
from worker.settings.section import Properties, Property, Section, sound


class KafkaSettings(Section):
    """Where the brokers are and how this worker joins its group."""

    # Ours by invariant: another value would break what the worker promises, so it is refused rather than overwritten.
    RESERVED: ClassVar[Mapping[str, str]] = {
        "bootstrap.servers": "set kafka.bootstrap_servers",
        "metadata.broker.list": "set kafka.bootstrap_servers",
        "group.id": "set kafka.group_id",
        "group.instance.id": "set kafka.group_instance_id",
        "group.protocol": "set kafka.group_protocol",
        "enable.auto.commit": "the worker commits what it has resolved, and nothing else may",
        "enable.auto.offset.store": "the worker commits what it has resolved, and nothing else may",
        "enable.idempotence": "always true: without it a retried produce may double or reorder results",
        "transactional.id": "derived from kafka.group_id and the instance; set kafka.group_instance_id to name it",
        "isolation.level": "always read_committed",
        "check.crcs": "always false: behind a wrong checksum librdkafka 2.16 passes over sound records",
        "acks": "always all: an unreplicated result is not an acknowledged one",
        "delivery.report.only.error": "always true: what fails is told of, and the rest is what has left the queue",
    }

    bootstrap_servers: Annotated[str, sound(addresses.servers_problem)]
    group_id: Annotated[str, sound(names.id_problem)] = "xnli-worker"
    group_instance_id: Annotated[str, sound(names.instance_problem)] | None = None
    group_protocol: Literal["classic", "consumer"] = "classic"
    # Out of repr: SASL passwords and TLS keys travel here.
    properties: Properties = Field(default_factory=dict, repr=False)
    consumer_properties: Properties = Field(default_factory=dict, repr=False)
    producer_properties: Properties = Field(default_factory=dict, repr=False)

    @field_validator("properties", "consumer_properties", "producer_properties")
    @classmethod
    def _not_reserved(cls, value: dict[str, Property]) -> dict[str, Property]:
        for key in value:
            if key in cls.RESERVED:
                raise ValueError(f"{key} cannot be set here: {cls.RESERVED[key]}")
        return value
