"""Delivery over real clients: one suite for the embedded broker and for Kafka, with a model that only obeys.

What has to do with transactions runs on Kafka alone: those of the embedded broker are hollow.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from prometheus_client import CollectorRegistry

from tests.brokers.kafka import Kafka
from tests.builders import followed_sets
from tests.delivery.doubles import Codec, Engine, answered, encode
from worker.http.health import Health
from worker.kafka import client_config
from worker.kafka.at_least_once import AtLeastOncePublisher
from worker.kafka.consumer import Consumer as WorkerConsumer
from worker.kafka.embedded import EmbeddedBroker
from worker.kafka.fencing import RecoveringPublisher
from worker.kafka.publisher import Publisher
from worker.kafka.transactional import TransactionalPublisher
from worker.kafka.trial import Trial
from worker.messages import Output, OutputKind
from worker.pipeline.batch import BATCHES_IN_HAND, BatchPolicy
from worker.pipeline.infer import InferenceThread
from worker.pipeline.resolve import Policy
from worker.pipeline.wiring import open_loop
from worker.rules.dead_letter import DeadLetterSource
from worker.rules.dead_letter_limit import DeadLetterLimits
from worker.rules.retry import RetryPolicy
from worker.settings import KafkaSettings
from worker.telemetry.metrics import Metrics

PARTITIONS = 4  # what the embedded broker gives every topic
BATCH = BatchPolicy(max_messages=16, max_tokens=10_000, max_wait_s=0.02)
RETRY = RetryPolicy(max_attempts=3, initial_s=0.02, max_s=0.2, multiplier=2.0, jitter=1.0)
LIMIT_S = 30.0


@dataclass
class Bench:
    """A broker with topics of our own, and a guarantee."""

    bootstrap_servers: str
    create: Callable[[str, dict[str, str]], None]
    exactly_once: bool
    name: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def __post_init__(self) -> None:
        self.input, self.output, self.dead_letters = (f"{self.name}-{what}" for what in ("in", "out", "dead"))
        for topic in (self.input, self.dead_letters):
            self.create(topic, {})

    def send(self, *values: bytes | None, key: Callable[[int], bytes] = lambda i: b"key %d" % (i % 23)) -> None:
        producer = Producer({"bootstrap.servers": self.bootstrap_servers, "partitioner": "murmur2_random"})
        for i, value in enumerate(values):
            producer.produce(self.input, value, key(i), headers=[("traceparent", b"00-1")], timestamp=1_000 + i)
        assert producer.flush(LIMIT_S) == 0

    def read(self, topic: str, count: int) -> list[Message]:
        """At least ``count`` committed records, in order within each partition, and what else there is by then."""
        reader = Consumer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "group.id": uuid.uuid4().hex,
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
            }
        )
        reader.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
        messages: list[Message] = []
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            found = reader.consume(1_000, 0.3)
            messages += found
            if not found and len(messages) >= count:
                break
        reader.close()
        return messages

    def committed(self) -> int:
        """Records of the input topic that the group has behind it."""
        asker = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": self.name})
        found = asker.committed([TopicPartition(self.input, number) for number in range(PARTITIONS)], timeout=LIMIT_S)
        asker.close()
        return sum(max(0, position.offset) for position in found)


class Worker:
    """The real stages, turned by the test."""

    def __init__(self, bench: Bench, instance: str = "one") -> None:
        settings = KafkaSettings(
            bootstrap_servers=bench.bootstrap_servers,
            group_id=bench.name,
            consumer_properties={"session.timeout.ms": 6_000, "heartbeat.interval.ms": 200},
        )
        self.engine = Engine()
        self.registry = CollectorRegistry()
        consumer = WorkerConsumer(client_config.consumer(settings))
        self.consumer = consumer
        publisher: Publisher
        if bench.exactly_once:
            config = client_config.producer(settings, transactional_id=f"{bench.name}-{instance}")
            publisher = RecoveringPublisher(
                lambda most_bytes: TransactionalPublisher(
                    config if most_bytes is None else config | {"batch.size": most_bytes}, consumer, time.monotonic
                ),
                lambda: Trial(config, consumer, time.monotonic),
                consumer,
                consumer.commits.committed,
                time.monotonic,
            )
        else:
            publisher = AtLeastOncePublisher(client_config.producer(settings, None), consumer, time.monotonic)
        publisher.start(LIMIT_S)
        health = Health(loop_limit_s=60, inference_limit_s=60)
        codec = Codec(bench.output)
        self.inference = InferenceThread(
            self.engine, RETRY, time.monotonic, health.inference_beat, health.inference_idle
        )
        self.loop = open_loop(
            consumer=consumer,
            publisher=publisher,
            inference=self.inference,
            read=codec.read,
            encode=encode,
            write=codec.write,
            refusal=lambda *_: None,
            batch=BATCH,
            policy=Policy(RETRY, DeadLetterSource(bench.dead_letters, bench.name, instance), DeadLetterLimits()),
            max_age_s=None,
            metrics=Metrics(self.registry),
            health=health,
        )
        self.loop.start([bench.input])

    def counted(self, metric: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"xnli_worker_{metric}", labels) or 0.0

    def close(self) -> None:
        self.inference.stop(5.0)
        self.loop.close()


def until(done: Callable[[], bool], *workers: Worker) -> None:
    """Turn the workers until something is true."""
    deadline_s = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline_s, "this takes too long"
        for worker in workers:
            worker.loop.step()


def answers(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Partition and offset of the requests that messages answer."""
    found = []
    for message in messages:
        output = Output(OutputKind.RESULT, message.topic() or "", message.key(), message.value(), ())
        where, offset = answered(output)
        found.append((where.number, offset))
    return found


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(
    params=[
        "embedded-at_least_once",
        pytest.param("kafka-at_least_once", marks=pytest.mark.kafka),
        pytest.param("kafka-exactly_once", marks=pytest.mark.kafka),
    ]
)
def bench(request: pytest.FixtureRequest) -> Bench:
    where, guarantee = request.param.split("-")
    if where == "embedded":
        embedded: EmbeddedBroker = request.getfixturevalue("embedded")
        made = Bench(embedded.bootstrap_servers, lambda topic, _: embedded.create(topic), exactly_once=False)
        made.create(made.output, {})
        return made
    kafka: Kafka = request.getfixturevalue("kafka")
    made = Bench(
        kafka.bootstrap_servers,
        lambda topic, config: kafka.create_topic(topic, PARTITIONS, config),
        exactly_once=guarantee == "exactly_once",
    )
    # A small limit, for the test of what is over it.
    made.create(made.output, {"max.message.bytes": "200000"})
    return made


