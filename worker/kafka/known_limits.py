"""The limits of the topics that we write to, asked for at the start and every few minutes.

Nothing waits for an answer once the worker runs. Where a limit is not known nothing is refused beforehand: the broker
refuses it, and the transaction that it was in is made again without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigEntry, ConfigResource, ResourceType

from worker.errors import Unpublishable
from worker.kafka import client_config
from worker.kafka.client_config import Properties
from worker.messages import Output, Position
from worker.rules.topic_limits import TopicLimits
from worker.settings import KafkaSettings

log = structlog.get_logger("worker.kafka")

REFRESH_S: Final = 60.0
MISSING_REFRESH_S: Final = 5.0  # while a topic is missing
_FIRST_TIMEOUT_S: Final = 5.0
_NO_LIMIT_MS: Final = 1 << 62  # Kafka's default for timestamps of the past is 2^63 - 1

_Answers = dict[ConfigResource, "Future[dict[str, ConfigEntry]]"]


class KnownLimits:
    """Limits by topic, as far as the broker tells.

    Args:
        admin: A connected client, which others may use too.
        topics: Those that we write to.
        compression: The producer's compression.type.
        on_missing: Told which topics are not there, after each answer.
        clock: Monotonic seconds.
        wall_clock: Seconds since 1970.
    """

    def __init__(
        self,
        admin: AdminClient,
        topics: Collection[str],
        compression: str,
        on_missing: Callable[[Sequence[str]], None],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._admin = admin
        self._topics = sorted(topics)
        self._is_compressed = compression != "none"
        self._on_missing = on_missing
        self._clock = clock
        self._wall_clock = wall_clock
        self._asked: _Answers = {}
        self._asked_at_s = 0.0
        self._unknown: set[str] = set()  # topics of which that was said
        self._missing: set[str] = set()
        self._known: dict[str, TopicLimits] = {}

    def load(self) -> None:
        """Ask, and wait for the answer for a few seconds at most."""
        self._ask()
        for answer in self._asked.values():
            with suppress(Exception):  # told of below
                answer.result(_FIRST_TIMEOUT_S)
        self._take()
        for topic in self._missing:
            with suppress(KafkaException):  # a broker that creates topics by itself does so now
                self._admin.list_topics(topic, timeout=_FIRST_TIMEOUT_S)

    def refresh(self) -> None:
        """Ask again when it is time, and take what was answered. Never waits."""
        if self._asked:
            if all(answer.done() for answer in self._asked.values()):
                self._take()
        elif self._clock() >= self._asked_at_s + (MISSING_REFRESH_S if self._missing else REFRESH_S):
            self._ask()

    def refusal(self, position: Position, output: Output) -> Unpublishable | None:
        """What the broker would say to an output that it will certainly refuse."""
        limits = self._known.get(output.topic)
        if limits is None:
            return None
        if limits.is_too_large(output):
            said = f"MSG_SIZE_TOO_LARGE: over the topic's max.message.bytes of {limits.max_message_bytes}"
            return Unpublishable(position, output, KafkaError.MSG_SIZE_TOO_LARGE, said)
        if limits.has_wrong_time(output, self._wall_clock() * 1000):
            said = "INVALID_TIMESTAMP: outside the topic's message.timestamp.before.max.ms or after.max.ms"
            return Unpublishable(position, output, KafkaError.INVALID_TIMESTAMP, said)
        return None

    def fitted(self, config: Properties, most_bytes: int | None = None) -> Properties:
        """Producer properties whose batches fit every topic: the broker refuses a batch of small records as well.

        ``most_bytes`` is the largest batch to send by what else is known.
        """
        least = min((limits.max_message_bytes for limits in self._known.values()), default=client_config.BATCH_BYTES)
        if most_bytes is not None:
            return config | {"batch.size": min(least, most_bytes)}
        return config if least >= client_config.BATCH_BYTES else {"batch.size": least, **config}

    def _ask(self) -> None:
        self._asked_at_s = self._clock()
        # One request a topic: a topic that is not ours to ask about would take the others along.
        self._asked = {}
        for topic in self._topics:
            with suppress(KafkaException):
                self._asked |= self._admin.describe_configs(
                    [ConfigResource(ResourceType.TOPIC, topic)], request_timeout=_FIRST_TIMEOUT_S
                )

    def _take(self) -> None:
        for resource, answer in self._asked.items():
            topic = str(resource.name)
            if not answer.done():
                self._cannot_tell(topic, "no answer in time")
                continue
            try:
                entries = answer.result(0)
            except KafkaException as error:
                if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    self._is_missing(topic)
                else:
                    self._cannot_tell(topic, error.args[0].str())
            else:
                self._unknown.discard(topic)
                if topic in self._missing:
                    self._missing.discard(topic)
                    log.info("topic_found", topic=topic)
                self._known[topic] = self._limits({name: str(entry.value) for name, entry in entries.items()})
        self._asked = {}
        self._on_missing(sorted(self._missing))

    def _is_missing(self, topic: str) -> None:
        if topic not in self._missing:
            self._missing.add(topic)
            log.warning(
                "topic_missing",
                topic=topic,
                error=f"the broker has no topic {topic!r}; what is written there waits until it is created "
                "(xnli-worker topics create), or correct the setting",
            )

    def _cannot_tell(self, topic: str, why: str) -> None:
        if topic not in self._unknown:
            self._unknown.add(topic)
            log.warning(
                "topic_limits_unknown",
                topic=topic,
                error=f"{why}; outputs that it refuses are found one by one, which takes a transaction each. Grant "
                "DescribeConfigs on the topic to know its max.message.bytes beforehand",
            )

    def _limits(self, entries: Mapping[str, str]) -> TopicLimits:
        is_ours_to_stamp = entries.get("message.timestamp.type", "CreateTime") == "CreateTime"
        return TopicLimits(
            int(entries["max.message.bytes"]),
            self._is_compressed and entries.get("compression.type") != "uncompressed",
            _ms(entries, "message.timestamp.after.max.ms") if is_ours_to_stamp else None,
            _ms(entries, "message.timestamp.before.max.ms") if is_ours_to_stamp else None,
        )


def load(
    settings: KafkaSettings,
    admin: AdminClient,
    topics: Collection[str],
    on_missing: Callable[[Sequence[str]], None],
) -> KnownLimits:
    """The limits of the topics that a producer of these settings writes to, as far as they are known within seconds."""
    producer = client_config.producer(settings, transactional_id=None)
    compression = str(producer.get("compression.codec", producer["compression.type"]))
    limits = KnownLimits(admin, topics, compression, on_missing)
    limits.load()
    return limits


def _ms(entries: Mapping[str, str], name: str) -> int | None:
    # Brokers before 3.6 know one setting for both directions.
    found = entries.get(name) or entries.get("message.timestamp.difference.max.ms")
    return int(found) if found is not None and int(found) < _NO_LIMIT_MS else None
