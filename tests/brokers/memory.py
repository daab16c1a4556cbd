"""Kafka in memory: a broker and, in front of it, the two clients of confluent-kafka, on one thread and a fake clock.

`worker.kafka` runs on it unchanged: `MemoryBroker.plugged_in` swaps the two client classes. So every interleaving of
rebalances, outages and answers can be had at will, and had again. It is strict where librdkafka is (a transactional
call out of turn, an offset of a partition that is not owned) and hostile where librdkafka may be: `consume` returns
records of a partition that a callback within the same call took away, and a refusal is met by whatever call comes next.
It proves nothing about Kafka; the contract suite runs the same code against real brokers.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, Final
from unittest.mock import patch

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, TopicPartition

from worker.messages import Headers, Output, OutputKind, Partition

PREFETCH: Final = 3
# A commit that is waited for has no time-out: so long librdkafka looks for its coordinator, measured.
COMMIT_PATIENCE_S: Final = 45.0


class Clock:
    """Monotonic and wall-clock seconds that pass when somebody says so."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds


@dataclass(frozen=True, slots=True)
class Fault:
    """What the next call of a name meets. ``applied``: the broker did what was asked, and its answer was lost."""

    error: KafkaError
    applied: bool = False


def retriable(*, applied: bool = False) -> Fault:
    """The answer did not come in time."""
    return Fault(KafkaError(KafkaError._TIMED_OUT, "no answer in time", False, True, False), applied)


def abortable(code: int = KafkaError.COORDINATOR_NOT_AVAILABLE) -> Fault:
    """The transaction has to be aborted."""
    return Fault(KafkaError(code, None, False, False, True))


def fatal(code: int = KafkaError._FENCED, *, applied: bool = False) -> Fault:
    """The client cannot go on."""
    return Fault(KafkaError(code, None, True, False, False), applied)


@dataclass(slots=True)
class Undecided:
    """A transaction that is neither committed nor aborted."""

    outputs: list[Output]
    offsets: list[TopicPartition]


@dataclass(frozen=True, slots=True)
class _LateEnd:
    """An EndTxn that was lost with its connection, asked for again by the client, and is still on its way."""

    epoch: int
    commits: bool


