"""librdkafka properties from settings: the defaults we choose, what the operator overrides, what nobody may."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from worker.errors import SettingsError
from worker.rules import names
from worker.settings import KafkaSettings

# A transaction holds produce and commit calls only, never inference, so ten seconds (the figure of Kafka Streams under
# exactly-once) are plenty, and readers wait no longer than that for the transaction of a worker that died.
TRANSACTION_TIMEOUT_MS: Final = 10_000

# librdkafka's own batch.size, in bytes before compression.
BATCH_BYTES: Final = 1_000_000

Properties = dict[str, Any]
Client = TypeVar("Client")


def common(settings: KafkaSettings, client: str) -> Properties:
    """What every client of ours shares. ``client`` is the suffix of client.id, for the broker's logs and quotas."""
    return {
        "client.id": names.client_id(settings.group_id, client),
        "reconnect.backoff.ms": 100,
        "reconnect.backoff.max.ms": 5_000,
        **settings.properties,
        "bootstrap.servers": settings.bootstrap_servers,
    }


def consumer(settings: KafkaSettings) -> Properties:
    """The worker's consumer: a member of the group that commits nothing by itself and reads committed records only."""
    properties: Properties = {
        **common(settings, "consumer"),
        # A group that is new reads what is waiting: skipping it would lose requests.
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 50,
        # How soon a topic created later is noticed; librdkafka's own five minutes look like a hang.
        "topic.metadata.refresh.interval.ms": 10_000,
        # Prefetch is memory: 32 MiB in the client, on top of what the ledger holds.
        "queued.max.messages.kbytes": 32_768,
        "queued.min.messages": 10_000,
        # When the prefetch queue is full, look again soon: the default of a second starves a fast model.
        "fetch.queue.backoff.ms": 20,
    }
    if settings.group_protocol == "classic":
        properties["partition.assignment.strategy"] = "cooperative-sticky"
    properties |= settings.consumer_properties
    properties |= {
        "group.id": settings.group_id,
        "group.protocol": settings.group_protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        # What tells the end of a partition from a pause of its producers: see Ends.reached.
        "enable.partition.eof": True,
    }
    if settings.group_instance_id is not None:
        properties["group.instance.id"] = settings.group_instance_id
    return properties


def reader(properties: Properties, group: str) -> Properties:
    """Properties of a consumer whose partitions are assigned by hand; see `worker.kafka.reader`.

    Args:
        properties: Those of a consumer, or what every client shares.
        group: librdkafka demands a name. No group is joined, and nothing is committed under it by reading.
    """
    return {name: value for name, value in properties.items() if name != "group.instance.id"} | {
        "group.id": group,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        # We read faster than a model does: after its default of a second the queue would long be empty.
        "fetch.queue.backoff.ms": 10,
    }


def producer(settings: KafkaSettings, transactional_id: str | None) -> Properties:
    """An idempotent producer that partitions as Java's does; transactional if it is given an id."""
    properties: Properties = {
        **common(settings, "producer"),
        # flush() and commit_transaction() send at once; lingering only fills requests while we are still producing.
        "linger.ms": 1,
        "compression.type": "lz4",
        "partitioner": "murmur2_random",
        # The broker's limit decides, not the client's: what could be read must be writable as a dead letter.
        "message.max.bytes": 104_857_600,
        **settings.producer_properties,
        "enable.idempotence": True,
        "acks": "all",
    }
    if transactional_id is not None:
        properties.setdefault("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
        # The broker takes a partition into a transaction once the last one is written out there, and answers "not yet"
        # until then: librdkafka's 100 ms between two attempts would be the better part of a small transaction.
        properties.setdefault("retry.backoff.ms", 10)
        properties["transactional.id"] = transactional_id
    return properties


def with_callbacks(properties: Properties, on_error: Callable[[Any], None]) -> Properties:
    """Properties plus the hooks through which librdkafka reports what no call of ours returns."""
    return {**properties, "error_cb": on_error, "logger": logging.getLogger("librdkafka")}


def open_client(kind: Callable[[Properties], Client], config: Properties) -> Client:
    """A client of librdkafka, which logs through ours and writes nothing to stderr by itself.

    Raises:
        SettingsError: a property is unknown, or has a value that librdkafka refuses.
    """
    try:
        return kind({"logger": logging.getLogger("librdkafka"), **config})
    except (KafkaException, TypeError, ValueError) as error:
        found: Any = error.args[0]
        said = found.str() if isinstance(found, KafkaError) else str(error)
        raise SettingsError(
            f"kafka.properties, consumer_properties or producer_properties: {said}; see librdkafka's CONFIGURATION.md"
        ) from None


def is_incremental(properties: Properties) -> bool:
    """True where a rebalance hands over only what changes: KIP-429 (cooperative) and KIP-848 (consumer protocol)."""
    if properties.get("group.protocol") == "consumer":
        return True
    return "cooperative" in str(properties.get("partition.assignment.strategy", ""))
