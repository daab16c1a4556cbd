"""The output side: what is released is produced and its offsets are committed, under one of two guarantees.

The guarantees are `worker.kafka.at_least_once` and `worker.kafka.transactional`; both follow the contract below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from worker.messages import CommitBatch

# Monotonic seconds.
Clock = Callable[[], float]


class Publisher(Protocol):
    """Produces a release and commits its offsets.

    `publish` is *resumable*: after False (under way) or `BrokerAway` it must be called again with the same release, and
    goes on where it stood, because whether a commit took effect may be unknown until the broker answers.
    After `TransactionAborted` nothing of the release is visible and any release may follow. After `Unpublishable` one
    output cannot be produced at all; the caller replaces it and publishes anew. `FatalError` ends the process.
    """

    transactional: bool

    def start(self, timeout_s: float) -> None:
        """Make ready to publish. Raises BrokerAway when the broker did not answer in time; may be called again."""

    def publish(self, release: CommitBatch, timeout_s: float) -> bool:
        """True once everything is acknowledged and the offsets are committed or, at least once, on their way.

        False while something is under way that needs no waiting for; it has ``timeout_s`` from the first call on.
        """

    def poll(self) -> None:
        """Take what the client has logged. It keeps all that nobody takes, and each line then costs more than the last.

        To be called whenever nothing is published, for while the brokers are away it logs a hundred lines a second.
        """

    def close(self) -> None:
        """Give up what is unfinished and disconnect."""