@pytest.fixture
def workers(bench: Bench) -> Iterator[Callable[[str], Worker]]:
    made: list[Worker] = []

    def start(instance: str = "one") -> Worker:
        made.append(Worker(bench, instance))
        made[-1].inference.start()
        return made[-1]

    yield start
    for worker in made:
        worker.close()


Start = Callable[..., Worker]


def _on_kafka(request: pytest.FixtureRequest, why: str) -> None:
    if "embedded" in request.node.callspec.id:
        pytest.skip(why)


def test_results_lie_where_java_would_put_them_with_the_requests_key_and_headers_in_order(
    bench: Bench, workers: Start
) -> None:
    bench.send(*[b"flaky 1" if i % 31 == 5 else b"ok" for i in range(300)])
    worker = workers()
    until(lambda: worker.counted("records_published_total") == 300, worker)
    assert worker.counted("records_retried_total") >= 9
    results = bench.read(bench.output, 300)
    for result in results:
        assert dict(result.headers() or ()) == {"traceparent": b"00-1"}
        assert result.partition() == (murmur2(result.key() or b"") & 0x7FFFFFFF) % PARTITIONS
    order: dict[int, list[int]] = defaultdict(list)
    for number, offset in answers(results):
        order[number].append(offset)
    # Requests and results are partitioned alike, so an output partition is fed by one input partition.
    assert all(offsets == list(range(len(offsets))) for offsets in order.values())
    assert sum(map(len, order.values())) == 300


def test_dead_letters_say_why_and_tombstones_are_counted(bench: Bench, workers: Start) -> None:
    bench.send(b"ok", b"garbage", None, b"poison", b"ok", b"mute", None)
    worker = workers()
    until(
        lambda: not worker.loop.in_flight and worker.counted("records_consumed_total", topic=bench.input) == 7, worker
    )
    assert len(bench.read(bench.output, 2)) == 2
    letters = bench.read(bench.dead_letters, 3)
    assert sorted(letter.value() or b"" for letter in letters) == [b"garbage", b"mute", b"poison"]
    for letter in letters:
        headers = dict(letter.headers() or ())
        assert headers["traceparent"] == b"00-1"
        assert headers["xnli.dlq.topic"] == bench.input.encode()
        assert headers["xnli.dlq.group"] == bench.name.encode()
        assert headers["xnli.dlq.replays"] == b"0"
        assert headers["xnli.dlq.timestamp"] == b"%d" % letter.timestamp()[1]
        assert headers["xnli.dlq.reason"] == (b"malformed" if letter.value() == b"garbage" else b"inference")
        assert headers["xnli.dlq.attempts"] == (b"1" if letter.value() == b"garbage" else b"3")
        assert {f"xnli.dlq.{n}" for n in ("stage", "error", "message", "stacktrace", "worker", "partition")} <= set(
            headers
        )
    assert worker.counted("tombstones_total") == 2


def test_a_result_over_the_topics_limit_becomes_a_dead_letter_and_nothing_else_does(
    bench: Bench, workers: Start, request: pytest.FixtureRequest
) -> None:
    """Kafka refuses a whole request of the producer, and so neighbours of the one that is too large."""
    _on_kafka(request, "the embedded broker has no limit per topic")
    bench.send(*[b"large" if i == 40 else b"ok" for i in range(80)], key=lambda _: b"one partition")
    worker = workers()
    until(
        lambda: not worker.loop.in_flight and worker.counted("records_consumed_total", topic=bench.input) == 80, worker
    )
    letters = bench.read(bench.dead_letters, 1)
    assert [(letter.value(), dict(letter.headers() or ())["xnli.dlq.reason"]) for letter in letters] == [
        (b"large", b"too_large")
    ]
    found = answers(bench.read(bench.output, 79))
    assert len(set(found)) == 79
    assert bench.exactly_once is False or len(found) == 79


