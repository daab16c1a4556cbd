"""Section ``kafka``."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator

from worker.rules import addresses, names
from worker.settings.section import Properties, Property, Section, sound


def _with_hostname(name: str) -> str:
    """Workers that share a file are told apart by their machines or pods."""
    return name.replace("{hostname}", socket.gethostname())


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
    """Brokers to begin with, HOST:PORT, commas between."""
    group_id: Annotated[str, sound(names.id_problem)] = "xnli-worker"
    """The consumer group. Workers of one group share the partitions."""
    group_instance_id: Annotated[str, AfterValidator(_with_hostname), sound(names.instance_problem)] | None = None
    """A stable name of this worker, another for each; {hostname} is filled in. A restart then keeps its partitions."""
    group_protocol: Literal["classic", "consumer"] = "classic"
    """The group protocol: "classic", or "consumer" (KIP-848, Kafka 4)."""
    # Out of repr: SASL passwords and TLS keys travel here.
    properties: Properties = Field(default_factory=dict, repr=False)
    """Properties of librdkafka for every client: TLS, SASL and the like."""
    consumer_properties: Properties = Field(default_factory=dict, repr=False)
    """Properties of librdkafka for the consumer alone."""
    producer_properties: Properties = Field(default_factory=dict, repr=False)
    """Properties of librdkafka for the producer alone."""

    @field_validator("properties", "consumer_properties", "producer_properties")
    @classmethod
    def _not_reserved(cls, value: dict[str, Property]) -> dict[str, Property]:
        for key in value:
            if key in cls.RESERVED:
                raise ValueError(f"{key} cannot be set here: {cls.RESERVED[key]}")
        return value
