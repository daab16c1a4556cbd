"""Exactly-once: outputs and offsets in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum, auto
from typing import Any, Final, NoReturn, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from worker.errors import BrokerAway, FatalError, TransactionAborted, Unpublishable, WorkerError
from worker.kafka import client_errors
from worker.kafka.client_config import Properties
from worker.kafka.lost_requests import LostRequests
from worker.kafka.pending_offsets import PendingOffsets, Spawn, on_thread
from worker.kafka.producer import DeliveryReports, ProducerConnection
from worker.kafka.publisher import Clock
from worker.messages import CommitBatch, Output, Partition, Position

log = structlog.get_logger("worker.kafka")

# A call that is asked to return in time gets so much more of it.
_GRACE_S: Final = 1.0


class OffsetOwner(Protocol):
    """Whose offsets a transaction carries: the worker's consumer, or one that belongs to no group's generation."""

    def group_metadata(self) -> Any:
        """What the coordinator checks the offsets' sender by (KIP-447)."""

    def owns(self, generations: Mapping[Partition, int]) -> bool:
        """Whether all these partitions are read, and under these assignments, still."""


class _State(Enum):
    """How far the transaction of the current release has come."""

    IDLE = auto()
    OPEN = auto()  # begun, outputs on their way: may still be aborted
    OFFERED = auto()  # the offsets are on their way too
    COMMITTING = auto()  # the broker may have committed: a successor finds out
    ABORTING = auto()  # decided, not acknowledged yet


