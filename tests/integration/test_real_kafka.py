"""The brokers of the tests are what they claim to be: transactions, both group protocols, death and return."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.brokers.kafka import BrokerFailed, Kafka, KafkaCluster
from tests.conftest import TopicFactory

pytestmark = pytest.mark.kafka


def _read(kafka: Kafka, topic: str, count: int, isolation: str = "read_committed") -> list[bytes]:
    """The first ``count`` values of partition 0, and whatever else comes with them."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "isolation.level": isolation,
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    values: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(values) < count and time.monotonic() < deadline:
        values += [message.value() or b"" for message in consumer.consume(100, timeout=0.5)]
    consumer.close()
    return values


def _producer(kafka: Kafka, **properties: str | int) -> Producer:
    return Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 0, **properties})


def test_a_read_committed_reader_sees_committed_records_only(kafka: Kafka, topic: TopicFactory) -> None:
    name = topic()
    producer = _producer(kafka, **{"transactional.id": uuid.uuid4().hex})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(name, b"aborted")
    producer.flush(30)
    producer.abort_transaction(30)
    producer.begin_transaction()
    producer.produce(name, b"committed")
    producer.commit_transaction(30)

    assert _read(kafka, name, 1) == [b"committed"]
    assert _read(kafka, name, 2, "read_uncommitted") == [b"aborted", b"committed"]


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_group_continues_from_what_it_committed(kafka: Kafka, topic: TopicFactory, protocol: str) -> None:
    name = topic()
    producer = _producer(kafka)
    for value in (b"one", b"two"):
        producer.produce(name, value)
    producer.flush(30)

    group = uuid.uuid4().hex
    seen: list[bytes | None] = []
    for _ in range(2):
        consumer = Consumer(
            {
                "bootstrap.servers": kafka.bootstrap_servers,
                "group.id": group,
                "group.protocol": protocol,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe([name])
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        consumer.commit(message=message, asynchronous=False)
        consumer.close()
        seen.append(message.value())
    assert seen == [b"one", b"two"]


def test_records_of_8_mb_are_taken(kafka: Kafka, topic: TopicFactory) -> None:
    name = topic(config={"max.message.bytes": str(9_000_000)})
    value = bytes(8_000_000)
    failures: list[object] = []
    producer = _producer(kafka, **{"message.max.bytes": 9_000_000})
    producer.produce(name, value, on_delivery=lambda error, _: failures.append(error) if error else None)
    producer.flush(30)
    assert failures == []
    assert _read(kafka, name, 1) == [value]


def test_a_missing_topic_is_not_created_by_asking(kafka: Kafka) -> None:
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("how a given broker treats a missing topic is its operator's choice")
    missing = f"missing-{uuid.uuid4().hex[:8]}"
    admin = kafka.admin()
    admin.list_topics(missing, timeout=30)
    assert missing not in admin.list_topics(timeout=30).topics


@pytest.mark.acceptance  # the fault matrix plays this with workers
def test_three_nodes_lose_nothing_when_one_is_killed_and_returns(
    kafka_cluster: KafkaCluster, cluster_topic: TopicFactory
) -> None:
    name = cluster_topic()
    producer = _producer(kafka_cluster, acks="all")
    failures: list[object] = []

    def produce(numbers: range) -> None:
        for number in numbers:
            producer.produce(name, b"%d" % number, on_delivery=lambda e, _: failures.append(e) if e else None)
        assert producer.flush(60) == 0

    produce(range(100))
    leader = kafka_cluster.leader(name, 0)
    kafka_cluster.kill(leader)
    produce(range(100, 200))  # the client finds the new leader by itself
    assert kafka_cluster.leader(name, 0) != leader
    kafka_cluster.restart(leader)  # returns once all three replicas are in sync again
    produce(range(200, 300))

    assert failures == []
    assert _read(kafka_cluster, name, 300) == [b"%d" % number for number in range(300)]


@pytest.mark.acceptance
def test_a_suspended_node_is_replaced_and_catches_up(kafka_cluster: KafkaCluster, cluster_topic: TopicFactory) -> None:
    name = cluster_topic()
    leader = kafka_cluster.leader(name, 0)
    kafka_cluster.suspend(leader)
    kafka_cluster.wait_ready()  # here: every partition is led by one of the other two
    successor = kafka_cluster.leader(name, 0)
    kafka_cluster.resume(leader)
    assert successor not in {leader, -1}


def test_a_broker_that_cannot_start_says_why(kafka: Kafka) -> None:
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("the machine may lack Java: the broker is a given one")
    cluster = KafkaCluster(properties={"num.io.threads": "none"})
    with pytest.raises(BrokerFailed, match=r"num\.io\.threads"):
        cluster.start()
    cluster.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills a child with its parent")
def test_a_server_does_not_outlive_a_killed_test_run(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.brokers.process import Process\n"
        "print(Process(['sleep', '600'], Path(sys.argv[1], 'log'), Path(sys.argv[1])).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    server = int(run.stdout.readline())
    _wait_until(lambda: _is_running(server))
    run.send_signal(signal.SIGKILL)
    run.communicate()
    _wait_until(lambda: not _is_running(server))


def _is_running(pid: int) -> bool:
    """A zombie does not run: where nothing reaps orphans it stays in the table."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()
