"""librdkafka's embedded broker: real TCP on loopback, inside this process, for the demo and the tests.

Topics create themselves with four partitions. Its transactions are hollow (read_committed shows aborted records, and
offsets sent with a transaction are not stored), so it serves at_least_once and no claim about exactly-once rests on it.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Final, Self

from confluent_kafka import Producer

from worker.errors import SettingsError

# librdkafka names its cluster so (rdkafka_mock.c). Nothing else tells it: it grants transactions as a real broker does.
_CLUSTER_ID: Final = re.compile("mockCluster[0-9a-f]+")


def is_embedded(cluster_id: str | None) -> bool:
    """Whether the cluster of this id is librdkafka's embedded broker, in whatever process it runs."""
    return cluster_id is not None and _CLUSTER_ID.fullmatch(cluster_id) is not None


def require_transactions(cluster_id: str | None) -> None:
    """Refuse exactly_once on the embedded broker, which would say yes to it and keep none of it.

    Raises:
        SettingsError: the cluster of this id is the embedded broker.
    """
    if is_embedded(cluster_id):
        raise SettingsError(
            "delivery.guarantee = 'exactly_once', but the embedded broker of librdkafka (xnli-worker broker) only "
            "pretends to have transactions: set delivery.guarantee = 'at_least_once', or use Apache Kafka"
        )


class EmbeddedBroker:
    """A broker that lives as long as this object. ``bootstrap_servers`` may be given to any Kafka client."""

    def __init__(self, brokers: int = 1) -> None:
        # The mock cluster belongs to the client that asks for it; this producer does nothing else.
        self._owner: Producer | None = Producer({"test.mock.num.brokers": brokers, "log_level": 3})
        metadata = self._owner.list_topics(timeout=10)
        self.bootstrap_servers = ",".join(f"{b.host}:{b.port}" for b in metadata.brokers.values())

    def create(self, *topics: str) -> None:
        """Make topics exist: this broker creates a topic when a producer asks for it, and a consumer only waits."""
        if self._owner is None:
            raise RuntimeError("closed")
        for topic in topics:
            self._owner.list_topics(topic, timeout=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the broker; what it held is gone."""
        self._owner = None
