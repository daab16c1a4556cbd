"""The broker a benchmark runs on: that of ``XNLI_TEST_KAFKA``, or one of its own, and topics that nobody else has."""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.brokers.kafka import Kafka, KafkaCluster


@contextmanager
def broker(properties: Mapping[str, str] | None = None) -> Iterator[Kafka]:
    """A running broker. ``properties`` reach one of our own only."""
    if given := os.environ.get("XNLI_TEST_KAFKA"):
        yield Kafka(given)
        return
    with KafkaCluster(properties=properties) as cluster:
        yield cluster


def new_topic(kafka: Kafka, hint: str, partitions: int = 4, config: Mapping[str, str] | None = None) -> str:
    """Create a topic and return its name."""
    name = f"bench-{hint}-{uuid.uuid4().hex[:8]}"
    kafka.create_topic(name, partitions, config)
    return name


def machine() -> str:
    """What a figure was measured on, its load included: a rate without that says little."""
    return (
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
