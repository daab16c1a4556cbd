"""Everything the pipeline knows of one assigned partition, in one object that is forgotten whole."""

from __future__ import annotations

from dataclasses import dataclass

from worker.messages import Record
from worker.rules.crash_count import Mark
from worker.rules.offsets import Account, Ledger


@dataclass(slots=True)
class CountedStart:
    """A start that counts as soon as records are in hand, until the offset committed for the partition is ``until``.

    By then everything is answered that a predecessor can have had in hand.
    """

    former: Mark  # as it was found
    committed: int
    until: int
    is_counted: bool = False  # records are in hand, and the count is committed
    has_progress: bool = False
    read: int | None = None  # the offset behind the last record read
    held: bool = False

    @property
    def mark(self) -> Mark:
        """What is committed beside the offset."""
        if not self.is_counted:
            return self.former
        return Mark(starts=1 if self.has_progress else self.former.starts + 1)


@dataclass(slots=True)
class Quarantined:
    """A quarantine, until the committed offset reaches ``until``. ``deaths`` as in `worker.rules.crash_count.Mark`."""

    until: int
    deaths: int
    not_before_s: float  # of the monotonic clock; the next record is left alone until then
    record: Record | None = None  # read, and not admitted yet
    marked_at: int | None = None  # the offset of the record that is marked, until it is answered

    @property
    def mark(self) -> Mark:
        """What is committed beside the offset."""
        return Mark(until=self.until, deaths=self.deaths + (self.marked_at is not None))

    @property
    def unmarked(self) -> Mark:
        """What was committed before the record in hand was marked."""
        return Mark(until=self.until, deaths=self.deaths)


@dataclass(slots=True)
class RetryWait:
    """A record of a retry topic that was looked at before it was due.

    It is kept when it is over, because the record may be held for another reason and read once more.
    ``due_s`` is of the monotonic clock: a wall clock that is set meanwhile changes nothing.
    """

    offset: int
    due_s: float
    is_over: bool = False


@dataclass(slots=True)
class AssignedPartition(Account):
    """A partition under one assignment: the records in hand (`Account`), and why it is not simply read on.

    ``committed_offset`` is the group's, None where it is not known.
    """

    committed_offset: int | None = None
    retry_wait: RetryWait | None = None
    counted_start: CountedStart | None = None
    quarantined: Quarantined | None = None

    def reached(self, end: int) -> None:
        """It is read to its end, and all of it is answered: a predecessor had nothing in hand beyond."""
        if self.counted_start is not None:
            self.counted_start.until = min(self.counted_start.until, end)
        if self.quarantined is not None:
            self.quarantined.until = min(self.quarantined.until, end)


Partitions = Ledger[AssignedPartition]
