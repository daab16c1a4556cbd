"""Where a record batch that cannot be read ends, and what a larger limit lets read of it.

A client of its own asks, outside the group, so that the worker's own goes on with its other partitions meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from worker.kafka import client_config, client_errors
from worker.kafka.client_config import Properties
from worker.kafka.client_errors import PARTITION_END
from worker.messages import Partition

# librdkafka unpacks a batch to no more than receive.message.max.bytes, 100 MB by default, and doubles its buffer on the
# way, so the limit bites from half of that on. What is unpacked is held about three times over (by librdkafka, as the
# record's value, and by the producer as a dead letter), which bounds this.
LARGEST_BATCH_BYTES: Final = 268_435_456
# A fetch of what is there is answered within milliseconds. Nothing at all in this time means that nothing comes.
PATIENCE_S: Final = 2.0
# What seems to be silent is asked once more, for so long, before anything is passed over on account of it.
LAST_PATIENCE_S: Final = 6.0
READ_TIMEOUT_S: Final = 20.0
_ANSWER_TIMEOUT_S: Final = 10.0


class _Answer(Enum):
    """What the broker and the client make of a fetch at an offset."""

    READABLE = auto()  # a record comes, or the end of the partition, or another batch that cannot be read
    BAD = auto()  # the offset belongs to the batch
    SILENT = auto()  # neither record nor error
    UNKNOWN = auto()  # something else is wrong


@dataclass(slots=True)
class Batch:
    """A batch that cannot be read: from ``first`` to before ``end``, as far as the partition was not read before.

    ``messages`` are those that could be read after all; ``is_whole`` says that there are no others.
    """

    partition: Partition
    generation: int
    first: int
    end: int
    error: str
    messages: list[Message]
    is_whole: bool


@dataclass(slots=True)
class Probe:
    """Asks about one batch. ``base`` is the offset by which the client names it, None for one that it is silent about.

    ``properties`` are those of the worker's consumer.
    """

    properties: Properties
    partition: Partition
    generation: int
    first: int
    base: int | None
    error: str
    may_be_large: bool
    is_oversize: bool = False  # an answer was larger than the client takes,
    is_refused: bool = False  # and one was to the last question

    def find(self) -> Batch | None:
        """The batch, or None where nothing is wrong after all, or nothing can be said now."""
        with self._opened({"check.crcs": True}) as client:
            end = self._find_end(client)
        if end is None:
            return None
        batch = Batch(self.partition, self.generation, self.first, end, self.error, [], is_whole=False)
        if self.may_be_large:
            with self._opened({"receive.message.max.bytes": LARGEST_BATCH_BYTES}) as client:
                self._read(client, batch)
        return batch

    @contextmanager
    def _opened(self, properties: Properties) -> Iterator[Client]:
        config = client_config.reader(self.properties, str(self.properties["group.id"])) | properties
        config |= {"auto.offset.reset": "error", "log_level": 0, "error_cb": self._connection_failed}
        # An answer that is too large ends the connection. A slow new one must not look like silence.
        config |= {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 100}
        client = client_config.open_client(Client, config)
        try:
            yield client
        finally:
            client.close()

    def _connection_failed(self, error: KafkaError) -> None:
        """Learn of an answer larger than receive.message.max.bytes: it ends the connection, and no message tells."""
        if client_errors.is_of_the_batch(error):
            self.is_oversize = self.is_refused = self.may_be_large = True
            if self.base is None:
                self.error = f"{error.name()}: {error.str()}"

    def _find_end(self, client: Client) -> int | None:
        """The first offset behind the batch: farther and farther steps beyond it, and then halves of the last."""
        if self._ask(client, self.first) not in {_Answer.BAD, _Answer.SILENT}:
            return None
        client.unassign()  # where fetches end the connection, nothing else would be answered
        try:
            _, limit = client.get_watermark_offsets(self._at(self.first), timeout=_ANSWER_TIMEOUT_S)
        except KafkaException:
            return None
        bad, step = self.first, 1
        while True:
            behind = min(self.first + step, limit)
            answer = self._ask(client, behind)
            if answer is _Answer.READABLE:
                break
            if answer is _Answer.UNKNOWN or behind == limit:
                return None
            bad, step = behind, step * 2
        while behind - bad > 1:
            middle = (bad + behind) // 2
            answer = self._ask(client, middle)
            if answer is _Answer.UNKNOWN:
                return None
            bad, behind = (bad, middle) if answer is _Answer.READABLE else (middle, behind)
        # Never pass over what only came late.
        is_certain = self.base is not None or self._ask(client, bad, LAST_PATIENCE_S) in {_Answer.BAD, _Answer.SILENT}
        return behind if is_certain else None

    def _ask(self, client: Client, offset: int, patience_s: float = PATIENCE_S) -> _Answer:
        client.assign([self._at(offset)])
        self.is_refused = False
        # An error of a batch comes within the time of a fetch as well, so one that is named needs no guessing.
        silence = _Answer.SILENT if self.base is None else _Answer.UNKNOWN
        if self.is_oversize:
            patience_s = LAST_PATIENCE_S  # the client takes a second to connect again
        deadline_s = time.monotonic() + (patience_s if self.base is None else _ANSWER_TIMEOUT_S)
        while time.monotonic() < deadline_s:
            message = client.poll(0.1)
            if self.is_refused:
                return _Answer.BAD if self.base is None else _Answer.READABLE  # another batch than the one named
            if message is None:
                continue
            error = message.error()
            if error is None or error.code() == PARTITION_END:
                return _Answer.READABLE
            if client_errors.is_of_the_batch(error):
                if self.base is None:
                    self.base, self.error = message.offset(), f"{error.name()}: {error.str()}"
                return _Answer.BAD if message.offset() == self.base else _Answer.READABLE
            silence = _Answer.UNKNOWN  # a broker that is away, most likely
        return silence

    def _read(self, client: Client, batch: Batch) -> None:
        """Read what a larger limit lets read."""
        client.assign([self._at(batch.first)])
        deadline_s = time.monotonic() + READ_TIMEOUT_S
        while time.monotonic() < deadline_s:
            message = client.poll(0.1)
            if message is None:
                continue
            error = message.error()
            offset = message.offset() or 0
            if error is None and offset < batch.end:
                batch.messages.append(message)
            if error is not None and error.code() != PARTITION_END:
                return  # it cannot be read like this either
            if error is not None or offset + 1 >= batch.end:
                batch.is_whole = True
                return

    def _at(self, offset: int) -> TopicPartition:
        return TopicPartition(self.partition.topic, self.partition.number, offset)
