"""The dead-letter topic as `list`, `show` and `replay` read it: as a stream, never whole, up to where it ends now."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from confluent_kafka.admin import AdminClient

from worker.commands import connection
from worker.commands.connection import Reports, say
from worker.kafka import client_config
from worker.kafka.reader import Extent, Reader
from worker.kafka.topic_ids import TopicIds
from worker.rules.offset_metadata import TopicId, topic_id_of
from worker.rules.replay import DeadLetterRecord, Selection
from worker.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka.admin._metadata import ClusterMetadata  # where the class is typed

_TIMEOUT_S: Final = 10.0


class DeadLetterTopic:
    """Reads committed records only. All of its questions to the broker raise BrokerAway if no answer comes in time.

    ``group`` is joined by nobody; its committed offsets may be read, and moved by a transaction (see ``reader``).
    """

    def __init__(self, settings: Settings, client: str, group: str | None = None) -> None:
        self._kafka = settings.kafka
        self._reports = Reports(say)
        self.name = settings.topics.dead_letter
        self.reader: Reader = connection.open_reader(
            settings.kafka, self.name, self._reports, client=client, group=group
        )

    def cluster(self) -> ClusterMetadata:
        """What the cluster says of itself."""
        return connection.metadata(self.reader.client, self._kafka, self._reports, _TIMEOUT_S)

    def require(self, topic: str) -> list[int]:
        """The partitions of a topic. Raises TopicMissing."""
        return connection.partitions(self.reader.client, self._kafka, self._reports, topic, _TIMEOUT_S)

    def extents(self) -> dict[int, Extent]:
        """What each partition holds now, up to the first transaction that is still open. Raises TopicMissing."""
        return self.reader.extents(self.require(self.name), _TIMEOUT_S)

    def progress(self, extents: Mapping[int, Extent], current: TopicId | None) -> dict[int, int]:
        """The group's committed offsets in these partitions, where it has any.

        ``current`` is the topic that is there now. Offsets of one that was made again since are none, and it is said.
        An offset behind the end is of such a topic too.
        """
        found = self.reader.committed(list(extents), _TIMEOUT_S)
        gone = {
            number
            for number, (offset, metadata) in found.items()
            if offset > extents[number].end or (current is not None and current.is_another_than(topic_id_of(metadata)))
        }
        if gone:
            say(f"topic {self.name!r} was made again since the last run; it is read from its beginning")
        return {number: offset for number, (offset, _) in found.items() if number not in gone}

    def topic_id(self) -> TopicId | None:
        """The id of the topic that is there now, None if nobody tells."""
        shared = client_config.common(self._kafka, "replay")
        admin = connection.connect(AdminClient, shared, self._reports)
        state = TopicIds(admin, [self.name]).fetch([self.name], _TIMEOUT_S).get(self.name)
        return None if state is None else state.topic_id

    def first_offsets(self, extents: Mapping[int, Extent], selection: Selection) -> dict[int, int]:
        """Where each partition's first dead letter of the selection may lie. What comes too early, it passes over."""
        starts = {number: extent.begin for number, extent in extents.items()}
        if selection.since_ms is not None:
            later = self.reader.not_before(selection.since_ms, extents, _TIMEOUT_S)
            starts = {number: max(start, later[number]) for number, start in starts.items()}
        return starts

    def read(
        self, starts: Mapping[int, int], extents: Mapping[int, Extent], stop_requested: Callable[[], bool]
    ) -> Iterator[DeadLetterRecord]:
        """The dead letters of each partition from its start to the end of its extent. Raises FatalError."""
        return map(DeadLetterRecord, self.reader.read(starts, extents, stop_requested))


@contextmanager
def opened(settings: Settings, client: str, group: str | None = None) -> Iterator[DeadLetterTopic]:
    """The dead-letter topic for as long as the block lasts."""
    topic = DeadLetterTopic(settings, client, group)
    try:
        yield topic
    finally:
        topic.reader.close()
