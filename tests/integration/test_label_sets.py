"""The topic of label sets while a worker runs: what is written takes effect, made again it is read again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewPartitions

from tests.brokers.kafka import Kafka
from tests.builders import followed_sets
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, account, group_lag, read_all
from tests.faults.workers import WorkerProcess, wait_until
from worker.avro import json_request
from worker.avro.codec import Codecs
from worker.label_sets.topic import FollowedSets

pytestmark = pytest.mark.kafka

# The broker stamps what it writes, so that times of different topics and producers compare.
STAMPED = {"message.timestamp.type": "LogAppendTime"}


@pytest.fixture
def name(topic: TopicFactory) -> str:
    return topic("label-sets", config={"cleanup.policy": "compact"} | STAMPED)


@pytest.fixture
def sets(kafka: Kafka, name: str) -> Iterator[FollowedSets]:
    found = followed_sets(kafka.bootstrap_servers, kafka.admin(), name)
    _write(kafka, name, 0, "old")
    found.load(lambda: False)
    yield found
    found.close()


def _write(kafka: Kafka, topic: str, partition: int, key: str) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    producer.produce(topic, key=key, value=b'["a", "b"]', partition=partition)
    assert producer.flush(20) == 0


def _until(sets: FollowedSets, condition: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        sets.refresh()
        time.sleep(0.01)


@pytest.mark.timeout(60)
def test_a_topic_made_again_is_read_again(kafka: Kafka, name: str, sets: FollowedSets) -> None:
    """At once: before it has been asked again which topic is there."""
    assert set(sets.stored) == {"old"}
    kafka.make_again(name)
    _write(kafka, name, 0, "new")
    _until(sets, lambda: set(sets.stored) == {"new"})


@pytest.mark.timeout(60)
@pytest.mark.acceptance
def test_partitions_added_later_are_read(kafka: Kafka, name: str, sets: FollowedSets) -> None:
    admin = kafka.admin()  # held until the answer
    admin.create_partitions([NewPartitions(name, 2)])[name].result(timeout=20)
    time.sleep(0.5)
    _write(kafka, name, 1, "new")
    _until(sets, lambda: set(sets.stored) == {"old", "new"})


CODECS = Codecs()
RATE = 1_000
SECONDS = 10


def _requests_while_the_set_changes(kafka: Kafka, requests: str, put: Callable[[int], None]) -> None:
    """A thousand requests a second, and a new version of the set every two seconds."""
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 5})
    began_s = 0.0
    for i in range(RATE * SECONDS):
        if i % (2 * RATE) == RATE:
            put(i // (2 * RATE) + 1)
        datum = json_request.request({"id": f"k{i}", "text": f"plain {i}", "label_set": "policy"})
        producer.produce(requests, CODECS.encode_request(datum)[0], f"k{i}")
        producer.poll(0)
        if i == 0:
            assert producer.flush(20) == 0  # from now on it knows the topic
            began_s = time.monotonic()
        elif i % 20 == 0:
            time.sleep(max(0.0, began_s + i / RATE - time.monotonic()))
    assert producer.flush(20) == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_set_changes_while_a_thousand_requests_a_second_flow(
    kafka: Kafka, topic: TopicFactory, name: str, tmp_path: Path
) -> None:
    """Each result is wholly of one version, the new one within a second of its writing, and nothing is lost."""
    topics = Topics(topic("requests", partitions=4, config=STAMPED), topic("results", partitions=4), topic("dead"))
    writer = Producer({"bootstrap.servers": kafka.bootstrap_servers})

    def put(version: int) -> None:
        labels = [f"{version}-{label}" for label in "abc"]
        writer.produce(name, json.dumps({"version": f"v{version}", "labels": labels}), "policy")
        assert writer.flush(20) == 0

    put(0)
    settings = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_TOPICS__LABEL_SETS": name,
        "XNLI_LOG__FORMAT": "json",
    }
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        worker.wait_for("started")
        _requests_while_the_set_changes(kafka, topics.requests, put)
        total = RATE * SECONDS
        servers, group = kafka.bootstrap_servers, topics.requests
        wait_until(lambda: group_lag(servers, group, topics.requests) == 0, 60, "all results", worker, 0.5)
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.results, found.lost, found.duplicated, found.out_of_order, found.reasons) == (total, (), (), 0, {})

    written_ms = {}
    for message in read_all(kafka.bootstrap_servers, name):
        written_ms[json.loads(message.value() or b"")["version"]] = message.timestamp()[1]
    assert len(written_ms) == SECONDS // 2 + 1
    answered: dict[str, list[int]] = {version: [] for version in written_ms}
    for message in read_all(kafka.bootstrap_servers, topics.results):
        result: dict[str, Any] = CODECS.read_result(message.value() or b"", ())
        version = result["label_set"]["version"]
        assert result["label_set"]["name"] == "policy"
        labels = [scored["label"] for scored in result["outcome"]["labels"]]
        assert labels == [f"{version[1:]}-{label}" for label in "abc"]
        answered[version].append(result["source"]["timestamp"])
    # A sender that was held up catches up in a burst, which may pass over a version.
    assert sum(map(bool, answered.values())) >= 3
    late_ms = {
        version: max(answered[version]) - written_ms[following]
        for version, following in zip(written_ms, list(written_ms)[1:], strict=False)
        if answered[version]
    }
    assert max(late_ms.values()) < 1_000, f"after the next was written: {late_ms}"
