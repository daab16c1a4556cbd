"""What the cluster says of a topic, to a consumer or a producer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import Consumer, Producer

from worker.errors import TopicMissing
from worker.kafka.client_errors import is_refused_topic

if TYPE_CHECKING:
    from confluent_kafka.admin._metadata import ClusterMetadata  # where the class is typed


def partition_numbers(client: Consumer | Producer, topic: str, timeout_s: float) -> list[int]:
    """The partitions of a topic. Asked by a producer, a broker that creates topics by itself creates this one.

    Raises:
        TopicMissing: it is not there.
        KafkaException: no broker answered in time.
    """
    return numbers_in(client.list_topics(topic, timeout=timeout_s), topic)


def numbers_in(cluster: ClusterMetadata, topic: str) -> list[int]:
    """The partitions of a topic that the cluster was asked about. Raises TopicMissing."""
    found = cluster.topics[topic]
    if found.error is not None or not found.partitions:
        why = found.error.str() if found.error is not None else "it has no partitions"
        if found.error is not None and is_refused_topic(found.error):
            raise TopicMissing(
                f"topic {topic!r} is hidden from this user ({why}); allow this user to read it, or to write to send "
                "there (kafka-acls.sh --operation Read or Write), or correct the setting"
            )
        raise TopicMissing(
            f"topic {topic!r} is not there ({why}); create it (xnli-worker topics create) or correct the setting"
        )
    return sorted(found.partitions)
