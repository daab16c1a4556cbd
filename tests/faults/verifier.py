"""The independent verifier: reads input, output and dead letters as any consumer would, and accounts for every input.

It shares no code with the worker's delivery: plain read_committed consumers, and the shipped schema to read results.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from worker.avro.codec import Codecs
from worker.messages import Headers


@dataclass(frozen=True, slots=True)
class Topics:
    """The three topics of a scenario."""

    requests: str
    results: str
    dead_letters: str

    def environment(self) -> dict[str, str]:
        """As settings of a worker."""
        return {
            "XNLI_TOPICS__INPUT": self.requests,
            "XNLI_TOPICS__OUTPUT": self.results,
            "XNLI_TOPICS__DEAD_LETTER": self.dead_letters,
        }


@dataclass(frozen=True, slots=True)
class Account:
    """What became of the inputs.

    ``lost`` have neither result nor dead letter; ``duplicated`` have more than one of them. ``buried`` are the keys of
    the dead letters. ``out_of_order`` counts results that came after one of a later request of the same partition;
    repeated results are left out, because at-least-once may repeat a tail.
    """

    inputs: int
    results: int
    dead_letters: int
    lost: tuple[str, ...]
    duplicated: tuple[str, ...]
    buried: frozenset[str]
    out_of_order: int
    reasons: dict[str, int]


def request(key: str, text: str, labels: Iterable[str] = ("a", "b")) -> bytes:
    """A valid request in single-object encoding."""
    from worker.avro import json_request  # noqa: PLC0415 (keeps the module importable where fastavro is not)

    return _CODECS.encode_request(json_request.request({"id": key, "text": text, "labels": list(labels)}))[0]


_CODECS = Codecs()


def _client(bootstrap_servers: str) -> dict[str, str | int]:
    """Silent, and soon back: brokers that are away are what is being tested."""
    return {"bootstrap.servers": bootstrap_servers, "log_level": 0, "reconnect.backoff.max.ms": 500}


def send(bootstrap_servers: str, topic: str, records: Iterable[tuple[str, bytes | None]]) -> int:
    """Produce records, in order, keyed; return how many were acknowledged. Fails unless all were."""
    producer = Producer(
        {
            **_client(bootstrap_servers),
            "enable.idempotence": True,
            "linger.ms": 20,
            "partitioner": "murmur2_random",
            "message.max.bytes": 16_000_000,
        }
    )
    failed: list[KafkaError] = []
    count = 0
    for key, value in records:
        while True:
            try:
                producer.produce(topic, value=value, key=key, on_delivery=lambda e, _: failed.append(e) if e else None)
            except BufferError:
                producer.poll(0.1)
            else:
                break
        producer.poll(0)
        count += 1
    left = producer.flush(60)
    if left or failed:
        raise AssertionError(f"{left} records not acknowledged, {len(failed)} failed: {failed[:1]}")
    return count


def read_all(bootstrap_servers: str, topic: str, isolation: str = "read_committed") -> list[Message]:
    """All records of a topic, partition by partition in offset order.

    Waits for transactions that a dead worker left open: until the broker aborts them, a read_committed reader is held
    back at the first of their records, and what lies behind it would look lost.
    """
    consumer = Consumer(
        {
            **_client(bootstrap_servers),
            "group.id": f"verifier-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "isolation.level": isolation,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        numbers = list(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers])
        open_partitions, messages = set(numbers), list[Message]()
        deadline_s = time.monotonic() + 120
        while open_partitions and time.monotonic() < deadline_s:
            for message in consumer.consume(1000, 0.2):
                error = message.error()
                if error is None:
                    messages.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    number = message.partition() or 0
                    # The end of the log, of which a fetch tells. Asked for, it would be the last stable offset.
                    _, high = consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
                    if (message.offset() or 0) >= high:
                        open_partitions.discard(number)
        if open_partitions:
            raise AssertionError(f"{topic}: no end of partitions {open_partitions}")
    finally:
        consumer.close()
    return sorted(messages, key=lambda m: (m.partition() or 0, m.offset() or 0))


def count(bootstrap_servers: str, *topics: str) -> int:
    """Records (control records included) in topics, from the watermarks: cheap enough to wait on."""
    consumer = Consumer({**_client(bootstrap_servers), "group.id": "watermarks"})
    try:
        total = 0
        for topic in topics:
            for number in consumer.list_topics(topic, timeout=30).topics[topic].partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
                total += high - low
        return total
    finally:
        consumer.close()


def group_lag(bootstrap_servers: str, group: str, topic: str) -> int:
    """Records between the group's committed offsets and the end of the topic."""
    consumer = Consumer({**_client(bootstrap_servers), "group.id": group, "enable.auto.commit": False})
    try:
        numbers = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        lag = 0
        for position in _committed(consumer, [TopicPartition(topic, number) for number in numbers]):
            low, high = consumer.get_watermark_offsets(TopicPartition(topic, position.partition), timeout=30)
            lag += high - (position.offset if position.offset >= 0 else low)
        return lag
    finally:
        consumer.close()


