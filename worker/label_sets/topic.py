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
from worker.rules.blank import is_blank

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
        # A key that is no UTF-8 names nothing that a request could ask for, and must not pass for another name.
        name = (record.key or b"").decode("utf-8", "surrogateescape")
        if self._again is not None:
            self._again.add(name)
        if record.value is None:
            self._sets.pop(name, None)
            return
        why = f"there are {MAX_SETS} sets already; take some away with tombstones"
        try:
            labels = _labels(name, record.value)
        except _RefusedError as refused:
            why = str(refused)
        else:
            if name in self._sets or len(self._sets) < MAX_SETS:
                self._sets[name] = labels
                return
        log.error(
            "label_set_refused",
            topic=self._topic,
            partition=record.position.partition.number,
            offset=record.position.offset,
            name=name.encode("utf-8", "backslashreplace").decode(),
            why=why,
            mend='write key = name and value = a JSON array of strings, ["a", "b"]',
            stays="the former set" if name in self._sets else "no set of this name",
        )


class _RefusedError(Exception):
    """A record holds no label set; the text says why."""


def _labels(name: str, value: bytes) -> tuple[str, ...]:
    _check(name, "the key")
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a bare ValueError
        raise _RefusedError(f"the value is no JSON: {str(error)[:100]}") from None
    if not isinstance(parsed, list) or not parsed:
        raise _RefusedError(f"the value is {'an empty' if parsed == [] else 'no'} array")
    for index, label in enumerate(parsed):
        _check(label, f"entry {index}")
    return tuple(parsed)


def _check(text: object, where: str) -> None:
    """Only what can be written and seen: what would fail each request that names the set is refused here, once."""
    if not isinstance(text, str):
        raise _RefusedError(f"{where} is no string")
    if is_blank(text):
        raise _RefusedError(f"{where} is blank: nothing of it can be seen")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise _RefusedError(f"{where} is no valid Unicode, or has half a surrogate pair: write UTF-8")
