"""Reading a topic outside any group: partitions are assigned by hand, and nothing is committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaException, TopicPartition

from worker.errors import BrokerAway, FatalError
from worker.kafka import topics
from worker.kafka.client_errors import PARTITION_END, ErrorReports, is_of_the_group, mend_of_access
from worker.kafka.records import record_of
from worker.messages import Partition, Record

_POLL_S: Final = 0.2


class Extent(NamedTuple):
    """The offsets a partition holds: ``begin`` included, ``end`` not."""

    begin: int
    end: int


class Reader:
    """Reads partitions of one topic, named by their numbers, from given offsets: to an end, or on.

    A broker that goes away is waited for. Every call that asks the broker something raises `BrokerAway` if it does not
    answer in time.

    Args:
        client: A connected consumer, configured by `worker.kafka.client_config.reader`.
        topic: The topic.
        errors: Is told what is polled besides records.
        has_group: It asks for committed offsets. Else it needs no access to the group that its configuration names.
    """

    def __init__(self, client: Client, topic: str, errors: ErrorReports, *, has_group: bool = True) -> None:
        self.topic = topic
        self.client = client
        self._errors = errors
        self._has_group = has_group
        self._assigned: dict[int, Partition] = {}
        # The offset behind the end of each partition, as it was reported when reading came there last.
        self._ends: dict[int, int] = {}

    def partitions(self, timeout_s: float) -> list[int]:
        """The topic's partitions. Raises TopicMissing."""
        with self._answers():
            return topics.partition_numbers(self.client, self.topic, timeout_s)

    def extents(self, numbers: Sequence[int], timeout_s: float) -> dict[int, Extent]:
        """What each partition holds now, up to the first transaction that is still open.

        Of a read_committed consumer the end is the last stable offset, so it is never waited for.
        """
        with self._answers():
            return {n: Extent(*self.client.get_watermark_offsets(self._at(n), timeout=timeout_s)) for n in numbers}

    def committed(self, numbers: Sequence[int], timeout_s: float) -> dict[int, tuple[int, str]]:
        """Committed offsets and metadata of the group that the client's configuration names, where it has any.

        A transaction that is about to move them is waited for.

        Raises:
            FatalError: the group is not this user's.
        """
        with self._answers():
            try:
                found = self.client.committed([self._at(number) for number in numbers], timeout=timeout_s)
            except KafkaException:
                self._refuse_group()
                raise
        return {at.partition: (at.offset, at.metadata or "") for at in found if at.offset >= 0}

    def not_before(self, since_ms: int, extents: Mapping[int, Extent], timeout_s: float) -> dict[int, int]:
        """Offsets before which no record has a timestamp of ``since_ms`` or later, by the broker's time index.

        The index may miss records of exactly the time asked for (their batch's last is noted), so a millisecond less
        is asked for. A record that is too early may thus follow.
        """
        asked = [self._at(number, max(0, since_ms - 1)) for number in extents]
        with self._answers():
            found = self.client.offsets_for_times(asked, timeout=timeout_s)
        # Negative: there is none.
        return {p.partition: p.offset if p.offset >= 0 else extents[p.partition].end for p in found}

    def assign(self, starts: Mapping[int, int]) -> None:
        """Read these partitions from these offsets on (`confluent_kafka.OFFSET_BEGINNING` is one), and no others."""
        self._ends.clear()
        self._assigned = {number: Partition(self.topic, number) for number in starts}
        self.client.assign([self._at(number, start) for number, start in starts.items()])

    def assign_also(self, starts: Mapping[int, int]) -> None:
        """Read these partitions too."""
        self._assigned |= {number: Partition(self.topic, number) for number in starts}
        self.client.incremental_assign([self._at(number, start) for number, start in starts.items()])

    @property
    def is_caught_up(self) -> bool:
        """True once every assigned partition was read to an end that it had at the time."""
        return self._ends.keys() >= self._assigned.keys()

    def poll(self, timeout_s: float) -> Record | None:
        """The next record, if one comes in time.

        Raises:
            FatalError: the client cannot go on.
        """
        message = self.client.poll(timeout_s)
        self._errors.check()
        if message is None:
            return None
        number: Any = message.partition()  # the client's types allow for None, which only errors of the client have
        error = message.error()
        if error is None:
            return record_of(message, self._assigned[number], generation=0)
        if error.code() == PARTITION_END:
            self._ends[number] = message.offset() or 0
        elif self._has_group or not is_of_the_group(error):
            self._errors(error)
            self._errors.check()
        return None

    def read(
        self, starts: Mapping[int, int], extents: Mapping[int, Extent], stop_requested: Callable[[], bool]
    ) -> Iterator[Record]:
        """The records of each partition from its start to the end of its extent, as they come.

        Raises:
            FatalError: the client cannot go on.
        """
        unread = {number for number, extent in extents.items() if starts[number] < extent.end}
        self.assign({number: starts[number] for number in sorted(unread)})
        while unread and not stop_requested():
            record = self.poll(_POLL_S)
            if record is None:
                # Behind the last record may lie markers of transactions, which no client sees: there the end of the
                # partition is reported by itself.
                unread -= {number for number in unread if self._ends.get(number, -1) >= extents[number].end}
                continue
            number, offset = record.position.partition.number, record.position.offset
            if number in unread and offset < extents[number].end:
                yield record
            if offset + 1 >= extents[number].end:
                unread.discard(number)

    def group_metadata(self) -> Any:
        """For a transaction that moves the committed offsets of the group that the configuration names."""
        return self.client.consumer_group_metadata()

    def owns(self, _generations: Mapping[Partition, int]) -> bool:
        """True: partitions are read without a group, so none ever leaves."""
        return True

    def close(self) -> None:
        """Disconnect."""
        self.client.close()

    def _refuse_group(self) -> None:
        """Raise FatalError if that is why nobody answers: librdkafka looks for the group's coordinator in vain."""
        while not self._assigned and (message := self.client.poll(0)) is not None:
            error = message.error()
            if error is not None and is_of_the_group(error):
                raise FatalError(f"{error.str()}{mend_of_access(error)}")

    def _at(self, number: int, offset: int = 0) -> TopicPartition:
        return TopicPartition(self.topic, number, offset)

    @contextmanager
    def _answers(self) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise BrokerAway(
                f"{self.topic}: {error.args[0].str()}; the brokers that lead its partitions have to be there, and the "
                "coordinator of the group"
            ) from None
