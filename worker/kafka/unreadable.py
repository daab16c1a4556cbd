"""What the client cannot read: record batches that it would ask for again and again, and whole partitions.

A batch that is damaged, packed in an unknown way or larger than the client unpacks is an error that comes back at the
same offset; one whose records run over its end is nothing at all, neither record nor error. Either way the partition
would stand still for ever. What such a batch holds is read with a larger limit where that helps. What cannot be read is
passed over and never silently: a record without key and value stands for it, which the pipeline dead-letters.
"""

from __future__ import annotations

import queue
from contextlib import suppress
from typing import Any, Final

import structlog
from confluent_kafka import Consumer as Client
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from worker.kafka import client_errors
from worker.kafka.assignment import Assignment, FetchState
from worker.kafka.batch_probe import Batch, Probe
from worker.kafka.client_config import Properties
from worker.kafka.ends import Ends
from worker.kafka.pending_offsets import Spawn, on_thread
from worker.kafka.records import NO_TIMESTAMP, record_of
from worker.kafka.skips import Skips
from worker.messages import Origin, Partition, Position, Record

log = structlog.get_logger("worker.kafka")

# librdkafka asks again every half second. What passes by itself (a broker that is just being replaced) has passed then.
REPEATS: Final = 3
# A partition that is not at its end, and may be read, gives something within a fetch. Brokers that are busy take
# seconds, a leader's election some more.
SILENCE_S: Final = 20.0


