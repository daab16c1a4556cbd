"""What a member of the group subscribes to, and which of it cannot be read as a whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import structlog
from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError

from worker.kafka import client_errors

log = structlog.get_logger("worker.kafka")


class Subscription:
    """The topics of the settings, save those that would keep the others from being read.

    Under KIP-848 the coordinator refuses a member that names one topic which it may not see, and that member reads
    nothing at all. The classic protocol passes over such a topic by itself.

    Args:
        client: The member.
        is_all_or_nothing: The group's protocol is that of KIP-848.
    """

    def __init__(self, client: Client, *, is_all_or_nothing: bool) -> None:
        self._client = client
        self._is_all_or_nothing = is_all_or_nothing
        self._topics: Sequence[str] = ()
        self._callbacks: Mapping[str, Callable[..., None]] = {}
        self._left_out: frozenset[str] = frozenset()
        # A sentence for each topic that is not there or may not be seen.
        self.problems: dict[str, str] = {}

    def begin(self, topics: Sequence[str], **callbacks: Callable[..., None]) -> None:
        """Join the group. ``callbacks`` are those of `confluent_kafka.Consumer.subscribe`."""
        self._topics, self._callbacks = topics, callbacks
        self._subscribe()

    def learn(self, described: Collection[str], errors: Mapping[str, KafkaError]) -> None:
        """What the cluster says: topics that are well, and errors of others. What passes by itself changes nothing."""
        for topic in self.problems.keys() & set(described):
            del self.problems[topic]
            log.info("topic_found", topic=topic)
        refused = self._left_out - set(described)
        for topic, error in errors.items():
            if topic not in self._topics or (mend := client_errors.mend_of_partition(error)) is None:
                continue
            if topic not in self.problems:
                log.error("topic_unreadable", topic=topic, code=error.name(), error=error.str(), mend=mend)
            self.problems[topic] = f"topic {topic!r} cannot be read: {error.str()}; {mend}"
            if client_errors.is_refused_topic(error):
                refused |= {topic}
        if self._is_all_or_nothing and refused != self._left_out and refused != frozenset(self._topics):
            self._left_out = refused
            self._subscribe()

    def _subscribe(self) -> None:
        topics = [topic for topic in self._topics if topic not in self._left_out]
        self._client.subscribe(topics, **self._callbacks)
