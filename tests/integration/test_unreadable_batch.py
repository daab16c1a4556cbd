"""A record batch that the client cannot read is passed, never silently, and its neighbours are answered."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Producer

from tests.brokers import segments
from tests.brokers.kafka import Kafka, KafkaCluster
from tests.conftest import TopicFactory
from tests.faults.endpoints import metric, page
from tests.faults.verifier import Topics, account, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

# A batch that gives neither records nor an error is noticed after 20 s, and asked about for two seconds an offset.
PATIENCE_S = 75.0
ZEROS = 120_000_000  # more than librdkafka unpacks by default; 3.7 kB on the wire


def _environment(kafka: Kafka, topics: Topics) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
    }


def _keys(kafka: Kafka, topic: str) -> list[bytes | None]:
    return [message.key() for message in read_all(kafka.bootstrap_servers, topic)]


def _send_together(kafka: Kafka, topic: str, keys: list[str], compression: str) -> None:
    """One batch."""
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "linger.ms": 500, "compression.type": compression}
    )
    for key in keys:
        producer.produce(topic, key=key, value=request(key, f"plain {key}"))
    assert producer.flush(30) == 0


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests"), topic("results"), topic("dead"))


def _assert_passed(kafka: Kafka, topics: Topics, folder: Path, first: int, last: int) -> None:
    """The worker answers what is before and behind the offsets that cannot be read, and says which these are."""
    with WorkerProcess(_environment(kafka, topics), folder / "worker.log") as worker:
        wait_until(lambda: b"behind" in _keys(kafka, topics.results), PATIENCE_S, "its neighbour", worker, 0.5)
        assert _keys(kafka, topics.results) == [b"before", b"behind"]
        wait_until(lambda: sum(metric(worker, "records_skipped_total")) > 0, PATIENCE_S, "the count", worker, 0.5)
        assert sum(metric(worker, "records_skipped_total")) == last - first + 1
        dead_letters = read_all(kafka.bootstrap_servers, topics.dead_letters)
        assert dead_letters
        for dead_letter in dead_letters:
            headers = dict(dead_letter.headers() or [])
            assert headers["xnli.dlq.reason"] == b"malformed"
            assert headers["xnli.dlq.topic"] == topics.requests.encode()
            assert headers["xnli.dlq.partition"] == b"0"
            assert first <= int(headers["xnli.dlq.offset"] or b"-1") <= last
        assert page(worker, "/healthz")[0] == 200
        assert worker.stop() == 0
        log = worker.log_path.read_text()
    assert topics.requests in log


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("damage", "compression", "together"),
    [
        pytest.param(segments.unknown_codec, "none", 50, id="unknown codec"),
        pytest.param(segments.unknown_codec, "none", 1, id="unknown codec, alone", marks=pytest.mark.acceptance),
        pytest.param(segments.noise, "zstd", 50, id="cannot be unpacked", marks=pytest.mark.acceptance),
        pytest.param(segments.noise, "lz4", 50, id="cannot be unpacked, lz4", marks=pytest.mark.acceptance),
        pytest.param(segments.overrun, "none", 1, id="cut off", marks=pytest.mark.acceptance),
        pytest.param(segments.overrun, "none", 50, id="cut off, many", marks=pytest.mark.acceptance),
        pytest.param(segments.noise, "none", 50, id="noise", marks=pytest.mark.acceptance),
    ],
)
def test_a_damaged_batch_is_passed(
    kafka: Kafka,
    topics: Topics,
    tmp_path: Path,
    damage: Callable[[bytearray], None],
    compression: str,
    together: int,
) -> None:
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("the log of a broker that somebody else runs is not ours to damage")
    send(kafka.bootstrap_servers, topics.requests, [("before", request("before", "plain"))])
    _send_together(kafka, topics.requests, [f"bad{i}" for i in range(together)], compression)
    send(kafka.bootstrap_servers, topics.requests, [("behind", request("behind", "plain"))])
    batch = segments.batches(kafka, topics.requests)[1]
    assert batch.base_offset == 1
    segments.rewrite(batch, damage)
    _assert_passed(kafka, topics, tmp_path, 1, together)


@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_a_batch_of_an_unknown_format_is_counted(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("the log of a broker that somebody else runs is not ours to damage")
    for key in ("before", "bad", "behind"):
        send(kafka.bootstrap_servers, topics.requests, [(key, request(key, "plain"))])
    segments.rewrite(segments.batches(kafka, topics.requests)[1], segments.unknown_format, checksum=False)
    _assert_passed(kafka, topics, tmp_path, 1, 1)


@pytest.mark.acceptance
@pytest.mark.timeout(120)
@pytest.mark.parametrize("length", [7, 600])
def test_a_flipped_byte_is_taken_as_it_is_and_harms_no_neighbour(
    kafka: Kafka, topics: Topics, tmp_path: Path, length: int
) -> None:
    """Checksums are not checked, because behind a wrong one librdkafka 2.16.1 goes on in the middle of the batch.

    It then takes text for the head of a batch, and for the offset to go on at.
    """
    if not isinstance(kafka, KafkaCluster):
        pytest.skip("the log of a broker that somebody else runs is not ours to damage")
    flipped = "plain " + "o" * length
    for key, text in (("before", "plain"), ("flipped", flipped), ("behind", "plain")):
        send(kafka.bootstrap_servers, topics.requests, [(key, request(key, text))])
    batch = segments.batches(kafka, topics.requests)[1]
    segments.rewrite(batch, lambda frame: segments.flip(frame, b"ooo"), checksum=False)
    with WorkerProcess(_environment(kafka, topics), tmp_path / "worker.log") as worker:
        wait_until(lambda: b"behind" in _keys(kafka, topics.results), 60, "its neighbour", worker, 0.5)
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated, found.results, found.dead_letters) == ((), (), 3, 0)


@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_a_batch_that_is_larger_than_an_answer_may_be_is_read(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path
) -> None:
    """It ends the connection, each time, and the first fetch of all is met by it."""
    large = 3_000_000
    topics = Topics(topic("requests", config={"max.message.bytes": str(2 * large)}), topic("results"), topic("dead"))
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "message.max.bytes": 2 * large})
    producer.produce(topics.requests, key=b"large", value=random.Random(1).randbytes(large))
    assert producer.flush(30) == 0
    send(kafka.bootstrap_servers, topics.requests, [("behind", request("behind", "plain"))])
    least = {"receive.message.max.bytes": large // 2, "fetch.max.bytes": large // 3, "message.max.bytes": large // 3}
    environment = _environment(kafka, topics) | {"XNLI_KAFKA__CONSUMER_PROPERTIES": json.dumps(least)}
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        wait_until(lambda: b"behind" in _keys(kafka, topics.results), PATIENCE_S, "its neighbour", worker, 0.5)
        (dead_letter,) = read_all(kafka.bootstrap_servers, topics.dead_letters)
        headers = dict(dead_letter.headers() or [])
        assert (headers["xnli.dlq.reason"], headers["xnli.dlq.offset"]) == (b"too_large", b"0")
        assert dead_letter.key() == b"large"  # it was read
        assert worker.stop() == 0
    assert _keys(kafka, topics.results) == [b"behind"]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_batch_that_unpacks_to_more_than_the_client_takes_is_read_or_passed(
    kafka: Kafka, topics: Topics, tmp_path: Path
) -> None:
    send(kafka.bootstrap_servers, topics.requests, [("before", request("before", "plain"))])
    producer = Producer(
        {"bootstrap.servers": kafka.bootstrap_servers, "compression.type": "zstd", "message.max.bytes": 2 * ZEROS}
    )
    producer.produce(topics.requests, key=b"zeros", value=bytes(ZEROS))
    assert producer.flush(60) == 0
    send(kafka.bootstrap_servers, topics.requests, [("behind", request("behind", "plain"))])
    began_s = time.monotonic()
    with WorkerProcess(_environment(kafka, topics), tmp_path / "worker.log") as worker:
        wait_until(lambda: b"behind" in _keys(kafka, topics.results), PATIENCE_S, "its neighbour", worker, 0.5)
        assert time.monotonic() - began_s < PATIENCE_S
        assert _keys(kafka, topics.results) == [b"before", b"behind"]
        (dead_letter,) = read_all(kafka.bootstrap_servers, topics.dead_letters)
        headers = dict(dead_letter.headers() or [])
        assert headers["xnli.dlq.reason"] in {b"malformed", b"too_large"}
        assert headers["xnli.dlq.offset"] == b"1"
        assert worker.stop() == 0