class UnreadableBatches:
    """Notices batches that cannot be read, has them looked at, and goes on behind them. Kafka thread only.

    Args:
        client: The member of the group.
        assignment: What is assigned to it.
        ends: Where that ends.
        skips: Hears what is passed over.
        properties: Of the client.
        spawn: Runs what takes seconds elsewhere.
    """

    def __init__(
        self,
        client: Client,
        assignment: Assignment,
        ends: Ends,
        skips: Skips,
        properties: Properties,
        spawn: Spawn = on_thread,
    ) -> None:
        self._client = client
        self._assignment = assignment
        self._ends = ends
        self._skips = skips
        self._properties = properties
        self._spawn = spawn
        self._found: queue.SimpleQueue[tuple[Probe, Batch | None]] = queue.SimpleQueue()

    def failed(self, assigned: FetchState, error: KafkaError, base: int | None) -> None:
        """A fetch failed. If a batch could not be read, ``base`` is the offset by which the client names it."""
        mend = client_errors.mend_of_partition(error)
        if mend is not None and not assigned.stalled:
            name = _name(assigned.partition)
            assigned.stalled = f"{name} stands still: {error.str()}; {mend}"
            log.error("partition_stalled", partition=name, code=error.name(), error=error.str(), mend=mend)
        if assigned.held or base is None or not client_errors.is_of_the_batch(error):
            return
        end = self._ends.end(assigned.partition)
        if end is not None and base >= end:
            return  # librdkafka took something within a batch for the head of another
        if assigned.bad_offset != base:
            assigned.bad_offset, assigned.bad_times = base, 0
        assigned.bad_times += 1
        # What is in front of the batch was handed out before the error.
        assigned.next_offset = base if assigned.next_offset is None else max(assigned.next_offset, base)
        assigned.bad_error = f"{error.name()}: {error.str()}"
        if assigned.bad_times == REPEATS:
            self._look_at(assigned, base, may_be_large=client_errors.may_be_large(error))

    @property
    def stalled(self) -> dict[Partition, str]:
        """A sentence for each assigned partition that cannot be read until somebody mends something."""
        return {
            assigned.partition: assigned.stalled for assigned in self._assignment.known.values() if assigned.stalled
        }

    def watch(self, now_s: float, *, is_paused: bool) -> None:
        """Notice partitions that give neither records nor errors; call it every few seconds."""
        for assigned in self._assignment.known.values():
            at, end = assigned.next_offset, self._ends.end(assigned.partition)
            if end is None:  # not even the first fetch was answered
                end = assigned.asked_end
            if assigned.stalled and at is not None and not assigned.held:
                with suppress(KafkaException):  # the next time
                    # Somebody may have mended it. Where nothing new comes, only a fetch that is begun anew tells.
                    self._client.seek(TopicPartition(*assigned.partition, at))
            may_read = not (is_paused or assigned.held) and at is not None and end is not None and at < end
            is_quiet = may_read and self._ends.reached(assigned.partition) is None and assigned.bad_offset is None
            if not is_quiet or assigned.quiet_offset != at:
                assigned.quiet_offset, assigned.quiet_since_s = (at if is_quiet else None), now_s
            elif now_s >= assigned.quiet_since_s + SILENCE_S:
                assigned.quiet_offset = None
                log.warning(
                    "partition_silent", partition=_name(assigned.partition), offset=at, end=end, seconds=SILENCE_S
                )
                assigned.bad_error = f"neither a record nor an error came in {SILENCE_S:g} s"
                self._look_at(assigned, None, may_be_large=False)

    def is_passing(self, assigned: FetchState, offset: int) -> bool:
        """Whether what comes at an offset is left, because it is read once more behind a batch that was named before.

        With a batch of an unknown format the client goes on behind it by itself, and tells nobody.
        """
        first, base = assigned.next_offset, assigned.bad_offset
        if assigned.is_passing or first is None or base is None:
            return assigned.is_passing
        if max(first, base) >= offset:
            assigned.bad_offset = None
            return False
        batch = Batch(assigned.partition, assigned.generation, first, offset, assigned.bad_error, [], is_whole=False)
        assigned.is_passing = True
        self._found.put((self._probe(assigned, base, may_be_large=False), batch))
        return True

    def take(self) -> list[Record]:
        """What was found: records that could be read after all, and one that stands for those that could not."""
        records: list[Record] = []
        while not self._found.empty():
            probe, batch = self._found.get()
            assigned = self._assignment.known.get(probe.partition)
            if assigned is None or assigned.generation != probe.generation:
                continue
            assigned.bad_offset, assigned.bad_times, assigned.is_passing = None, 0, False
            if batch is None or assigned.held or assigned.next_offset != batch.first:
                continue  # if it is met again, it is looked at again
            records += self._pass(assigned, batch)
        return records

    def _pass(self, assigned: FetchState, batch: Batch) -> list[Record]:
        try:
            self._client.seek(TopicPartition(batch.partition.topic, batch.partition.number, batch.end))
        except KafkaException as error:
            log.warning("not_passed_yet", partition=_name(batch.partition), error=str(error))
            return []
        assigned.next_offset = batch.end
        records = [record_of(message, batch.partition, batch.generation) for message in batch.messages]
        first = records[-1].position.offset + 1 if records else batch.first
        if not batch.is_whole and first < batch.end:
            records.append(_stand_in(batch, first))
            self._skips.add(batch.partition, first, batch.end, "unreadable")
        return records

    def _look_at(self, assigned: FetchState, base: int | None, *, may_be_large: bool) -> None:
        probe = self._probe(assigned, base, may_be_large=may_be_large)
        log.warning("batch_unreadable", partition=_name(probe.partition), offset=probe.first, error=probe.error)

        def look() -> None:
            batch = None
            try:
                batch = probe.find()
            except Exception:  # whatever it is, the partition is no worse off than before
                log.exception("batch_not_examined", partition=_name(probe.partition))
            self._found.put((probe, batch))

        self._spawn(look)

    def _probe(self, assigned: FetchState, base: int | None, *, may_be_large: bool) -> Probe:
        first: Any = assigned.next_offset  # known by now
        return Probe(
            self._properties,
            assigned.partition,
            assigned.generation,
            first,
            base,
            assigned.bad_error,
            may_be_large=may_be_large,
        )


def _stand_in(batch: Batch, first: int) -> Record:
    """The record for all from ``first`` to the batch's end. It has the place of the last: behind that reading goes on.

    Where it comes from is the first.
    """
    return Record(
        Position(batch.partition, batch.end - 1, batch.generation),
        None,
        None,
        (),
        NO_TIMESTAMP,
        origin=Origin(batch.partition, first),
        unreadable=f"offsets {first} to {batch.end - 1} cannot be read: {batch.error}",
    )


def _name(partition: Partition) -> str:
    return f"{partition.topic}-{partition.number}"
