"""Registered label sets: a compacted topic whose keys are names and whose values are JSON arrays of labels.

A producer of requests then names a set instead of repeating forty labels in every message. The whole topic is read
before the first request is, and followed from there; a tombstone takes a set away. Every worker reads every partition,
those added later too, outside any group, and keeps at most `MAX_SETS`. A topic that was made again is read again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

import structlog
from confluent_kafka import OFFSET_BEGINNING, Consumer
from confluent_kafka.admin import AdminClient

from worker.errors import BrokerAway, SettingsError, TopicMissing
from worker.kafka import client_config
from worker.kafka.client_config import Properties
from worker.kafka.client_errors import ErrorLog
from worker.kafka.reader import Reader
from worker.kafka.topic_ids import TopicIds, TopicState
from worker.messages import Record

log = structlog.get_logger("worker.kafka")

MAX_SETS: Final = 10_000
_TIMEOUT_S: Final = 5.0


class LabelSets:
    """The label sets of a topic. ``sets`` is a live view: it changes with `refresh`, on the thread that calls it."""

    def __init__(self, config: Properties, admin: AdminClient, topic: str) -> None:
        self._topic = topic
        self._sets: dict[str, tuple[str, ...]] = {}
        self.sets: Mapping[str, tuple[str, ...]] = MappingProxyType(self._sets)
        client = client_config.open_client(Consumer, client_config.reader(config, group="xnli-worker-label-sets"))
        self._reader = Reader(client, topic, ErrorLog("label sets"))
        self._ids = TopicIds(admin, [topic])
        self._state: TopicState | None = None  # of the topic that is read, as far as it is known
        # The names in the topic that was made again, while it is read for the first time.
        self._again: set[str] | None = None

    def load(self, stop_requested: Callable[[], bool]) -> None:
        """Read the topic to its end, waiting for the broker as long as it takes.

        Raises:
            SettingsError: the broker has no such topic.
        """
        # Before the partitions are listed: what changes after this answer is noticed by the next one.
        state = self._ids.fetch([self._topic], _TIMEOUT_S).get(self._topic)
        partitions = self._partitions(stop_requested)
        self._state = None if state is None else replace(state, partitions=len(partitions))
        self._reader.assign(dict.fromkeys(partitions, OFFSET_BEGINNING))
        while not self._reader.is_caught_up and not stop_requested():
            record = self._reader.poll(0.1)
            if record is not None:
                self._take(record)
        log.info("label_sets_loaded", topic=self._topic, sets=len(self._sets))

    def refresh(self, most: int = 100) -> None:
        """Take in what has arrived since, at most ``most`` changes, without waiting."""
        if not self._ids.ask(time.monotonic()) and (state := (self._ids.answer() or {}).get(self._topic)):
            self._compare(state)
        for _ in range(most):
            record = self._reader.poll(0)
            if record is None:
                break
            self._take(record)
        if self._again is not None and self._reader.is_caught_up:
            # Until now the former topic's sets served: requests that name one need not fail meanwhile.
            for name in self._sets.keys() - self._again:
                del self._sets[name]
            self._again = None
            log.info("label_sets_loaded", topic=self._topic, sets=len(self._sets))

    def _compare(self, current: TopicState) -> None:
        former, self._state = self._state, current
        if former is None:
            return
        if current.topic_id is not None and former.topic_id is not None and current.topic_id != former.topic_id:
            log.error(
                "topic_made_again",
                topic=self._topic,
                former_id=former.topic_id.topic_id,
                id=current.topic_id.topic_id,
                reads_from="the beginning",
            )
            self._again = set()
            self._reader.assign(dict.fromkeys(range(current.partitions), OFFSET_BEGINNING))
        elif added := range(former.partitions, current.partitions):
            log.info("partitions_added", topic=self._topic, partitions=list(added))
            self._reader.assign_also(dict.fromkeys(added, OFFSET_BEGINNING))

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()

    def _partitions(self, stop_requested: Callable[[], bool]) -> list[int]:
        while not stop_requested():
            try:
                return self._reader.partitions(_TIMEOUT_S)
            except BrokerAway as away:
                log.warning("broker_away", error=str(away))
            except TopicMissing as missing:
                raise SettingsError(
                    f"topics.label_sets: {missing}, or leave it out; the topic needs cleanup.policy=compact"
                ) from None
        return []

    def _take(self, record: Record) -> None:
        name = (record.key or b"").decode("utf-8", "replace")
        if self._again is not None:
            self._again.add(name)
        if record.value is None:
            self._sets.pop(name, None)
            return
        labels = _labels(record.value)
        if labels is None or not name or (name not in self._sets and len(self._sets) >= MAX_SETS):
            log.error(
                "label_set_refused",
                topic=self._topic,
                partition=record.position.partition.number,
                offset=record.position.offset,
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
