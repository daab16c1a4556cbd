"""The output side: what is released is produced and its offsets are committed, under one of two guarantees.

Both publishers share one contract. `publish` is *resumable*: after False (under way) or `BrokerAway` it must be called
again with the same release, and goes on where it stood, because whether a commit took effect may be unknown until the
broker answers.
After `TransactionAborted` nothing of the release is visible and any release may follow. After `Unpublishable` one
output cannot be produced at all; the caller replaces it and publishes anew. `FatalError` ends the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from typing import Any, Final, Protocol

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from worker.errors import BrokerAway, FatalError, Fenced, TransactionAborted, Unpublishable, WorkerError
from worker.kafka import client_config
from worker.kafka.client_config import Properties
from worker.kafka.consumer import Consumer, is_fatal
from worker.messages import Outgoing, Partition, Position
from worker.rules.offsets import Release
from worker.telemetry.log import Repeats

log = structlog.get_logger("worker.kafka")

Clock = Callable[[], float]


class Publisher(Protocol):
    """Produces a release and commits its offsets. See the module's docstring for the contract."""

    transactional: bool

    def start(self, timeout_s: float) -> None:
        """Make ready to publish. Raises BrokerAway when the broker did not answer in time; may be called again."""

    def publish(self, release: Release, timeout_s: float) -> bool:
        """True once everything is acknowledged and the offsets are committed or, at least once, on their way.

        False while something is under way that needs no waiting for; it has ``timeout_s`` from the first call on.
        """

    def close(self) -> None:
        """Give up what is unfinished and disconnect."""


class Reads(Protocol):
    """Whose offsets a transaction carries: the worker's consumer, or one that belongs to no group's generation."""

    def group_metadata(self) -> Any:
        """What the coordinator checks the offsets' sender by (KIP-447)."""

    def owns(self, epochs: Mapping[Partition, int]) -> bool:
        """Whether all these partitions are read, and under these assignments, still."""


# A call that is asked to return in time gets so much more of it.
_GRACE_S: Final = 1.0
# Of the record itself: the same bytes would be refused again.
_OF_THE_RECORD = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_RECORD,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_TIMESTAMP,
    }
)
# Somebody else took our place, so everything we would still write is not ours to write.
_FENCING = frozenset(
    {
        KafkaError._FENCED,  # noqa: SLF001 (librdkafka's local codes are spelt with an underscore)
        KafkaError.PRODUCER_FENCED,
        KafkaError.FENCED_INSTANCE_ID,
    }
)


def _on_thread(call: Callable[[], None]) -> None:
    threading.Thread(target=call, name="offsets", daemon=True).start()


class _Receipts:
    """What became of the records of one release: those sent that did not fail, once none is in the producer's queue.

    Only failures are reported (delivery.report.only.error): a report of each success cost as much as the sending.

    ``singly``: every record was sent in a request of its own, so a refusal tells which one is refused. Otherwise the
    broker refuses a whole request for one record of it, and the report blames its neighbours too.
    """

    def __init__(self, *, singly: bool) -> None:
        self.singly = singly
        self.refused = False
        self.sent: list[tuple[Position, Outgoing]] = []
        self.failed: dict[Position, KafkaError] = {}
        self.unpublishable: Unpublishable | None = None

    def report(self, position: Position, output: Outgoing, error: KafkaError | None, _: Message) -> None:
        """One record failed, or, where a client reports everything, did not."""
        if error is None:
            return
        self.failed[position] = error
        if error.code() in _OF_THE_RECORD:
            self.refused = True
            if self.singly:
                self.unpublishable = Unpublishable(position, output, error.code(), f"{error.name()}: {error.str()}")

    @property
    def why(self) -> str:
        """Why not everything was delivered."""
        return next((error.str() for error in self.failed.values()), "time ran out")