class TransactionalPublisher:
    """Outputs and offsets in one transaction (KIP-98, KIP-447): a reader sees all of a release or nothing of it.

    The broker takes its time over the offsets (it has the last transaction's markers to write out first), so `publish`
    returns meanwhile. A partition that leaves then takes the transaction with it: a commit is for its owner only.

    Args:
        config: Properties of the producer, with its ``transactional.id``.
        consumer: Whose offsets are part of the transactions.
        clock: Monotonic seconds.
        spawn: Runs a call that may never return, elsewhere.
    """

    transactional = True

    def __init__(self, config: Properties, consumer: OffsetOwner, clock: Clock, spawn: Spawn = on_thread) -> None:
        self._lost = LostRequests(config)
        self._connection = ProducerConnection(config, clock, self._lost)
        self.batch_bytes = self._connection.batch_bytes  # what a batch holds at most, save for one larger record
        self._consumer = consumer
        self._clock = clock
        self._spawn = spawn
        self._state = _State.IDLE
        # A batch was refused with all that is in it, for one of its records or for its size.
        self.has_suspects = False
        self._reports = DeliveryReports()  # these three are of the open transaction
        self._deadline_s = 0.0
        self._offsets: PendingOffsets

    def start(self, timeout_s: float) -> None:
        """Fence a predecessor with the same transactional id and end what it left open.

        Raises:
            BrokerAway: the transaction coordinator did not answer in time.
            FatalError: the broker has no transactions, or refuses this id.
        """
        try:
            self._connection.client.init_transactions(timeout_s)
        except KafkaException as error:
            found: KafkaError = error.args[0]
            if client_errors.is_retriable(found):
                raise BrokerAway(f"transactions not ready: {found.str()}") from error
            raise _no_transactions(found) from error

    def publish(self, release: CommitBatch, timeout_s: float) -> bool:
        """One transaction: begin, produce, send offsets, commit."""
        deadline_s = self._clock() + timeout_s
        if self._state in {_State.OPEN, _State.ABORTING}:
            self._abort(deadline_s, "resumed")  # (OPEN: an error that is none of Kafka's broke the last call off)
            # Not this release again: a partition may have left since, and its new owner may have answered already.
            raise TransactionAborted("the abort is answered now")
        if self._state is _State.IDLE:
            self._open(release, deadline_s)
        if self._state is _State.OFFERED and not self._is_taken(release):
            return False
        self._commit(deadline_s)
        return True

    def _open(self, release: CommitBatch, deadline_s: float) -> None:
        """Begin, produce, and send the offsets on their way."""
        self._produce(release.outputs, deadline_s)
        metadata, left_s = self._consumer.group_metadata(), self._left_s(deadline_s)
        self._offsets = PendingOffsets(self._connection.client, _positions(release), metadata, left_s, self._spawn)
        self._state = _State.OFFERED

    def _produce(self, outputs: Iterable[tuple[Position, Output]], deadline_s: float) -> None:
        """Begin a transaction and queue these outputs. If one is refused unsent, the others are looked at too."""
        self._reports = reports = DeliveryReports()
        self._deadline_s = deadline_s
        try:
            self._connection.begin()
            self._state = _State.OPEN
            for position, output in outputs:
                try:
                    self._connection.produce(position, output, reports, deadline_s)
                except Unpublishable as error:
                    reports.refuse(error)
        except BrokerAway as error:
            self._abort(deadline_s, str(error), is_late=True)
            raise TransactionAborted(str(error)) from error
        except KafkaException as error:
            self._give_up(error, deadline_s)
        if reports.unpublishable is not None:
            self._abort(deadline_s, str(reports.unpublishable))
            raise reports.unpublishable

    def _is_taken(self, release: CommitBatch) -> bool:
        """Whether the broker has taken outputs and offsets, so that the transaction may be committed.

        Raises:
            TransactionAborted: it has refused them, or a partition has left.
            Unpublishable: it has refused one output for what it is.
            FatalError: sending the offsets did not return. The client is of no further use; nothing was committed.
        """
        if not self._offsets.has_returned():
            if self._clock() >= self._deadline_s + _GRACE_S:
                raise FatalError("the producer does not return from sending offsets")
            return False
        self._state = _State.OPEN
        reports, deadline_s, error = self._reports, self._deadline_s, self._offsets.error
        if isinstance(error, KafkaException):
            self._give_up(error, deadline_s)
        if error is not None:
            raise error
        left = self._connection.flush_or_fail(reports, deadline_s)
        if reports.unpublishable is not None:
            self._abort(deadline_s, str(reports.unpublishable))
            raise reports.unpublishable
        if left or reports.failed:
            self.has_suspects = self.has_suspects or bool(reports.suspects)
            is_late = bool(left) or any(map(client_errors.is_unanswered, reports.failed.values()))
            self._abort(deadline_s, reports.why, is_late=is_late)
            raise TransactionAborted(f"{left + len(reports.failed)} records were not delivered ({reports.why})")
        if not self._consumer.owns(release.generations):
            self._abort(deadline_s, "a partition left")
            raise TransactionAborted("a partition left before the commit")
        self._state = _State.COMMITTING
        return True

    def _commit(self, deadline_s: float) -> None:
        try:
            self._connection.client.commit_transaction(self._left_s(deadline_s))
        except KafkaException as error:
            if client_errors.is_retriable(error.args[0]):
                # Committed or not: a successor finds out.
                raise BrokerAway(f"commit not answered: {error.args[0].str()}") from error
            self._give_up(error, deadline_s)
        self.has_suspects = False
        self._state = _State.IDLE
        self.poll()  # delivers the log lines that are asked about
        self._lost.ended()

    def _give_up(self, error: KafkaException, deadline_s: float) -> NoReturn:
        """Turn an error of a transactional call into ours. Always raises."""
        found: KafkaError = error.args[0]
        is_final = client_errors.is_fatal(found) or client_errors.is_fencing(found)
        # A bare notice is followed by the abort, whose answer names the cause: who is fenced has to know it. Not so
        # while a commit is in doubt, for the abort would hide that.
        if is_final and (client_errors.names_cause(found) or self.in_doubt):
            raise client_errors.cannot_go_on("transactional producer", found) from error
        # Abortable, or retriable with our time used up: in both cases nothing was committed, and abort makes it final.
        self._abort(deadline_s, found.str(), is_late=client_errors.is_unanswered(found))
        # Records are sent in the background: what made the transaction fail was met by a later call.
        self.has_suspects = self.has_suspects or bool(self._reports.suspects)
        if self._reports.unpublishable is not None:
            raise self._reports.unpublishable from error
        raise TransactionAborted(f"{found.name()}: {found.str()}") from error

    def _abort(self, deadline_s: float, why: str, *, is_late: bool = False) -> None:
        if is_late:
            # Something was not answered in time, so there will be a successor (see `lost_request`): it ends this one.
            # librdkafka 2.16 ends the process where a client is given up after an abort and before all answers.
            self._lost.suppose(why)
            self._state = _State.IDLE
            log.warning("transaction_left", why=why)
            return
        self._state = _State.ABORTING
        try:
            # At least a second: an abort that has no time would leave readers waiting for the transaction's time-out.
            self._connection.abort(max(deadline_s, self._clock() + 1.0))
        except KafkaException as error:
            found: KafkaError = error.args[0]
            if client_errors.is_retriable(found):
                raise BrokerAway(f"abort not answered: {found.str()}") from error
            raise client_errors.cannot_go_on("transactional producer", found) from error
        self._state = _State.IDLE
        log.warning("transaction_aborted", why=why)

    def _left_s(self, deadline_s: float) -> float:
        return max(0.1, deadline_s - self._clock())

    def lost_request(self) -> str:
        """Why a request may arrive late, so that a successor must be opened unless `in_doubt`; empty if none may."""
        self.poll()
        return self._lost.why

    @property
    def in_doubt(self) -> bool:
        """True while a commit is under way: whether it took effect is not known after BrokerAway or FatalError."""
        return self._state is _State.COMMITTING

    def abandon(self) -> None:
        """Disconnect, and leave what is open to a successor under the same transactional id."""
        self._connection.close()

    def poll(self) -> None:
        """Take what the client has logged; see `Publisher.poll`."""
        self._connection.client.poll(0)

    def close(self) -> None:
        """Abort what is open, as far as the broker answers, and disconnect."""
        # (librdkafka refuses to abort while sending the offsets is under way.)
        if self._state is _State.OFFERED and self._offsets.has_returned(_GRACE_S):
            self._state = _State.OPEN
        if self._state in {_State.OPEN, _State.ABORTING}:
            try:
                self._abort(self._clock(), "closing")
            except WorkerError as error:
                log.warning("abort_at_close_failed", error=str(error))
        self._connection.close()


def _positions(release: CommitBatch) -> list[TopicPartition]:
    offsets, metadata = release.offsets, release.metadata
    return [TopicPartition(p.topic, p.number, offset, metadata.get(p, "")) for p, offset in offsets.items()]


def _no_transactions(error: KafkaError) -> FatalError:
    if mend := client_errors.mend_of_access(error):
        return FatalError(f"the broker grants no transactions: {error.str()}{mend}")
    return FatalError(
        f"the broker grants no transactions ({error.name()}: {error.str()}); exactly_once needs them: use Apache Kafka "
        "with its transaction coordinator, or set delivery.guarantee = 'at_least_once'"
    )
