"""The real worker, as a process, on real Kafka: what the README promises a user."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, account, count, group_lag, read_all, request, send
from tests.faults.workers import REAL, WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

# `make acceptance` takes 20,000.
MESSAGES = int(os.environ.get("XNLI_TEST_MESSAGES", "3000"))


def _topics(topic: TopicFactory, partitions: int = 4) -> Topics:
    big = {"max.message.bytes": "8388608"}
    return Topics(
        topic("requests", partitions=partitions, config=big),
        topic("results", partitions=partitions),
        topic("dead", partitions=1, config=big),
    )


def _environment(kafka: Kafka, topics: Topics, guarantee: str) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_KAFKA__CONSUMER_PROPERTIES": '{"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}',
        "XNLI_DELIVERY__GUARANTEE": guarantee,
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize("guarantee", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.acceptance)])
def test_one_of_two_workers_is_killed_half_way(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, guarantee: str
) -> None:
    topics = _topics(topic)
    environment = _environment(kafka, topics, guarantee)
    with (
        WorkerProcess(environment, tmp_path / "one.log") as one,
        WorkerProcess(environment, tmp_path / "two.log") as two,
    ):
        one.wait_for("rebalance")
        two.wait_for("rebalance")
        sent = send(
            kafka.bootstrap_servers,
            topics.requests,
            ((f"k{i}", request(f"k{i}", f"plain text {i}")) for i in range(MESSAGES)),
        )
        wait_until(lambda: count(kafka.bootstrap_servers, topics.results) > sent // 2, 120, "half the results", one)
        one.kill()
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 120, "the rest", two
        )
        assert two.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.inputs, found.lost, found.dead_letters) == (sent, (), 0)
    if guarantee == "exactly_once":
        assert found.duplicated == ()
        assert found.results == sent
        assert found.out_of_order == 0


def _hostile(seed: int) -> list[tuple[str, bytes | None, str]]:
    """A thousand records: bad ones of every kind with the reason they must die of, good ones between them."""
    draw = random.Random(seed)
    good = request("good", "plain text")
    records: list[tuple[str, bytes | None, str]] = []
    for i in range(1000):
        match i % 8:
            case 0:
                # A first byte that no wire format begins with.
                records.append((f"random-{i}", bytes([0x17]) + draw.randbytes(draw.randrange(200)), "malformed"))
            case 1:
                records.append((f"cut-{i}", good[: draw.randrange(10, len(good) - 1)], "malformed"))
            case 2:
                records.append((f"schema-{i}", b"\x00" + draw.randbytes(4) + good[10:], "schema"))
            case 3:
                records.append((f"labels-{i}", request(f"labels-{i}", "plain text", labels=()), "invalid"))
            case 4:
                records.append((f"null-{i}", None, ""))
            case 5 if i < 16:
                records.append((f"huge-{i}", request(f"huge-{i}", "x" * 5_000_000), "too_large"))
            case _:
                records.append((f"ok-{i}", request(f"ok-{i}", f"plain text {i}"), ""))
    return records


@pytest.mark.timeout(180)
def test_no_message_stops_its_neighbours(kafka: Kafka, topic: TopicFactory, tmp_path: Path) -> None:
    topics = _topics(topic, partitions=2)
    records = _hostile(seed=7)
    from worker.demo.play import CHECKPOINT  # noqa: PLC0415 (only this test needs the real model)

    environment = _environment(kafka, topics, "exactly_once") | {"XNLI_MODEL__NAME": str(CHECKPOINT)}
    send(kafka.bootstrap_servers, topics.requests, ((key, value) for key, value, _ in records))
    with WorkerProcess(environment, tmp_path / "worker.log", REAL) as worker:
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 120, "the end", worker
        )
        assert worker.stop() == 0
    results = {m.key() for m in read_all(kafka.bootstrap_servers, topics.results)}
    letters = {m.key(): m for m in read_all(kafka.bootstrap_servers, topics.dead_letters)}
    for key, value, reason in records:
        name = key.encode()
        if reason:
            headers = dict(letters[name].headers() or [])
            assert headers["xnli.dlq.reason"] == reason.encode(), key
            assert letters[name].value() == value, key
            assert headers["xnli.dlq.topic"] == topics.requests.encode()
        elif value is not None:
            assert name in results, key
    assert len(letters) == sum(bool(reason) for _, _, reason in records)
    assert len(results) == sum(value is not None and not reason for _, value, reason in records)