class _Connection:
    """A producer and what both publishers do with it."""

    def __init__(self, config: Properties, clock: Clock) -> None:
        self.clock = clock
        self.fatal: KafkaError | None = None
        self._repeats = Repeats()
        self.singly = False  # from a refusal until a release has gone out: see _Receipts
        config = client_config.with_callbacks(config, self._on_error) | {"delivery.report.only.error": True}
        self.client = client_config.open_client(Producer, config)

    def _on_error(self, error: KafkaError) -> None:
        fatal = is_fatal(error)
        if fatal:
            self.fatal = error
        held = 0 if fatal else self._repeats.admit(error.name())
        if held is not None:
            log.warning("producer_error", code=error.name(), error=error.str(), fatal=fatal, held_back=held)

    def produce(self, position: Position, output: Outgoing, receipts: _Receipts, deadline_s: float) -> None:
        """Queue one record. A full queue is back-pressure: serve receipts until there is room.

        Raises:
            Unpublishable: the record is larger than the client may send.
            BrokerAway: the queue stayed full until the deadline.
        """
        reported = partial(receipts.report, position, output)
        while True:
            try:
                self.client.produce(
                    output.topic,
                    value=output.value,
                    key=output.key,
                    headers=list(output.headers),
                    timestamp=output.timestamp_ms or 0,  # librdkafka takes "none" as 0: it stamps the record itself
                    on_delivery=reported,
                )
            except BufferError:
                if self.clock() >= deadline_s:
                    raise BrokerAway("the producer's queue stayed full: the broker takes nothing") from None
                self.client.poll(0.05)
            except KafkaException as error:
                found: KafkaError = error.args[0]
                if found.code() in _OF_THE_RECORD:
                    raise Unpublishable(position, output, found.code(), f"{found.name()}: {found.str()}") from error
                raise
            else:
                receipts.sent.append((position, output))
                # Whatever shares a request with it would share the blame.
                if receipts.singly and self.flush(deadline_s):
                    raise BrokerAway("no receipt in time for a record sent by itself")
                return

    def flush(self, deadline_s: float) -> int:
        """Wait until every record sent has its receipt, or the time is up. How many are still without."""
        while (left := self.client.flush(max(0.0, deadline_s - self.clock()))) and self.clock() < deadline_s:
            pass
        return left

    def check(self) -> None:
        """Raise FatalError if librdkafka has said that this client cannot go on."""
        if self.fatal is not None:
            kind = Fenced if self.fatal.code() in _FENCING else FatalError
            raise kind(f"the producer cannot go on: {self.fatal.name()}: {self.fatal.str()}")

    def close(self) -> None:
        """Drop what is queued, closing without that would wait for it, and the client. May be called again."""
        # The client holds us by its callback: in a circle with us it would live on, threads and all.
        client: Producer | None = self.__dict__.pop("client", None)
        if client is None:
            return
        client.purge(in_queue=True, in_flight=True)
        with suppress(KafkaException):  # a client that was fenced says so again, and would hide who says it first
            client.flush(0)


class AtLeastOncePublisher:
    """Receipts first, offsets after them. A crash in between repeats results and never loses one."""

    transactional = False

    def __init__(self, config: Properties, consumer: Consumer, clock: Clock) -> None:
        self._connection = _Connection(config, clock)
        self._consumer = consumer
        self._clock = clock
        # While not everything of a release is delivered: which, what is on its way, what arrived, how the rest is sent.
        self._release: Release | None = None
        self._receipts: _Receipts | None = None
        self._delivered: dict[Position, Outgoing] = {}
        self._all_sent = False
        self._singly = False

    def start(self, timeout_s: float) -> None:
        """Nothing to prepare."""

    def publish(self, release: Release, timeout_s: float) -> bool:
        """Produce, wait for every receipt, then commit without waiting: a later commit says more anyway."""
        deadline_s = self._clock() + timeout_s
        if self._receipts is None:
            self._release, self._receipts = release, _Receipts(singly=self._singly)
            self._send(release, self._receipts, deadline_s)
        left = self._connection.flush(deadline_s)
        self._connection.check()
        if left:
            raise BrokerAway(f"{left} of {len(release.outputs)} records are not acknowledged yet")
        if self._receipts.failed or not self._all_sent or self._release is not release:
            self._fall_short(release, self._receipts)
        # The offsets of partitions that left since this release was made are their new owner's to commit.
        owned = self._consumer.assignment
        offsets = {p: offset for p, offset in release.offsets.items() if owned.get(p) == release.epochs[p]}
        self._consumer.commit(offsets, wait=False, metadata=release.metadata)
        self._receipts = None
        self._delivered.clear()
        self._singly = False
        return True

    def _send(self, release: Release, receipts: _Receipts, deadline_s: float) -> None:
        """Queue what no earlier call has delivered, as far as the queue takes it."""
        self._all_sent = False
        try:
            for position, output in release.outputs:
                if not self._delivered or self._delivered.get(position) is not output:
                    self._connection.produce(position, output, receipts, deadline_s)
            self._all_sent = True
        except Unpublishable as error:
            receipts.unpublishable = error  # raised once what is in front of it has its receipts
        except KafkaException as error:
            self._connection.check()
            raise BrokerAway(f"not produced: {error.args[0].str()}") from error

    def _fall_short(self, release: Release, receipts: _Receipts) -> None:
        """Remember what was delivered, so that the next call sends the rest alone. Always raises."""
        self._delivered |= {position: output for position, output in receipts.sent if position not in receipts.failed}
        self._singly |= receipts.refused
        self._receipts = None
        if receipts.unpublishable is not None:
            raise receipts.unpublishable
        missing = sum(self._delivered.get(position) is not output for position, output in release.outputs)
        raise BrokerAway(f"{missing} of {len(release.outputs)} records were not delivered ({receipts.why})")

    def close(self) -> None:
        """Give up what is unfinished and disconnect."""
        self._connection.close()


