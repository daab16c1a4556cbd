"""Label sets in a compacted topic: the keys are names, and a value is what `worker.label_sets.record` says.

A producer of requests then names a set instead of repeating forty labels in every message. The whole topic is read
before the first request is, and followed from there; a tombstone takes a set away. Every worker reads every partition,
those added later too, outside any group. A topic that was made again is read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
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
from worker.label_sets import record as records
from worker.label_sets.record import RefusedError
from worker.label_sets.stored_sets import StoredSets
from worker.messages import Record
from worker.rules.calibration import NONE, Calibrations
from worker.settings import LabelSetSettings
from worker.telemetry.metrics import Metrics

log = structlog.get_logger("worker.kafka")

_TIMEOUT_S: Final = 5.0
# Requests wait meanwhile. Some hundred sets are taken in in that time, or a few of thousands of labels.
_AT_ONCE_S: Final = 0.02


class FollowedSets:
    """The label sets of a topic, in ``stored``. They change with `refresh`, on the thread that calls it.

    Args:
        config: Properties of the client.
        admin: A connected client, which others may use too.
        topic: The topic.
        limits: What the sets may take.
        template: The worker's own, for sets that have none.
        metrics: Count them.
        calibrations: What the operator offers now: a set that names another is told of.
    """

    def __init__(
        self,
        config: Properties,
        admin: AdminClient,
        topic: str,
        limits: LabelSetSettings,
        template: str,
        metrics: Metrics,
        calibrations: Callable[[], Calibrations] = lambda: NONE,
    ) -> None:
        self._topic = topic
        self._metrics = metrics
        self._calibrations = calibrations
        self.stored = StoredSets(limits.max_bytes, template)
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
        self._loaded()

    def __contains__(self, name: str) -> bool:
        return name in self.stored

    @property
    def changes(self) -> int:
        """A number that grows with each change."""
        return self.stored.changes

    def _loaded(self) -> None:
        log.info("label_sets_loaded", topic=self._topic, sets=len(self.stored), bytes=self.stored.bytes)
        self._metrics.label_sets(len(self.stored), self.stored.bytes)

    def refresh(self) -> None:
        """Take in what has arrived since, without waiting, and no more at once than takes `_AT_ONCE_S`."""
        if not self._ids.ask(time.monotonic()) and (state := (self._ids.answer() or {}).get(self._topic)):
            self._compare(state)
        before = self.stored.changes
        record = self._reader.poll(0)
        until_s = time.monotonic() + _AT_ONCE_S
        while record is not None:
            self._take(record)
            record = self._reader.poll(0) if time.monotonic() < until_s else None
        if self._again is not None and self._reader.is_caught_up:
            # Until now the former topic's sets served: requests that name one need not fail meanwhile.
            for name in set(self.stored) - self._again:
                self.stored.remove(name)
            self._again = None
            self._loaded()
        elif self.stored.changes != before:
            self._metrics.label_sets(len(self.stored), self.stored.bytes)

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
            self.stored.remove(name)
            return
        partition, offset = record.position.partition.number, record.position.offset
        try:
            is_repeated = self.stored.put(name, record.value, partition, offset)
        except RefusedError as refused:
            why = str(refused)
        else:
            if is_repeated:
                log.warning(
                    "label_set_version_repeated",
                    topic=self._topic,
                    partition=partition,
                    offset=offset,
                    name=name,
                    mend="results cannot tell it from the former set: give it a version of its own, or none",
                )
            self._say_if_uncalibrated(name, record.value, partition, offset)
            return
        self._metrics.label_set_refused()
        log.error(
            "label_set_refused",
            topic=self._topic,
            partition=partition,
            offset=offset,
            name=name.encode("utf-8", "backslashreplace").decode(),
            why=why,
            mend="xnli-worker label-sets put checks what it writes, by schemas/label-set.schema.json",
            stays="the former set" if name in self.stored else "no set of this name",
        )

    def _say_if_uncalibrated(self, name: str, value: bytes, partition: int, offset: int) -> None:
        """Tell of a set whose calibration nobody offers. It serves all the same: requests wait for it."""
        if b'"calibration"' not in value:  # which spares most sets a second look
            return
        wanted = records.read(name, value).calibration
        offered = self._calibrations()
        if wanted is None or offered.find(wanted) is not None:
            return
        log.warning(
            "label_set_uncalibrated",
            topic=self._topic,
            partition=partition,
            offset=offset,
            name=name,
            calibration=wanted,
            offered=sorted(offered.by_name),
            next="its results carry raw scores and no calibrated ones, and thresholds are compared with those",
            mend="offer a calibration of this name in model.calibration (xnli-worker calibrate --name)",
        )