def _committed(consumer: Consumer, partitions: list[TopicPartition]) -> list[TopicPartition]:
    """Committed offsets, asked for again while the group has no coordinator yet."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            return consumer.committed(partitions, timeout=30)
        except KafkaException:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.2)


class Watch:
    """Sees records arrive in a topic, uncommitted ones too, within a millisecond or two."""

    def __init__(self, bootstrap_servers: str, topic: str) -> None:
        self._consumer = Consumer(
            {
                **_client(bootstrap_servers),
                "group.id": "watch",
                "enable.auto.commit": False,
                "isolation.level": "read_uncommitted",
            }
        )
        numbers = self._consumer.list_topics(topic, timeout=30).topics[topic].partitions
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in numbers])

    def arrived(self, timeout_s: float) -> bool:
        """True as soon as a record arrives that was not there when this was called; False if none does in time."""
        while self._consumer.consume(10_000, 0):  # what has been fetched meanwhile
            pass
        return self._consumer.poll(timeout_s) is not None

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def _headers(message: Message) -> Headers:
    raw: Any = message.headers() or ()
    return tuple((name, value) for name, value in raw)


class Progress:
    """How far a group has come on a topic, asked again and again: one connection, and no answer during an outage."""

    def __init__(self, bootstrap_servers: str, group: str, topic: str) -> None:
        self._topic = topic
        self._consumer = Consumer(
            {
                **_client(bootstrap_servers),
                "group.id": group,
                "enable.auto.commit": False,
            }
        )
        numbers = self._consumer.list_topics(topic, timeout=30).topics[topic].partitions
        self._partitions = [TopicPartition(topic, number) for number in numbers]

    def committed(self) -> dict[int, int] | None:
        """The offset committed for each partition, 0 where none is; None while the cluster does not say."""
        try:
            found = self._consumer.committed(self._partitions, timeout=2)
        except KafkaException:
            return None
        return {p.partition: max(0, p.offset) for p in found}

    def lag(self) -> int | None:
        """Records behind the committed offsets; None while the cluster does not say."""
        committed = self.committed()
        if committed is None:
            return None
        try:
            ends = [self._consumer.get_watermark_offsets(p, timeout=2)[1] for p in self._partitions]
        except KafkaException:
            return None
        return sum(ends) - sum(committed.values())

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()


def account(
    bootstrap_servers: str, topics: Topics, codecs: Codecs = _CODECS, *, unordered: Collection[str] = ()
) -> Account:
    """Hold results and dead letters against the inputs, by key; every input must have a key of its own.

    Nothing is asked of the order of ``unordered`` keys: they went through a retry topic.
    """
    inputs = [m for m in read_all(bootstrap_servers, topics.requests) if m.value() is not None]
    results = read_all(bootstrap_servers, topics.results)
    letters = read_all(bootstrap_servers, topics.dead_letters)
    answered = Counter(bytes(m.key() or b"") for m in results) + Counter(bytes(m.key() or b"") for m in letters)
    keys = [bytes(m.key() or b"") for m in inputs]
    # Results of one input partition, in one output partition, must come by rising source offset.
    out_of_order = 0
    last: dict[tuple[int, int], int] = defaultdict(lambda: -1)
    seen: set[bytes] = set()
    for message in results:
        key = bytes(message.key() or b"")
        if key in seen or key.decode() in unordered:
            continue
        seen.add(key)
        source = codecs.read_result(message.value() or b"", _headers(message))["source"]
        lane = (int(source["partition"]), message.partition() or 0)
        if source["offset"] < last[lane]:
            out_of_order += 1
        last[lane] = max(last[lane], source["offset"])
    reasons: Counter[str] = Counter()
    for message in letters:
        reasons[(dict(_headers(message)).get("xnli.dlq.reason") or b"?").decode()] += 1
    return Account(
        inputs=len(inputs),
        results=len(results),
        dead_letters=len(letters),
        lost=tuple(k.decode() for k in keys if not answered[k]),
        duplicated=tuple(k.decode() for k, n in answered.items() if n > 1),
        buried=frozenset(bytes(m.key() or b"").decode() for m in letters),
        out_of_order=out_of_order,
        reasons=dict(reasons),
    )