class _Stage(Enum):
    """How far the transaction of the current release has come."""

    IDLE = auto()
    OPEN = auto()  # begun, outputs on their way: may still be aborted
    OFFERED = auto()  # the offsets are on their way too
    COMMITTING = auto()  # the broker may have committed: only the same call again tells
    ABORTING = auto()  # decided, not acknowledged yet


class TransactionalPublisher:
    """Outputs and offsets in one transaction (KIP-98, KIP-447): a reader sees all of a release or nothing of it.

    The broker takes its time over the offsets (it has the last transaction's markers to write out first), so `publish`
    comes back meanwhile. A partition that leaves then takes the transaction with it: a commit is for its owner only.

    ``spawn`` runs a call that may never return, elsewhere.
    """

    transactional = True

    def __init__(
        self,
        config: Properties,
        consumer: Reads,
        clock: Clock,
        spawn: Callable[[Callable[[], None]], None] = _on_thread,
    ) -> None:
        self._connection = _Connection(config, clock)
        self._consumer = consumer
        self._clock = clock
        self._spawn = spawn
        self._stage = _Stage.IDLE
        # Of the open transaction.
        self._receipts = _Receipts(singly=False)
        self._deadline_s = 0.0
        self._answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()  # to sending the offsets

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
            if found.retriable():
                raise BrokerAway(f"transactions not ready: {found.str()}") from error
            raise FatalError(
                f"the broker grants no transactions ({found.name()}: {found.str()}); exactly_once needs them: use "
                "Apache Kafka with its transaction coordinator, or set delivery.guarantee = 'at_least_once'"
            ) from error

    def publish(self, release: Release, timeout_s: float) -> bool:
        """One transaction: begin, produce, send offsets, commit."""
        deadline_s = self._clock() + timeout_s
        if self._stage in {_Stage.OPEN, _Stage.ABORTING}:
            # (OPEN: an error that is none of Kafka's broke the last call off, before the offsets were part of it.)
            self._abort(deadline_s, "resumed")
            # Not this release again: a partition may have left since, and its new owner may have answered already.
            raise TransactionAborted("the abort is answered now")
        if self._stage is _Stage.IDLE:
            self._open(release, deadline_s)
        if self._stage is _Stage.OFFERED and not self._is_taken(release):
            return False
        self._commit(deadline_s)
        return True

    def _open(self, release: Release, deadline_s: float) -> None:
        """Begin, produce, and send the offsets on their way."""
        self._receipts = _Receipts(singly=self._connection.singly)
        self._deadline_s = deadline_s
        try:
            self._connection.client.begin_transaction()
            self._stage = _Stage.OPEN
            for position, output in release.outputs:
                self._connection.produce(position, output, self._receipts, deadline_s)
        except Unpublishable as error:
            self._abort(deadline_s, str(error))
            raise
        except BrokerAway as error:
            self._abort(deadline_s, str(error))
            raise TransactionAborted(str(error)) from error
        except KafkaException as error:
            self._give_up(error, deadline_s)
        self._send_offsets(release)
        self._stage = _Stage.OFFERED

    def _send_offsets(self, release: Release) -> None:
        """Make the offsets part of the transaction. The answer arrives in ``_answers``.

        On a thread of its own: librdkafka ignores this call's time-out, and where the broker that coordinated the group
        has left its list (after an outage of all brokers, say) the call never returns (its issues 5456 and 5511).
        """
        client, metadata = self._connection.client, self._consumer.group_metadata()
        offsets = [
            TopicPartition(p.topic, p.number, offset, release.metadata.get(p, ""))
            for p, offset in release.offsets.items()
        ]
        answers = self._answers = queue.SimpleQueue()
        timeout_s = self._left_s(self._deadline_s)

        def call() -> None:
            try:
                client.send_offsets_to_transaction(offsets, metadata, timeout_s)
            except Exception as error:  # noqa: BLE001 (raised again by _is_taken, on the thread that asked)
                answers.put(error.with_traceback(None))  # whose frames hold the client
            else:
                answers.put(None)

        self._spawn(call)

    def _is_taken(self, release: Release) -> bool:
        """Whether the broker has taken outputs and offsets, so that the transaction may be committed.

        Raises:
            TransactionAborted: it has refused them, or a partition has left.
            Unpublishable: it has refused one output for what it is.
            FatalError: sending the offsets did not return. The client is of no further use; nothing was committed.
        """
        try:
            error = self._answers.get_nowait()
        except queue.Empty:
            if self._clock() >= self._deadline_s + _GRACE_S:
                raise FatalError("the producer does not return from sending offsets") from None
            return False
        self._stage = _Stage.OPEN
        receipts, deadline_s = self._receipts, self._deadline_s
        if isinstance(error, KafkaException):
            self._give_up(error, deadline_s)
        if error is not None:
            raise error
        left = self._connection.flush(deadline_s)
        if receipts.unpublishable is not None:
            self._abort(deadline_s, str(receipts.unpublishable))
            raise receipts.unpublishable
        if left or receipts.failed:
            self._connection.singly |= receipts.refused
            self._abort(deadline_s, receipts.why)
            raise TransactionAborted(f"{left + len(receipts.failed)} records were not delivered ({receipts.why})")
        if not self._consumer.owns(release.epochs):
            self._abort(deadline_s, "a partition left")
            raise TransactionAborted("a partition left before the commit")
        self._stage = _Stage.COMMITTING
        return True

    def _commit(self, deadline_s: float) -> None:
        try:
            self._connection.client.commit_transaction(self._left_s(deadline_s))
        except KafkaException as error:
            if error.args[0].retriable():
                # Committed or not: only the same call knows. The stage stays, the caller comes back.
                raise BrokerAway(f"commit not answered: {error.args[0].str()}") from error
            self._give_up(error, deadline_s)
        self._connection.singly = False
        self._stage = _Stage.IDLE

    def _give_up(self, error: KafkaException, deadline_s: float) -> None:
        """Turn an error of a transactional call into ours. Always raises."""
        found: KafkaError = error.args[0]
        if found.fatal() or found.code() in _FENCING:
            kind = Fenced if found.code() in _FENCING else FatalError
            raise kind(f"the transactional producer cannot go on: {found.name()}: {found.str()}") from error
        # Abortable, or retriable with our time used up: in both cases nothing was committed, and abort makes it final.
        self._abort(deadline_s, found.str())
        # Records are sent in the background: what made the transaction fail was met by a later call.
        self._connection.singly |= self._receipts.refused
        if self._receipts.unpublishable is not None:
            raise self._receipts.unpublishable from error
        raise TransactionAborted(f"{found.name()}: {found.str()}") from error

    def _abort(self, deadline_s: float, why: str) -> None:
        self._stage = _Stage.ABORTING
        try:
            # At least a second: an abort that has no time would leave readers waiting for the transaction's time-out.
            self._connection.client.abort_transaction(max(1.0, self._left_s(deadline_s)))
        except KafkaException as error:
            found: KafkaError = error.args[0]
            if found.retriable():
                raise BrokerAway(f"abort not answered: {found.str()}") from error
            kind = Fenced if found.code() in _FENCING else FatalError
            raise kind(f"the transactional producer cannot go on: {found.name()}: {found.str()}") from error
        self._stage = _Stage.IDLE
        log.warning("transaction_aborted", why=why)

    def _left_s(self, deadline_s: float) -> float:
        return max(0.1, deadline_s - self._clock())

    @property
    def in_doubt(self) -> bool:
        """True while a commit is under way: whether it took effect is not known after BrokerAway or FatalError."""
        return self._stage is _Stage.COMMITTING

    def abandon(self) -> None:
        """Disconnect, and leave what is open to a successor under the same transactional id."""
        self._connection.close()

    def close(self) -> None:
        """Abort what is open, as far as the broker answers, and disconnect."""
        if self._stage is _Stage.OFFERED:
            with suppress(queue.Empty):  # librdkafka refuses to abort while the call is under way
                self._answers.get(timeout=_GRACE_S)
                self._stage = _Stage.OPEN
        if self._stage in {_Stage.OPEN, _Stage.ABORTING}:
            try:
                self._abort(self._clock(), "closing")
            except WorkerError as error:
                log.warning("abort_at_close_failed", error=str(error))
        self._connection.close()
