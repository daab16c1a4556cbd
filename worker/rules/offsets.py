"""Which offsets may be committed, and in which order results leave.

Both questions have one answer. Per partition the ledger keeps the records in the order they were read; a record is
*resolved* once its output (a result, a retry, a dead letter, or nothing for a tombstone) is decided, and *released*
only when every record before it is resolved too. Outputs are produced in release order and the offset behind the
last of them is committed with them, so

- an unresolved offset is never committed (invariant 1), and
- results of a partition leave in the order their requests came (invariant 4).

Releasing has two phases: `release` shows what may go and changes nothing; `acknowledge` removes it, after the broker
has it. A publish that fails in between therefore loses nothing: the next `release` shows the same again, and more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from worker.messages import CommitBatch, Output, Partition, Position, Record


@dataclass(slots=True)
class Entry:
    """A record that was read and is not acknowledged yet."""

    record: Record
    size_bytes: int
    resolved: bool = False
    output: Output | None = None


@dataclass(slots=True)
class Account:
    """One partition under one assignment. ``entries`` is in read order; ``by_offset`` finds one.

    While ``is_withheld`` nothing of it is released, resolved or not.
    """

    partition: Partition
    generation: int
    entries: deque[Entry] = field(default_factory=deque)
    by_offset: dict[int, Entry] = field(default_factory=dict)
    is_withheld: bool = False


AnAccount = TypeVar("AnAccount", bound=Account)


class Ledger(Generic[AnAccount]):
    """Accounts of all assigned partitions.

    A position that belongs to no account, or to a former generation of it, is *stale*: a late result for a partition
    that was revoked meanwhile. Stale positions are refused by `resolve` and have no other effect.
    """

    def __init__(self) -> None:
        self._accounts: dict[Partition, AnAccount] = {}
        self._in_flight = 0
        self._held_bytes = 0

    @property
    def in_flight(self) -> int:
        """Records read and not yet acknowledged."""
        return self._in_flight

    @property
    def held_bytes(self) -> int:
        """Bytes of keys, values and headers of the records in flight."""
        return self._held_bytes

    @property
    def accounts(self) -> Mapping[Partition, AnAccount]:
        """All accounts, by partition."""
        return self._accounts

    def assign(self, account: AnAccount) -> None:
        """Open an account. What an earlier assignment of the partition left behind is forgotten."""
        self.forget(account.partition)
        self._accounts[account.partition] = account

    def forget(self, partition: Partition) -> None:
        """Close an account; its unreleased records are the next owner's. Unknown partitions are fine."""
        account = self._accounts.pop(partition, None)
        if account is not None:
            self._in_flight -= len(account.entries)
            self._held_bytes -= sum(entry.size_bytes for entry in account.entries)

    def is_live(self, position: Position) -> bool:
        """True while the position's partition is assigned under the generation it was read in."""
        account = self._accounts.get(position.partition)
        return account is not None and account.generation == position.generation

    def track(self, record: Record) -> None:
        """Enter a record that was just read.

        Raises:
            ValueError: the position is stale, or not behind the last record tracked: the reader broke its contract.
        """
        position = record.position
        account = self._accounts.get(position.partition)
        if account is None or account.generation != position.generation:
            raise ValueError(f"{position} is not assigned")
        if account.entries and account.entries[-1].record.position.offset >= position.offset:
            raise ValueError(f"{position} was read out of order")
        entry = Entry(record, _size_bytes(record))
        account.entries.append(entry)
        account.by_offset[position.offset] = entry
        self._in_flight += 1
        self._held_bytes += entry.size_bytes

    def record(self, position: Position) -> Record:
        """The record at a live position. Raises KeyError if it is stale or already acknowledged."""
        if not self.is_live(position):
            raise KeyError(position)
        return self._accounts[position.partition].by_offset[position.offset].record

    def resolve(self, position: Position, output: Output | None) -> bool:
        """Set what a record leads to; None for a record that is only skipped. False when the position is stale.

        For a record that is resolved but not yet acknowledged the new output replaces the old.
        """
        if not self.is_live(position):
            return False
        entry = self._accounts[position.partition].by_offset.get(position.offset)
        if entry is None:
            return False
        entry.resolved, entry.output = True, output
        return True

    def release(self, limit: int | None = None) -> CommitBatch:
        """The resolved prefixes of all partitions, at most ``limit`` records in total."""
        outputs: list[tuple[Position, Output]] = []
        offsets: dict[Partition, int] = {}
        generations: dict[Partition, int] = {}
        left = self._in_flight if limit is None else limit
        for partition, account in self._accounts.items():
            if account.is_withheld:
                continue
            count = 0
            for entry in account.entries:
                if not entry.resolved or count == left:
                    break
                position = entry.record.position
                if entry.output is not None:
                    outputs.append((position, entry.output))
                offsets[partition] = position.offset + 1
                count += 1
            if count:
                generations[partition] = account.generation
                left -= count
        return CommitBatch(tuple(outputs), offsets, generations)

    def acknowledge(self, batch: CommitBatch) -> list[tuple[Record, Output | None]]:
        """Remove what the broker has acknowledged. Partitions taken away while it did so are passed over.

        Returns the records removed, and what answered each.
        """
        removed: list[tuple[Record, Output | None]] = []
        for partition, behind in batch.offsets.items():
            account = self._accounts.get(partition)
            if account is None or account.generation != batch.generations[partition]:
                continue
            while account.entries and account.entries[0].record.position.offset < behind:
                entry = account.entries.popleft()
                del account.by_offset[entry.record.position.offset]
                self._held_bytes -= entry.size_bytes
                removed.append((entry.record, entry.output))
        self._in_flight -= len(removed)
        return removed


def _size_bytes(record: Record) -> int:
    size = len(record.key or b"") + len(record.value or b"")
    if record.headers:
        size += sum([len(name) + len(value or b"") for name, value in record.headers])
    return size
