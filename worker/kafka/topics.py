"""What the cluster says of a topic, to a consumer or a producer."""

from __future__ import annotations

from confluent_kafka import Consumer, Producer

from worker.errors import TopicMissing


def partition_numbers(client: Consumer | Producer, topic: str, timeout_s: float) -> list[int]:
    """The partitions of a topic. Asked by a producer, a broker that creates topics by itself creates this one.

    Raises:
        TopicMissing: it is not there.
        KafkaException: no broker answered in time.
    """
    found = client.list_topics(topic, timeout=timeout_s).topics[topic]
    if found.error is not None or not found.partitions:
        why = found.error.str() if found.error is not None else "it has no partitions"
        raise TopicMissing(f"topic {topic!r} is not there ({why}); create it, or correct the setting")
    return sorted(found.partitions)
