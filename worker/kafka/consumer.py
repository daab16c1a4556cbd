"""The input side: records of the partitions this worker owns, each stamped with the assignment it was read under.

librdkafka runs its rebalance callbacks inside `poll`, on the calling thread, so a revoke can drain and commit in place
and no lock of ours is needed. Everything here is called by the Kafka thread alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka import Consumer as Client

from worker.kafka import client_config
from worker.kafka.assignment import Assignment, FetchState, partitions_of, positions_of
from worker.kafka.client_config import Properties
from worker.kafka.client_errors import PARTITION_END, ErrorLog
from worker.kafka.ends import Ends
from worker.kafka.offset_commits import OffsetCommits
from worker.kafka.records import record_of
from worker.kafka.rewinds import Rewinds
from worker.kafka.skips import Skips
from worker.kafka.subscription import Subscription
from worker.kafka.unreadable import UnreadableBatches
from worker.messages import Partition, Record

# Of a tenth of a second each, until the listener is called, which has a deadline of its own.
LEAVE_POLLS: Final = 50


class Listener(Protocol):
    """Who is told about rebalances. Called inside `Consumer.poll` and `Consumer.close`."""

    def assigned(self, generations: Mapping[Partition, int]) -> Collection[Partition]:
        """These partitions are ours, under these generations. Records of them follow.

        Returns those that are to be read from their beginning, whatever offset the group has committed.
        """

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """These partitions go away when this returns: the last moment to commit for them."""

    def lost(self, partitions: Sequence[Partition]) -> None:
        """These partitions are already somebody else's: forget them, commit nothing."""


