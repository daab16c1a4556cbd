"""Which outputs the broker refuses, found out in transactions that are aborted in any case.

A refused record takes its transaction with it, and half a second: the client needs another producer epoch. It takes
along what shares a batch with it, too, and nobody says which record of the batch it was. So as many as possible have to
be found in each transaction. Here every record is a batch of its own, and as what is aborted needs no order, the
largest go first: then all that are on their way at a time (five, with an idempotent producer) are refused together.
"""

from __future__ import annotations

from worker.errors import TransactionAborted
from worker.kafka.client_config import Properties
from worker.kafka.pending_offsets import Spawn, on_thread
from worker.kafka.publisher import Clock
from worker.kafka.transactional import OffsetOwner, TransactionalPublisher
from worker.messages import CommitBatch, Output, Position


class Trial(TransactionalPublisher):
    """Tries outputs, and publishes a release once all of its outputs have passed, each in a batch of its own.

    Arguments as of `TransactionalPublisher`.
    """

    def __init__(self, config: Properties, consumer: OffsetOwner, clock: Clock, spawn: Spawn = on_thread) -> None:
        super().__init__(config | {"batch.size": 1}, consumer, clock, spawn)
        self._passed: dict[Position, Output] = {}

    def _open(self, release: CommitBatch, deadline_s: float) -> None:
        untried = [(at, output) for at, output in release.outputs if self._passed.get(at) is not output]
        if untried:
            self._try(sorted(untried, key=_size_bytes, reverse=True), deadline_s)
        super()._open(release, deadline_s)

    def _try(self, outputs: list[tuple[Position, Output]], deadline_s: float) -> None:
        try:
            self._produce(outputs, deadline_s)
            left = self._connection.flush_or_fail(self._reports, deadline_s)
            refused = self._reports.unpublishable
            self._abort(deadline_s, "a trial" if refused is None else str(refused), is_late=bool(left))
        finally:
            # The abort has told of each that was not taken.
            self._passed |= {at: output for at, output in self._reports.sent if at not in self._reports.failed}
        if self._reports.unpublishable is not None:
            raise self._reports.unpublishable
        if left or self._reports.failed:
            raise TransactionAborted(f"a trial did not end ({self._reports.why})")


def _size_bytes(named: tuple[Position, Output]) -> int:
    output = named[1]
    return len(output.value or b"") + len(output.key or b"") + sum(len(value or b"") for _, value in output.headers)