class MemoryBroker:
    """What clients share. ``visible`` is what a read_committed reader sees of all outputs, in order of commit."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.inputs: dict[Partition, list[bytes | None]] = {}
        self.committed: dict[Partition, int] = {}
        self.metadata: dict[Partition, str] = {}  # beside committed offsets
        self.visible: list[Output] = []
        self.undecided: Undecided | None = None
        self.generation = 0
        self.member: MemoryConsumer | None = None
        self.headers: list[tuple[str, bytes]] = []  # of every record
        self.own_headers: dict[tuple[Partition, int], list[tuple[str, bytes]]] = {}  # of one record, in place of those
        # Faults at will: all calls, the next call of a name, records of a topic, records of a size.
        self.away = False
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.unwritable: set[str] = set()
        self.client_limit_bytes = 1 << 20
        self.broker_limit_bytes = 1 << 20
        self.queue_limit = 1 << 20
        self.latest_timestamp_ms: float = math.inf
        self.round_trip_s = 0.0  # of a request to produce
        # How many of the next ends of transactions are lost with their connections; what arrives late, and to whom.
        self.lost_ends = 0
        self.late_ends: list[_LateEnd] = []
        self.logs_ends = True
        self.epoch = 0

    @contextmanager
    def plugged_in(self) -> Iterator[None]:
        """While this lasts, `worker.kafka` connects here."""
        with (
            patch("worker.kafka.consumer.Client", lambda config: MemoryConsumer(self, config)),
            patch("worker.kafka.producer.Producer", lambda config: MemoryProducer(self, config)),
        ):
            yield

    def send(self, partition: Partition, *values: bytes | None) -> None:
        """Append records to an input partition."""
        self.inputs.setdefault(partition, []).extend(values)

    def assign(self, *partitions: Partition) -> None:
        """The group gives partitions to our member; it learns so in a later poll, as of the other two."""
        self._rebalance("assign", partitions)

    def revoke(self, *partitions: Partition) -> None:
        """The group asks for partitions back, and waits."""
        self._rebalance("revoke", partitions)

    def lose(self, *partitions: Partition) -> None:
        """The group has given partitions to somebody else."""
        self.generation += 1
        self._rebalance("lose", partitions)

    def _rebalance(self, kind: str, partitions: Sequence[Partition]) -> None:
        assert self.member is not None
        self.member.rebalance(kind, partitions)

    def fault(self, call: str) -> Fault | None:
        """What stands between this call and the broker."""
        if self.faults[call]:
            return self.faults[call].popleft()
        return retriable() if self.away else None

    def settle(self, *, commit: bool) -> None:
        """Decide the open transaction."""
        if self.undecided is not None and commit:
            self.visible += self.undecided.outputs
            self.store(self.undecided.offsets)
        self.undecided = None

    def store(self, offsets: Sequence[TopicPartition]) -> None:
        """What a commit does."""
        for position in offsets:
            partition = Partition(position.topic, position.partition)
            self.committed[partition] = position.offset
            self.metadata[partition] = position.metadata or ""

    def overtake(self, partitions: Sequence[Partition]) -> None:
        """An offset committed outside an open transaction, after it was sent there, counts as the newer of the two."""
        if self.undecided is not None:
            kept = [p for p in self.undecided.offsets if Partition(p.topic, p.partition) not in partitions]
            self.undecided = Undecided(self.undecided.outputs, kept)

    def is_unstable(self, partition: Partition) -> bool:
        """True while an undecided transaction holds an offset of the partition: nobody may read it (KIP-447)."""
        return self.undecided is not None and partition in _partitions(self.undecided.offsets)


class MemoryMessage:
    """A record as the consumer client hands it over."""

    def __init__(
        self,
        partition: Partition,
        offset: int,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        assignment: int,
    ) -> None:
        self._headers = headers
        self._partition = partition
        self._offset = offset
        self._value = value
        self.assignment = assignment

    @property
    def where(self) -> Partition:
        return self._partition

    def error(self) -> None:
        return None

    def topic(self) -> str:
        return self._partition.topic

    def partition(self) -> int:
        return self._partition.number

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes]]:
        return self._headers

    def timestamp(self) -> tuple[int, int]:
        return 1, self._offset


class EndOfPartition(MemoryMessage):
    """The event that tells that a partition was read to its end."""

    def error(self) -> KafkaError | None:  # type: ignore[override]
        return KafkaError(KafkaError._PARTITION_EOF)


@dataclass(slots=True)
class _Owned:
    assignment: int
    ended_at: int | None = None  # where the end was last told of
    fetch_at: int | None = None  # None: the committed offset has not been asked for yet
    app_at: int = 0
    paused: bool = False


@dataclass(frozen=True, slots=True)
class _Rebalance:
    kind: str
    callback: Callable[[], None]

    def __call__(self) -> None:
        self.callback()


class MemoryConsumer:
    """The consumer client. One queue holds records and callbacks, and both are served on the thread that polls."""

    def __init__(self, broker: MemoryBroker, config: dict[str, Any]) -> None:
        self._broker = broker
        self._on_commit = config["on_commit"]
        self._queue: deque[MemoryMessage | _Rebalance | Callable[[], None]] = deque()
        self._assignments = 0
        self.owned: dict[Partition, _Owned] = {}
        broker.generation += 1
        broker.member = self

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:
        self._on = {"assign": callbacks["on_assign"], "revoke": callbacks["on_revoke"], "lose": callbacks["on_lost"]}

    def rebalance(self, kind: str, partitions: Sequence[Partition]) -> None:
        self._queue.append(_Rebalance(kind, lambda: self._on[kind](self, _positions(partitions))))

    def poll(self, timeout: float) -> MemoryMessage | None:
        self._fetch()
        message = self._next()
        if message is None:
            self._broker.clock.advance(timeout)
            self._fetch()
            message = self._next()
        return message

    def consume(self, count: int, timeout: float) -> list[MemoryMessage]:
        self._fetch()
        messages: list[MemoryMessage] = []
        # Without waiting no partition arrives that one left within the same call: joining again takes a round trip.
        while len(messages) < count and (message := self._next(assigning=False)) is not None:
            messages.append(message)
        self._fetch()  # for a rebalance to land behind
        return messages

    def _fetch(self) -> None:
        for partition, owned in self.owned.items():
            if owned.paused or self._broker.away or self._broker.is_unstable(partition):
                continue
            if owned.fetch_at is None:
                owned.fetch_at = owned.app_at = self._broker.committed.get(partition, 0)
            values = self._broker.inputs.get(partition, [])
            if owned.fetch_at > len(values):  # out of range: auto.offset.reset
                owned.fetch_at = owned.app_at = 0
            for offset in range(owned.fetch_at, min(len(values), owned.app_at + PREFETCH)):
                headers = self._broker.own_headers.get((partition, offset), self._broker.headers)
                self._queue.append(MemoryMessage(partition, offset, values[offset], headers, owned.assignment))
                owned.fetch_at = offset + 1
            if owned.fetch_at == len(values) != owned.ended_at:
                owned.ended_at = owned.fetch_at
                self._queue.append(EndOfPartition(partition, owned.fetch_at, None, [], owned.assignment))

    def _next(self, *, assigning: bool = True) -> MemoryMessage | None:
        while self._queue:
            head = self._queue[0]
            if isinstance(head, _Rebalance) and head.kind == "assign" and not assigning:
                return None
            self._queue.popleft()
            if not isinstance(head, MemoryMessage):
                head()
                continue
            owned = self.owned.get(head.where)
            if owned is not None and owned.assignment == head.assignment and owned.app_at == head.offset():
                owned.app_at = head.offset() + (not isinstance(head, EndOfPartition))
                return head
        return None

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        for position, partition in zip(partitions, _partitions(partitions), strict=True):
            assert partition not in self.owned, "assigned twice"
            self._assignments += 1
            self.owned[partition] = _Owned(self._assignments)
            if position.offset == OFFSET_BEGINNING:
                self.owned[partition].fetch_at = 0

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        for partition in _partitions(partitions):
            del self.owned[partition]

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.owned.clear()
        self.incremental_assign(partitions)

    def unassign(self) -> None:
        self.owned.clear()

    def pause(self, partitions: list[TopicPartition]) -> None:
        for partition in _partitions(partitions):
            owned = self.owned[partition]
            owned.paused = True
            if owned.fetch_at is not None:
                # What was fetched ahead is thrown away, and fetched again later.
                owned.fetch_at = owned.app_at
                owned.ended_at = None
        self._queue = deque(op for op in self._queue if not isinstance(op, MemoryMessage) or self._flows(op))

    def _flows(self, message: MemoryMessage) -> bool:
        owned = self.owned.get(message.where)
        return owned is not None and not owned.paused

    def resume(self, partitions: list[TopicPartition]) -> None:
        for partition in _partitions(partitions):
            self.owned[partition].paused = False

    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool) -> None:
        for position in offsets:
            assert Partition(position.topic, position.partition) in self.owned, f"{position} is not ours to commit"
        if self._broker.away and not asynchronous:
            self._broker.clock.advance(COMMIT_PATIENCE_S)
        fault = self._broker.fault("commit")
        if fault is None or fault.applied:
            self._broker.store(offsets)
            self._broker.overtake(_partitions(offsets))
        error = None if fault is None else fault.error
        if asynchronous:
            self._queue.append(lambda: self._on_commit(error, offsets))
        elif error is not None:
            raise KafkaException(error)

    def consumer_group_metadata(self) -> int:
        return self._broker.generation

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        asked = _partitions(partitions)
        fault = self._broker.fault("committed")
        if fault is not None or any(self._broker.is_unstable(partition) for partition in asked):
            self._broker.clock.advance(timeout)
            raise KafkaException((fault or retriable()).error)
        return [
            TopicPartition(p.topic, p.number, self._broker.committed.get(p, -1001), self._broker.metadata.get(p, ""))
            for p in asked
        ]

    def seek(self, position: TopicPartition) -> None:
        owned = self.owned[Partition(position.topic, position.partition)]
        owned.fetch_at = owned.app_at = max(0, position.offset)  # negative: the beginning
        owned.ended_at = None

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float | None = None, *, cached: bool = False
    ) -> tuple[int, int]:
        return 0, len(self._broker.inputs.get(Partition(partition.topic, partition.partition), []))

    def unsubscribe(self) -> None:
        self._queue.append(self._revoke_all)  # of what is owned by then: another rebalance may come first

    def _revoke_all(self) -> None:
        if self.owned:
            self._on["revoke"](self, _positions(list(self.owned)))

    def close(self) -> None:
        self._serve_callbacks()
        if self.owned:
            self._on["revoke"](self, _positions(list(self.owned)))
        self._serve_callbacks()  # answers to commits

    def _serve_callbacks(self) -> None:
        while self._queue:
            head = self._queue.popleft()
            if not isinstance(head, MemoryMessage):
                head()


class _Turn(Enum):
    READY = auto()
    OPEN = auto()
    BROKEN = auto()  # only abort_transaction helps
    COMMITTING = auto()  # only commit_transaction tells
    ABORTING = auto()  # only abort_transaction tells


@dataclass(frozen=True, slots=True)
class _Queued:
    output: Output
    on_delivery: Callable[[KafkaError | None, None], None]


class MemoryProducer:
    """The producer client, transactional if its configuration has an id."""

    def __init__(self, broker: MemoryBroker, config: dict[str, Any]) -> None:
        self._broker = broker
        self._transactional = "transactional.id" in config
        self._reports_success = not config.get("delivery.report.only.error")
        self._turn = _Turn.READY
        self._queue: deque[_Queued] = deque()
        self._reports: deque[Callable[[], None]] = deque()
        self._outputs: list[Output] = []
        self._settled = False
        self._epoch = broker.epoch
        self._batch_bytes: int = config.get("batch.size", 1_000_000)
        self._logger = config.get("logger")
        self._lines: deque[tuple[str, str]] = deque()

    def __len__(self) -> int:
        return len(self._queue) + len(self._reports)

    def init_transactions(self, timeout: float) -> None:
        self._meet("init_transactions")
        self._broker.settle(commit=False)  # what a predecessor left open
        self._broker.epoch += 1
        self._epoch = self._broker.epoch

    def produce(
        self,
        topic: str,
        *,
        value: bytes | None,
        key: bytes | None,
        headers: list[tuple[str, bytes | None]],
        timestamp: int,
        on_delivery: Callable[[KafkaError | None, None], None],
    ) -> None:
        if self._transactional:
            self._expect(_Turn.OPEN)
        self._meet("produce")
        output = Output(OutputKind.RESULT, topic, key, value, tuple(headers), timestamp)
        if len(self._queue) >= self._broker.queue_limit:
            raise BufferError("queue full")
        if _size_bytes(output) > self._broker.client_limit_bytes:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        self._queue.append(_Queued(output, on_delivery))

    def poll(self, timeout: float) -> int:
        while self._lines and self._logger is not None:
            facility, text = self._lines.popleft()
            self._logger.log(10, "%s [%s] %s", facility, "rdkafka#producer-1", text)
        if timeout:
            self._send()
            if not self._reports:
                self._broker.clock.advance(timeout)
        self._report()
        return 0

    def flush(self, timeout: float) -> int:
        if timeout >= self._broker.round_trip_s:
            if self._queue and not self._broker.away:
                self._broker.clock.advance(self._broker.round_trip_s)
            self._send()
        if self._queue:
            self._broker.clock.advance(timeout)
        self._report()
        return len(self._queue)

    def _send(self) -> None:
        """What librdkafka does on a thread of its own, at any time. Its reports wait to be served."""
        if self._broker.away:
            return
        # What waits for a topic goes in one batch, save what is larger than one. The broker refuses batches whole.
        refused: dict[str, KafkaError] = {}
        batches: dict[str, int] = defaultdict(int)
        for one in self._queue:
            if not self._is_alone(one.output):
                topic = one.output.topic
                batches[topic] = min(self._batch_bytes, batches[topic] + _size_bytes(one.output))
                if (error := self._refusal(one.output)) is not None:
                    refused[topic] = error
                elif batches[topic] > self._broker.broker_limit_bytes:
                    refused[topic] = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        while self._queue:
            queued = self._queue.popleft()
            is_alone = self._is_alone(queued.output)
            error = self._refusal(queued.output) if is_alone else refused.get(queued.output.topic)
            if error is None:
                (self._outputs if self._transactional else self._broker.visible).append(queued.output)
            elif self._turn is _Turn.OPEN:
                self._turn = _Turn.BROKEN
            if error is not None or self._reports_success:
                self._reports.append(partial(queued.on_delivery, error, None))

    def _is_alone(self, output: Output) -> bool:
        return _size_bytes(output) > self._batch_bytes

    def _report(self) -> None:
        while self._reports:
            self._reports.popleft()()

    def _refusal(self, output: Output) -> KafkaError | None:
        if output.topic in self._broker.unwritable:
            return KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
        if _size_bytes(output) > self._broker.broker_limit_bytes:
            return KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
        if (output.timestamp_ms or 0) > self._broker.latest_timestamp_ms:
            return KafkaError(KafkaError.INVALID_TIMESTAMP)
        return None

    def begin_transaction(self) -> None:
        self._expect(_Turn.READY)
        self._turn = _Turn.OPEN
        self._outputs = []
        self._settled = False

    def send_offsets_to_transaction(self, offsets: list[TopicPartition], metadata: int, timeout: float) -> None:
        self._send()
        self._expect(_Turn.OPEN)
        self._meet_late_ends()
        if metadata != self._broker.generation:
            raise KafkaException(abortable(KafkaError.ILLEGAL_GENERATION).error)
        self._meet("send_offsets_to_transaction", timeout)
        assert self._broker.undecided is None
        self._broker.undecided = Undecided(self._outputs, offsets)

    def commit_transaction(self, timeout: float) -> None:
        self._expect(_Turn.OPEN, _Turn.COMMITTING)
        if self._turn is _Turn.OPEN and self.flush(timeout):
            raise KafkaException(retriable().error)  # still open: the same call again
        self._expect(_Turn.OPEN, _Turn.COMMITTING)
        self._turn = _Turn.COMMITTING
        self._meet("commit_transaction", timeout, then=lambda: self._settle(commit=True))
        self._settle(commit=True)
        self._turn = _Turn.READY

    def abort_transaction(self, timeout: float) -> None:
        self._expect(_Turn.OPEN, _Turn.BROKEN, _Turn.ABORTING)
        self._turn = _Turn.ABORTING
        self.purge()
        self._meet("abort_transaction", timeout, then=lambda: self._settle(commit=False))
        self._settle(commit=False)
        self._turn = _Turn.READY

    def _meet_late_ends(self) -> None:
        """What arrives late ends the transaction that is open now, if it comes from the same epoch (KIP-890)."""
        late = [end for end in self._broker.late_ends if end.epoch == self._epoch]
        self._broker.late_ends.clear()
        for end in late:
            if end.commits:
                self._broker.visible += self._outputs
            self._outputs = []
            if end.commits:  # the offsets belong to no transaction then
                raise KafkaException(fatal(KafkaError.INVALID_TXN_STATE).error)

    def _settle(self, *, commit: bool) -> None:
        if self._broker.lost_ends:
            self._broker.lost_ends -= 1
            self._broker.late_ends.append(_LateEnd(self._epoch, commit))
            self._lines.append(("ENDTXN", "EndTxn returned _TRANSPORT in state EndingTransaction (may_retry=true)"))
        if self._broker.logs_ends:
            self._lines.append(("ENDTXN", "EndTxn returned NO_ERROR in state EndingTransaction (may_retry=true)"))
        if not self._settled:
            self._settled = True
            if commit and self._broker.undecided is None:
                self._broker.visible += self._outputs  # committed without offsets
            self._broker.settle(commit=commit)

    def purge(self, *, in_queue: bool = True, in_flight: bool = True) -> None:
        while self._queue:
            purged = self._queue.popleft()
            self._reports.append(partial(purged.on_delivery, KafkaError(KafkaError._PURGE_QUEUE), None))
        self._report()

    def _expect(self, *turns: _Turn) -> None:
        if self._turn not in turns:
            if self._turn is _Turn.BROKEN:
                raise KafkaException(abortable(KafkaError._STATE).error)
            raise AssertionError(f"librdkafka refuses this call while {self._turn.name}")

    def _meet(self, call: str, timeout: float = 0.0, then: Callable[[], None] | None = None) -> None:
        """Raise what stands between this call and the broker, if anything."""
        fault = self._broker.fault(call) if call != "produce" or self._broker.faults[call] else None
        if fault is None:
            return
        if fault.error.retriable():
            self._broker.clock.advance(timeout)
        if fault.applied and then is not None:
            then()
        if fault.error.txn_requires_abort():
            self._turn = _Turn.BROKEN
        raise KafkaException(fault.error)


def _positions(partitions: Sequence[Partition]) -> list[TopicPartition]:
    return [TopicPartition(p.topic, p.number) for p in partitions]


def _partitions(positions: Sequence[TopicPartition]) -> list[Partition]:
    return [Partition(p.topic, p.partition) for p in positions]


def _size_bytes(output: Output) -> int:
    def headers_bytes(headers: Headers) -> int:
        return sum(len(name) + len(value or b"") for name, value in headers)

    return len(output.key or b"") + len(output.value or b"") + headers_bytes(output.headers)
