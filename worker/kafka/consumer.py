"""The input side: records of the partitions this worker owns, each stamped with the assignment it was read under.

librdkafka runs its rebalance callbacks inside `poll`, on the calling thread, so a revoke can drain and commit in place
and no lock of ours is needed. Everything here is called by the Kafka thread alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Protocol

import structlog
from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from worker.errors import BrokerAway
from worker.kafka import client_config
from worker.kafka.client_config import Properties
from worker.kafka.client_errors import ErrorLog
from worker.messages import Headers, Partition, Position, Record

log = structlog.get_logger("worker.kafka")


class Listener(Protocol):
    """Who is told about rebalances. Called inside `Consumer.poll` and `Consumer.close`."""

    def assigned(self, epochs: Mapping[Partition, int]) -> None:
        """These partitions are ours, under these epochs. Records of them follow."""

    def revoked(self, partitions: Sequence[Partition]) -> None:
        """These partitions go away when this returns: the last moment to commit for them."""

    def lost(self, partitions: Sequence[Partition]) -> None:
        """These partitions are already somebody else's: forget them, commit nothing."""


class Consumer:
    """A member of the group. ``paused`` is all or nothing: back-pressure concerns the model, not one partition."""

    def __init__(self, config: Properties) -> None:
        self._incremental = client_config.is_incremental(config)
        self._listener: Listener | None = None
        self._epochs: dict[Partition, int] = {}
        self._last_epoch = 0
        self._paused = False
        self._held: set[Partition] = set()
        # Where reading goes on. The client's own position is unknown after a seek, and passes over what is held back.
        self._next: dict[Partition, int] = {}
        self._from_end = config.get("auto.offset.reset") in {"latest", "end", "largest"}
        self._asked: dict[Partition, int] = {}  # the last offset of each partition whose commit was asked for
        self._uncommitted: dict[Partition, int] = {}
        self._errors = ErrorLog("consumer")
        self._partition = lru_cache(maxsize=1024)(Partition)  # few, and made for every record
        self._client = client_config.open_client(
            Client, {**client_config.with_callbacks(config, self._errors), "on_commit": self._on_commit}
        )

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        """Join the group. The first `poll` connects."""
        self._listener = listener
        self._client.subscribe(
            list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    @property
    def assignment(self) -> Mapping[Partition, int]:
        """Owned partitions and their epochs."""
        return self._epochs

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
        # consume(n, t) waits for all n or for t to pass; waiting for the first alone keeps a lone record's latency low.
        first = self._client.poll(timeout_s)
        # Stamped at once: a rebalance inside consume() would otherwise give it the epoch of a later assignment.
        records = [] if first is None else [self._record(first)]
        if first is not None and max_records > 1:
            records += [self._record(message) for message in self._client.consume(max_records - 1, 0)]
        self._errors.check()
        found = [r for r in records if r is not None and self._epochs.get(r.position.partition) == r.position.epoch]
        for record in found:
            self._next[record.position.partition] = record.position.offset + 1
        return found

    def pause(self) -> None:
        """Fetch nothing more, of partitions assigned later too, until `resume`."""
        if not self._paused:
            self._paused = True
            self._client.pause(_positions(self._epochs))

    def resume(self) -> None:
        """Fetch again."""
        if self._paused:
            self._paused = False
            self._go_on([partition for partition in self._epochs if partition not in self._held])

    def hold(self, partition: Partition, offset: int) -> None:
        """Fetch nothing more of one partition until `unhold`, and go on there at ``offset``, even if read before.

        What was fetched behind ``offset`` is dropped, so a partition that waits holds no memory.
        """
        self._held.add(partition)
        self._next[partition] = offset
        position = TopicPartition(partition.topic, partition.number, offset)
        self._client.pause([position])
        self._client.seek(position)

    def unhold(self, partition: Partition) -> None:
        """Fetch of the partition again (as soon as nothing is paused)."""
        if partition in self._held:
            self._held.remove(partition)
            if not self._paused:
                self._go_on([partition])

    def _go_on(self, partitions: Sequence[Partition]) -> None:
        """Resume, and at once: librdkafka's broker thread sleeps on for up to a second, and a seek is what wakes it."""
        self._client.resume(_positions(partitions))
        for partition in partitions:
            if (offset := self._next.get(partition)) is not None:  # else nothing was read of it yet
                with suppress(KafkaException):  # which costs the second, and nothing else
                    self._client.seek(TopicPartition(partition.topic, partition.number, offset))

    def committed(self, partitions: Sequence[Partition], timeout_s: float) -> dict[Partition, tuple[int, str]]:
        """The group's offset and its metadata for each partition; where it has none, the offset reading begins at.

        Raises:
            BrokerAway: no answer in time.
        """
        try:
            found = self._client.committed(_positions(partitions), timeout=timeout_s)
            return {
                Partition(p.topic, p.partition): (p.offset if p.offset >= 0 else self._beginning(p), p.metadata or "")
                for p in found
                if p.error is None
            }
        except KafkaException as error:
            raise BrokerAway(
                f"committed offsets unknown: {error.args[0].str()}; a transaction that is open on them holds them "
                "back, and one that hangs for longer than transaction.timeout.ms is ended with kafka-transactions.sh"
            ) from error

    def _beginning(self, partition: TopicPartition) -> int:
        low, high = self._client.get_watermark_offsets(partition, timeout=5.0)
        return high if self._from_end else low

    def commit(
        self,
        offsets: Mapping[Partition, int],
        *,
        wait: bool,
        metadata: Mapping[Partition, str] | None = None,
    ) -> None:
        """Commit the offset behind the last resolved record of each partition.

        Without ``wait`` the answer arrives in a later `poll`, and a commit that failed is sent again with the next one
        (without its metadata: what comes later knows better).

        Raises:
            BrokerAway: the commit failed. With ``wait`` that is the end of it: what comes later may say more, and
                sending these offsets again could take it back.
        """
        wanted = {**self._uncommitted, **offsets}
        wanted = {partition: offset for partition, offset in wanted.items() if partition in self._epochs}
        if not wanted:
            return
        if not wait:
            self._asked |= wanted
        beside = metadata or {}
        positions = [TopicPartition(p.topic, p.number, offset, beside.get(p, "")) for p, offset in wanted.items()]
        try:
            if wait:
                self._client.commit(offsets=positions, asynchronous=False)
            else:
                self._client.commit(offsets=positions, asynchronous=True)
        except KafkaException as error:
            if not wait:
                self._uncommitted = wanted
            raise BrokerAway(f"offsets not committed: {error.args[0].str()}") from error
        self._uncommitted = {}

    def prove_membership(self, timeout_s: float) -> None:
        """Commit what is committed: the group takes that from its members only.

        Raises:
            BrokerAway: it was not taken. If another process took our place, the next `poll` says so.
        """
        known = self.committed(list(self._epochs), timeout_s)
        self.commit(
            {partition: offset for partition, (offset, _) in known.items()},
            wait=True,
            metadata={partition: metadata for partition, (_, metadata) in known.items()},
        )

    def recommit(self) -> None:
        """Send again what an asynchronous commit failed to commit, if anything."""
        if self._uncommitted:
            try:
                self.commit({}, wait=False)
            except BrokerAway as error:
                log.warning("commit_failed", error=str(error), partitions=len(self._uncommitted))

    def group_metadata(self) -> Any:
        """What proves membership to the transaction coordinator (KIP-447)."""
        return self._client.consumer_group_metadata()

    def owns(self, epochs: Mapping[Partition, int]) -> bool:
        """Whether all these partitions are assigned, and under these epochs, still."""
        return all(self._epochs.get(partition) == epoch for partition, epoch in epochs.items())

    def lag(self) -> dict[Partition, int]:
        """Records between our read position and the end of each partition, from the watermarks already fetched."""
        found: dict[Partition, int] = {}
        for partition, offset in self._next.items():
            if (end := self.end(partition)) is not None:
                found[partition] = max(0, end - offset)
        return found

    def end(self, partition: Partition) -> int | None:
        """The offset behind the last record of a partition, as the last fetch told it; None before the first."""
        _, high = self._client.get_watermark_offsets(TopicPartition(partition.topic, partition.number), cached=True)
        return int(high) if high >= 0 else None

    def close(self) -> None:
        """Leave the group. Revokes what is assigned first, so the listener sees it."""
        self._client.close()

    def _record(self, message: Message) -> Record | None:
        error = message.error()
        if error is not None:
            self._errors(error)
            return None
        topic, number, offset = message.topic(), message.partition(), message.offset()
        partition = self._partition(str(topic), int(number if number is not None else -1))
        epoch = self._epochs.get(partition)
        if epoch is None:
            # librdkafka may hand over records of a partition revoked a moment ago; its new owner has them.
            return None
        _, timestamp_ms = message.timestamp()
        return Record(
            position=Position(partition, int(offset if offset is not None else -1), epoch),
            key=message.key(),
            value=message.value(),
            headers=_headers(message.headers()),
            timestamp_ms=timestamp_ms,
        )

    def _on_assign(self, client: Client, partitions: list[TopicPartition]) -> None:
        if self._incremental:
            client.incremental_assign(partitions)
        else:
            client.assign(partitions)
        # A partition that arrives under pressure is paused like the others; and one that was paused when we last had it
        # still is, unless told otherwise: librdkafka keeps the application's pause from one assignment to the next.
        (client.pause if self._paused else client.resume)(partitions)
        fresh: dict[Partition, int] = {}
        for assigned in partitions:
            self._last_epoch += 1
            fresh[Partition(assigned.topic, assigned.partition)] = self._last_epoch
        self._epochs |= fresh
        if self._listener is not None:
            self._listener.assigned(fresh)

    def _on_revoke(self, client: Client, partitions: list[TopicPartition]) -> None:
        # The listener runs before unassign: until then these partitions can be committed.
        gone = [Partition(p.topic, p.partition) for p in partitions]
        if self._listener is not None:
            self._listener.revoked(gone)
        self._unassign(client, partitions)

    def _on_lost(self, client: Client, partitions: list[TopicPartition]) -> None:
        if self._listener is not None:
            self._listener.lost([Partition(p.topic, p.partition) for p in partitions])
        self._unassign(client, partitions)

    def _unassign(self, client: Client, partitions: list[TopicPartition]) -> None:
        for gone in partitions:
            self._epochs.pop(Partition(gone.topic, gone.partition), None)
            self._asked.pop(Partition(gone.topic, gone.partition), None)
            self._uncommitted.pop(Partition(gone.topic, gone.partition), None)
            self._held.discard(Partition(gone.topic, gone.partition))
            self._next.pop(Partition(gone.topic, gone.partition), None)
        if self._incremental:
            client.incremental_unassign(partitions)
        else:
            client.unassign()

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        failed = {Partition(p.topic, p.partition) for p in partitions if error is not None or p.error is not None}
        if failed:
            log.warning("commit_failed", error=str(error), partitions=len(failed))
        # Not the offset that failed: one that was asked for after it may be committed by now.
        self._uncommitted |= {partition: self._asked[partition] for partition in failed if partition in self._asked}


def _headers(raw: Any) -> Headers:
    if not raw:  # most records have none
        return ()
    return tuple([(name, value.encode() if isinstance(value, str) else value) for name, value in raw])


def _positions(partitions: Iterable[Partition]) -> list[TopicPartition]:
    return [TopicPartition(p.topic, p.number) for p in partitions]
