"""Registered label sets: a compacted topic whose keys are names and whose values are JSON arrays of labels.

A producer of requests then names a set instead of repeating forty labels in every message. The whole topic is read
before the first request is, and followed from there; a tombstone takes a set away. Every worker reads every partition,
outside any group, and keeps at most `MAX_SETS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Message, TopicPartition

from worker.errors import SettingsError
from worker.kafka import client_config
from worker.kafka.client_config import Properties
from worker.kafka.client_errors import PARTITION_END

log = structlog.get_logger("worker.kafka")

MAX_SETS: Final = 10_000


class LabelSets:
    """The label sets of a topic. ``sets`` is a live view: it changes with `refresh`, on the thread that calls it."""

    def __init__(self, config: Properties, topic: str) -> None:
        self._topic = topic
        self._sets: dict[str, tuple[str, ...]] = {}
        self.sets: Mapping[str, tuple[str, ...]] = MappingProxyType(self._sets)
        self._client = client_config.open_client(
            Consumer,
            {
                **config,
                # A group id is demanded by the client; nothing is ever committed under it, and no group is joined.
                "group.id": "xnli-worker-label-sets",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            },
        )
        self._behind: set[int] = set()

    def load(self, stop_requested: Callable[[], bool]) -> None:
        """Read the topic to its end, waiting for the broker as long as it takes.

        Raises:
            SettingsError: the broker has no such topic.
        """
        partitions = self._partitions(stop_requested)
        self._behind = set(partitions)
        self._client.assign([TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in partitions])
        while self._behind and not stop_requested():
            self._take(self._client.poll(0.1))
        log.info("label_sets_loaded", topic=self._topic, sets=len(self._sets))

    def refresh(self, most: int = 100) -> None:
        """Take in what has arrived since, at most ``most`` changes, without waiting."""
        for _ in range(most):
            message = self._client.poll(0)
            if message is None:
                return
            self._take(message)

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def _partitions(self, stop_requested: Callable[[], bool]) -> list[int]:
        while not stop_requested():
            try:
                found = self._client.list_topics(self._topic, timeout=5).topics[self._topic]
            except KafkaException as error:
                log.warning("broker_away", error=error.args[0].str())
                continue
            if found.error is not None or not found.partitions:
                raise SettingsError(
                    f"topics.label_sets = {self._topic!r}: the broker has no such topic ({found.error}); create it "
                    "with cleanup.policy=compact, or leave the setting out"
                )
            return list(found.partitions)
        return []

    def _take(self, message: Message | None) -> None:
        if message is None:
            return
        error = message.error()
        if error is not None:
            if error.code() == PARTITION_END:
                self._behind.discard(message.partition() or 0)
            else:
                log.warning("label_sets_error", code=error.name(), error=error.str())  # librdkafka goes on by itself
            return
        name = (message.key() or b"").decode("utf-8", "replace")
        value = message.value()
        if value is None:
            self._sets.pop(name, None)
            return
        labels = _labels(value)
        if labels is None or not name or (name not in self._sets and len(self._sets) >= MAX_SETS):
            log.error(
                "label_set_refused",
                topic=self._topic,
                partition=message.partition(),
                offset=message.offset(),
                name=name,
                mend=f'write key = name and value = a JSON array of strings, ["a", "b"]; at most {MAX_SETS} sets',
            )
            return
        self._sets[name] = labels


def _labels(value: bytes) -> tuple[str, ...] | None:
    try:
        parsed = json.loads(value)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(parsed, list) or not parsed or not all(isinstance(label, str) for label in parsed):
        return None
    return tuple(parsed)