class Consumer:
    """A member of the group. ``paused`` is all or nothing: back-pressure concerns the model, not one partition.

    ``subscription`` are its topics, ``commits`` its committed offsets, ``ends`` where its partitions end,
    ``unreadable`` what of them cannot be read, ``skips`` what was passed over, ``rewinds`` what is read once more.
    """

    def __init__(self, config: Properties) -> None:
        self._incremental = client_config.is_incremental(config)
        self._listener: Listener | None = None
        self._assignment = Assignment()
        self._paused = False
        self._is_closed = False
        self._errors = ErrorLog("consumer")
        config = client_config.with_callbacks(config, self._errors)
        self._client = client_config.open_client(Client, config | {"on_commit": self._on_commit})
        from_end = config.get("auto.offset.reset") in {"latest", "end", "largest"}
        self.subscription = Subscription(self._client, is_all_or_nothing=config.get("group.protocol") == "consumer")
        self.commits = OffsetCommits(self._client, self._assignment, from_end=from_end)
        self.ends = Ends(self._client, self._assignment)
        self.skips = Skips(self._client, from_end=from_end)
        self.rewinds = Rewinds(self._client, self._assignment, self.commits, self.skips)
        self.unreadable = UnreadableBatches(self._client, self._assignment, self.ends, self.skips, config)

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        """Join the group. The first `poll` connects."""
        self._listener = listener
        self.subscription.begin(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    @property
    def assignment(self) -> Assignment:
        """Owned partitions and their generations: a live view."""
        return self._assignment

    @property
    def paused(self) -> bool:
        """True while no records are fetched."""
        return self._paused

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Wait up to ``timeout_s`` for a record, then take what else is there, up to ``max_records``.

        Callbacks run in here. Must be called at least every max.poll.interval.ms, paused or not.

        Raises:
            FatalError: librdkafka says that this client cannot go on (`Fenced`: another took its place in the group).
        """
        passed = self.unreadable.take()
        if passed:
            return passed
        # consume(n, t) waits for all n or for t to pass; waiting for the first alone keeps a lone record's latency low.
        message = self._client.poll(timeout_s)
        # Stamped at once: a rebalance inside consume() would otherwise give it the generation of a later assignment.
        first = None if message is None else self._record(message)
        more: list[Record | None] = []
        if message is not None and max_records > 1:
            more = [self._record(message) for message in self._client.consume(max_records - 1, 0)]
        self._errors.check()
        if first is not None and self._assignment.get(first.position.partition) != first.position.generation:
            first = None  # its partition left inside consume(); what else came was stamped after that
        return [record for record in (first, *more) if record is not None]

    def pause(self) -> None:
        """Fetch nothing more, of partitions assigned later too, until `resume`."""
        if not self._paused:
            self._paused = True
            self._client.pause(positions_of(self._assignment))

    def resume(self) -> None:
        """Fetch again."""
        if self._paused:
            self._paused = False
            self._go_on([assigned for assigned in self._assignment.known.values() if not assigned.held])

    def hold(self, partition: Partition, offset: int) -> None:
        """Fetch nothing more of one partition until `unhold`, and go on there at ``offset``, even if read before.

        What was fetched behind ``offset`` is dropped, so a partition that waits holds no memory.
        """
        assigned = self._assignment.known[partition]
        assigned.held = True
        assigned.next_offset = offset
        position = TopicPartition(partition.topic, partition.number, offset)
        self._client.pause([position])
        self._client.seek(position)

    def unhold(self, partition: Partition) -> None:
        """Fetch of the partition again (as soon as nothing is paused)."""
        assigned = self._assignment.known.get(partition)
        if assigned is not None and assigned.held:
            assigned.held = False
            if not self._paused:
                self._go_on([assigned])

    def _go_on(self, partitions: Iterable[FetchState]) -> None:
        """Resume, and at once: librdkafka's broker thread sleeps on for up to a second, and a seek is what wakes it."""
        self._client.resume(positions_of(assigned.partition for assigned in partitions))
        for assigned in partitions:
            if assigned.next_offset is not None:  # else nothing was read of it yet
                topic, number = assigned.partition
                with suppress(KafkaException):  # which costs the second, and nothing else
                    self._client.seek(TopicPartition(topic, number, assigned.next_offset))

    def group_metadata(self) -> Any:
        """What proves membership to the transaction coordinator (KIP-447)."""
        return self._client.consumer_group_metadata()

    def owns(self, generations: Mapping[Partition, int]) -> bool:
        """Whether all these partitions are assigned, and under these generations, still."""
        return all(self._assignment.get(partition) == generation for partition, generation in generations.items())

    def close(self) -> None:
        """Leave the group. Revokes what is assigned first, so the listener sees it. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        # Inside the callbacks of the client's own close, committed offsets are never answered: they are asked for in
        # vain until time runs out. Inside a poll they are.
        with suppress(KafkaException):
            self.pause()  # drops what is fetched ahead, which would be polled first
            self._client.unsubscribe()
            for _ in range(LEAVE_POLLS):
                if not self._assignment:
                    break
                self._client.poll(0.1)
        self._client.close()

    def _record(self, message: Message) -> Record | None:
        error = message.error()
        if error is not None:
            if error.code() == PARTITION_END:
                self._ended(message)
            else:
                self._errors(error)
                assigned = self._assignment.known.get((message.topic(), message.partition()))
                if assigned is not None:
                    self.unreadable.failed(assigned, error, message.offset())
            return None
        assigned = self._assignment.known.get((message.topic(), message.partition()))
        if assigned is None:
            # librdkafka may hand over records of a partition revoked a moment ago; its new owner has them.
            return None
        if assigned.bad_offset is not None and self.unreadable.is_passing(assigned, message.offset() or 0):
            return None
        if self.rewinds.waiting and assigned.partition in self.rewinds.waiting:
            return None
        record = record_of(message, assigned.partition, assigned.generation)
        if record.position.offset != assigned.next_offset and self.rewinds.jumped(assigned, record.position.offset):
            return None
        assigned.next_offset = record.position.offset + 1
        assigned.stalled = ""
        return record

    def _ended(self, message: Message) -> None:
        assigned = self._assignment.known.get((message.topic(), message.partition()))
        if assigned is None or assigned.held or assigned.partition in self.rewinds.waiting:
            return  # what is held is read again from where it was held
        if assigned.bad_offset is None or not self.unreadable.is_passing(assigned, message.offset() or 0):
            if self.rewinds.jumped(assigned, message.offset() or 0):
                return
            assigned.stalled = ""
            assigned.next_offset = assigned.end_offset = message.offset()

    def _on_assign(self, client: Client, positions: list[TopicPartition]) -> None:
        fresh = self._assignment.add(partitions_of(positions))
        # Asked first: librdkafka takes another place to begin at only with the assignment, and fetches at once.
        anew = set(self._listener.assigned(fresh)) if self._listener is not None else set()
        for position in positions:
            if (position.topic, position.partition) in anew:
                position.offset = OFFSET_BEGINNING
        if self._incremental:
            client.incremental_assign(positions)
        else:
            client.assign(positions)
        # A partition that arrives under pressure is paused like the others; and one that was paused when we last had it
        # still is, unless told otherwise: librdkafka keeps the application's pause from one assignment to the next.
        (client.pause if self._paused else client.resume)(positions)
        self.rewinds.commit(dict.fromkeys(anew, 0))

    def _on_revoke(self, client: Client, positions: list[TopicPartition]) -> None:
        # The listener runs before unassign: until then these partitions can be committed.
        if self._listener is not None:
            self._listener.revoked(partitions_of(positions))
        self._unassign(client, positions)

    def _on_lost(self, client: Client, positions: list[TopicPartition]) -> None:
        if self._listener is not None:
            self._listener.lost(partitions_of(positions))
        self._unassign(client, positions)

    def _on_commit(self, error: KafkaError | None, positions: list[TopicPartition]) -> None:
        self.commits.answered(error, positions)

    def _unassign(self, client: Client, positions: list[TopicPartition]) -> None:
        self.rewinds.forget(partitions_of(positions))
        self._assignment.forget(partitions_of(positions))
        if self._incremental:
            client.incremental_unassign(positions)
        else:
            client.unassign()
