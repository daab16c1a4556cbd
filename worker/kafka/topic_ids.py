"""Topics that were deleted and made again under the same name, told by their ids (KIP-516).

A consumer does not notice: it reads the new topic on from the position that it had in the old one. So the ids are asked
for at an interval. Nothing here waits; the answer is looked at when it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from worker.kafka import client_config
from worker.kafka.client_config import Properties

log = structlog.get_logger("worker.kafka")

# An answer takes a millisecond or two. Records of a new topic that are read before it is noticed are answered twice.
INTERVAL_S: Final = 5.0
_REQUEST_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class TopicState:
    """What the cluster said of a topic: its id, and how many partitions it has."""

    topic_id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class TopicChange:
    """A topic is another than it was, or has more partitions."""

    topic: str
    former: TopicState
    current: TopicState

    @property
    def is_made_again(self) -> bool:
        """True if it is another topic under the same name."""
        return self.former.topic_id != self.current.topic_id


class TopicIds:
    """Asks for the ids of topics again and again, and tells what changed. Called on one thread; never waits.

    A topic that is away keeps the id it had until it is back. ``is_asking`` while an answer is awaited.
    """

    def __init__(self, config: Properties, topics: Sequence[str]) -> None:
        self._client = client_config.open_client(AdminClient, config)
        self._topics = topics
        self._known: dict[str, TopicState] = {}
        self._asked: dict[str, Future[Any]] = {}
        self._next_s = float("-inf")
        self._is_refused = False

    def ask(self, now_s: float) -> bool:
        """Send the question if it is due; True if it was sent."""
        if self._asked or now_s < self._next_s:
            return False
        self._client.poll(0)  # its log lines are handed over here
        self._next_s = now_s + INTERVAL_S
        self._asked = self._client.describe_topics(
            TopicCollection(list(self._topics)), request_timeout=_REQUEST_TIMEOUT_S
        )
        return True

    def answer(self) -> list[TopicChange] | None:
        """What changed since the last answer; None while no answer is there."""
        if not self._asked or not all(future.done() for future in self._asked.values()):
            return None
        asked, self._asked = self._asked, {}
        changes = []
        for topic, future in asked.items():
            current = self._state(topic, future)
            if current is None:
                continue
            former = self._known.get(topic, current)
            self._known[topic] = current
            if former != current:
                changes.append(TopicChange(topic, former, current))
        return changes

    def _state(self, topic: str, future: Future[Any]) -> TopicState | None:
        try:
            described = future.result()
        except KafkaException as error:
            if not self._is_refused:  # at every interval it would only fill the log
                log.warning(
                    "topic_id_unknown",
                    topic=topic,
                    error=error.args[0].str(),
                    mend="create the topic, or allow Describe on it; until then one that is made again is not noticed",
                )
            self._is_refused = True
            return None
        self._is_refused = False
        return TopicState(str(described.topic_id), len(described.partitions))
