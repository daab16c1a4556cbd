"""The label sets' topic as the commands read it, whole and up to where it ends now, and write to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from worker.commands import connection
from worker.commands.connection import Reports, say
from worker.errors import FatalError, SettingsError, TopicMissing
from worker.kafka import client_config
from worker.kafka.reader import Reader
from worker.label_sets import record
from worker.label_sets.record import LabelSetRecord, RefusedError
from worker.messages import Record
from worker.settings import Settings

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class StoredSet:
    """A set in the topic: the last record of its name, and what it says, or why the worker refuses it."""

    name: str
    partition: int
    offset: int
    timestamp_ms: int
    value: bytes
    record: LabelSetRecord | None
    refused: str = ""

    @property
    def version(self) -> str:
        """What results call it."""
        own = None if self.record is None else self.record.version
        return own or f"{self.partition}/{self.offset}"


class LabelSetTopic:
    """Its questions to the broker raise BrokerAway if no answer comes in time."""

    def __init__(self, settings: Settings) -> None:
        if settings.topics.label_sets is None:
            raise SettingsError("topics.label_sets is not set; set it to the name of a compacted topic")
        self.name = settings.topics.label_sets
        self._settings = settings
        self._reports = Reports(say)
        self._reader: Reader = connection.open_reader(settings.kafka, self.name, self._reports, client="label-sets")

    def read(self) -> dict[str, StoredSet]:
        """The sets that are there now, by name. Raises TopicMissing."""
        found: dict[str, StoredSet] = {}
        try:
            numbers = connection.partitions(
                self._reader.client, self._settings.kafka, self._reports, self.name, _TIMEOUT_S
            )
        except TopicMissing as missing:
            raise TopicMissing(f"topics.label_sets: {missing} (xnli-worker topics create)") from None
        extents = self._reader.extents(numbers, _TIMEOUT_S)
        for read in self._reader.read({n: extent.begin for n, extent in extents.items()}, extents, lambda: False):
            name = (read.key or b"").decode("utf-8", "surrogateescape")
            found.pop(name, None)
            if read.value is not None:
                found[name] = _stored(name, read, read.value)
        return dict(sorted(found.items()))

    def write(self, values: dict[str, bytes | None], known: dict[str, StoredSet]) -> dict[str, tuple[int, int]]:
        """Write sets, and tombstones, and wait for the broker. Where each lies then: partition and offset.

        A name that is known stays in its partition, whoever chose that: two records of one name have an order only in
        one partition.

        Raises:
            FatalError: one was not delivered, and why. Those before it were.
        """
        producer = connection.connect(
            Producer, client_config.producer(self._settings.kafka, transactional_id=None), self._reports
        )
        places: dict[str, tuple[int, int]] = {}
        for name, value in values.items():
            told: list[tuple[KafkaError | None, Message]] = []
            where: dict[str, Any] = {"partition": known[name].partition} if name in known else {}
            try:
                producer.produce(
                    self.name, value, name.encode(), on_delivery=lambda *answer, told=told: told.append(answer), **where
                )
            except KafkaException as error:
                raise FatalError(f"{name}: not written: {error.args[0].str()}") from None
            while not told:  # it ends: after message.timeout.ms a record has failed
                producer.poll(0.5)
                self._reports.check()
            failed, message = told[0]
            if failed is not None:
                raise FatalError(f"{name}: not written to {self.name}: {failed.str()}")
            places[name] = (message.partition() or 0, message.offset() or 0)
        return places

    def close(self) -> None:
        """Disconnect."""
        self._reader.close()


@contextmanager
def opened(settings: Settings) -> Iterator[LabelSetTopic]:
    """The topic for as long as the block lasts."""
    topic = LabelSetTopic(settings)
    try:
        yield topic
    finally:
        topic.close()


def _stored(name: str, read: Record, value: bytes) -> StoredSet:
    position = read.position
    try:
        said, refused = record.read(name, value), ""
    except RefusedError as error:
        said, refused = None, str(error)
    return StoredSet(name, position.partition.number, position.offset, read.timestamp_ms, value, said, refused)