def test_a_model_that_is_slow_bounds_what_is_in_hand(bench: Bench, workers: Start) -> None:
    bench.send(*[b"ok"] * 1_000)
    worker = Worker(bench)
    until(lambda: worker.consumer.paused, worker)
    for _ in range(100):
        worker.loop.step()
        assert worker.loop.in_flight <= (BATCHES_IN_HAND + 1) * BATCH.max_messages
    worker.inference.start()
    until(lambda: worker.counted("records_published_total") == 1_000, worker)
    worker.close()
    assert len(set(answers(bench.read(bench.output, 1_000)))) == 1_000


def test_a_drain_commits_everything_in_hand(bench: Bench, workers: Start, request: pytest.FixtureRequest) -> None:
    _on_kafka(request, "every rebalance of the embedded broker takes three seconds")
    bench.send(*[b"ok"] * 50)
    worker = workers()
    until(lambda: worker.loop.in_flight > 0, worker)
    assert worker.loop.drain(LIMIT_S)
    worker.close()
    read = int(worker.counted("records_consumed_total", topic=bench.input))
    assert read > 0
    assert bench.committed() == read
    assert len(bench.read(bench.output, read)) == read
    second = workers("two")
    until(lambda: worker.counted("records_published_total") + second.counted("records_published_total") == 50, second)
    assert sorted(answers(bench.read(bench.output, 50))) == sorted(set(answers(bench.read(bench.output, 50))))


def test_partitions_move_between_two_workers_and_nothing_is_lost(
    bench: Bench, workers: Start, request: pytest.FixtureRequest
) -> None:
    _on_kafka(request, "every rebalance of the embedded broker takes three seconds")
    bench.send(*[b"ok"] * 200)
    first = workers("one")
    until(lambda: first.counted("records_published_total") > 20, first)
    second = workers("two")
    bench.send(*[b"ok"] * 200)
    until(lambda: len(second.consumer.assignment) == PARTITIONS // 2, first, second)
    bench.send(*[b"ok"] * 200)
    both = (first, second)
    until(lambda: sum(worker.counted("records_published_total") for worker in both) >= 600, *both)
    assert first.loop.drain(LIMIT_S)
    first.close()
    bench.send(*[b"ok"] * 100)
    until(lambda: bool(second.consumer.assignment) and len(second.consumer.assignment) == PARTITIONS, second)
    until(lambda: sum(worker.counted("records_published_total") for worker in both) >= 700, second)
    found = answers(bench.read(bench.output, 700))
    assert len(set(found)) == 700
    assert len(found) == 700, "moved in good order, nothing is answered twice under either guarantee"


def test_label_sets_are_read_to_the_end_and_followed(bench: Bench) -> None:
    topic = f"{bench.name}-sets"
    bench.create(topic, {"cleanup.policy": "compact"})
    producer = Producer({"bootstrap.servers": bench.bootstrap_servers})

    def write(name: str, value: bytes | None) -> None:
        producer.produce(topic, value, name.encode())
        assert producer.flush(LIMIT_S) == 0

    write("moods", json.dumps(["happy", "sad"]).encode())
    write("topics", b'["wrong", 1]')
    write("gone", b'["a"]')
    write("gone", None)
    admin = AdminClient({"bootstrap.servers": bench.bootstrap_servers})
    sets = followed_sets(bench.bootstrap_servers, admin, topic)
    sets.load(lambda: False)

    def labels() -> dict[str, tuple[str, ...]]:
        found = {name: sets.stored.find(name, None) for name in sets.stored}
        return {name: label_set.labels for name, label_set in found.items() if label_set is not None}

    assert labels() == {"moods": ("happy", "sad")}
    write("moods", json.dumps(["glad"]).encode())
    deadline_s = time.monotonic() + LIMIT_S
    while labels()["moods"] != ("glad",) and time.monotonic() < deadline_s:
        sets.refresh()
        time.sleep(0.01)
    assert labels() == {"moods": ("glad",)}
    sets.close()


def murmur2(data: bytes) -> int:
    """The hash of Java's default partitioner (`org.apache.kafka.common.utils.Utils.murmur2`), unsigned."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(data)
    whole = len(data) // 4 * 4
    for i in range(0, whole, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


@pytest.mark.parametrize(
    ("data", "java"),
    [(b"21", -973932308), (b"foobar", -790332482), (b"abc", 479470107), (b"a-little-bit-long-string", -985981536)],
)
def test_our_murmur2_is_javas(data: bytes, java: int) -> None:
    """The vectors of Kafka's own UtilsTest."""
    assert murmur2(data) == java & 0xFFFFFFFF
