"""Everything the pipeline knows of one assigned partition, in one object that is forgotten whole."""

from __future__ import annotations

from dataclasses import dataclass

from worker.messages import Record
from worker.rules.crash_count import Mark
from worker.rules.offsets import Account, Ledger


@dataclass(slots=True)
class CountedStart:
    """A start that still counts, until the offset committed for the partition reaches ``until``.

    By then everything is answered that a predecessor can have had in hand.
    """

    former: Mark  # before this start was counted
    mark: Mark
    committed: int
    until: int
    read: int | None = None  # the offset behind the last record read
    has_progress: bool = False
    held: bool = False


@dataclass(slots=True)
class Quarantined:
    """A quarantine, until the committed offset reaches ``until``.

    ``condemned``: the next record was in hand, marked, when the process died.
    """

    until: int
    condemned: bool
    record: Record | None = None  # read, and not admitted yet
    marked_at: int | None = None  # the offset of the record that is marked, until it is answered


@dataclass(slots=True)
class AssignedPartition(Account):
    """A partition under one assignment: the records in hand (`Account`), and why it is not simply read on.

    ``due_ms`` is when the next record of a retry topic is due, in wall-clock milliseconds; None where nothing waits.
    """

    due_ms: int | None = None
    counted_start: CountedStart | None = None
    quarantined: Quarantined | None = None


Partitions = Ledger[AssignedPartition]
