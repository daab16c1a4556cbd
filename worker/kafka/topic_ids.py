"""Which topics the cluster has under our names now, told by their ids (KIP-516).

A consumer does not notice that a topic was deleted and made again: it reads the new one on from the position that it
had in the old one. So the ids are asked for, at each assignment and again and again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from worker.kafka.embedded import is_embedded
from worker.rules.offset_metadata import TopicId

log = structlog.get_logger("worker.kafka")

# An answer takes a millisecond or two. Records of a new topic that are read before it is noticed are answered twice.
INTERVAL_S: Final = 5.0
_REQUEST_TIMEOUT_S: Final = 10.0
# What brokers answer that know no ids (before 2.8): sixteen bytes of zero.
_NO_ID: Final = "AAAAAAAAAAAAAAAAAAAAAA"


@dataclass(frozen=True, slots=True)
class TopicState:
    """What the cluster said of a topic: its id, None where it has no ids, and how many partitions there are."""

    topic_id: TopicId | None
    partitions: int


class TopicIds:
    """Asks for the ids of topics. Called on one thread.

    Args:
        admin: A connected client, which others may use too.
        topics: Their names.
    """

    def __init__(self, admin: AdminClient, topics: Collection[str]) -> None:
        self._admin = admin
        self._topics = sorted(topics)
        self._cluster_id = ""  # until the first `fetch`; ids of topics tell nothing without it
        self._asked: dict[str, Future[Any]] = {}
        self._next_s = float("-inf")
        self._unknown: set[str] = set()  # of which that was said
        # Why a topic was not described, of the last answer.
        self.errors: dict[str, KafkaError] = {}

    def ask(self, now_s: float) -> bool:
        """Send the question if it is due; True if it was sent. Never waits."""
        if self._asked or now_s < self._next_s or is_embedded(self._cluster_id):
            return False  # the embedded broker leaves the question unanswered
        self._admin.poll(0)  # its log lines are handed over here
        self._next_s = now_s + INTERVAL_S
        self._asked = self._describe(self._topics)
        return True

    def answer(self) -> dict[str, TopicState] | None:
        """What was answered of each topic; None while no answer is there. Topics that are away are left out."""
        if not self._asked or not all(future.done() for future in self._asked.values()):
            return None
        asked, self._asked = self._asked, {}
        self.errors = {}
        return self._states(asked, 0.0)

    @property
    def missing(self) -> frozenset[str]:
        """Topics that the cluster does not have, by its last answer."""
        unknown = KafkaError.UNKNOWN_TOPIC_OR_PART
        return frozenset(topic for topic, error in self.errors.items() if error.code() == unknown)

    def fetch(self, topics: Collection[str], timeout_s: float) -> dict[str, TopicState]:
        """Ask and wait for the answers. Of topics that are away, or if none comes in time, nothing is told."""
        self._asked = {}  # an answer that is under way is older than this one will be
        if not self._cluster_id and topics:
            try:
                self._cluster_id = str(self._admin.list_topics(min(topics), timeout=timeout_s).cluster_id or "")
            except KafkaException as error:
                self._refused("the cluster's id", error)
        if is_embedded(self._cluster_id):
            return {}
        return self._states(self._describe(sorted(topics)), timeout_s)

    def _describe(self, topics: Collection[str]) -> dict[str, Future[Any]]:
        return self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=_REQUEST_TIMEOUT_S)

    def _states(self, asked: Mapping[str, Future[Any]], timeout_s: float) -> dict[str, TopicState]:
        """The answers, as far as they come in time."""
        deadline_s = time.monotonic() + timeout_s
        found = {}
        for topic, future in asked.items():
            try:
                described = future.result(max(0.0, deadline_s - time.monotonic()))
            except (KafkaException, TimeoutError) as error:
                self._refused(topic, error)
                continue
            self._unknown.discard(topic)
            said = str(described.topic_id)
            topic_id = None if said == _NO_ID or not self._cluster_id else TopicId(said, self._cluster_id)
            found[topic] = TopicState(topic_id, len(described.partitions))
        return found

    def _refused(self, what: str, error: Exception) -> None:
        if isinstance(error, KafkaException):
            self.errors[what] = error.args[0]
        if what not in self._unknown:  # at every interval it would only fill the log
            self._unknown.add(what)
            log.warning(
                "topic_id_unknown",
                topic=what,
                error=error.args[0].str() if isinstance(error, KafkaException) else "no answer in time",
                mend="create the topic (xnli-worker topics create), or allow Describe on it; until then one that is "
                "made again is not noticed",
            )
