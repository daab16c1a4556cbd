"""Restarts that nobody need fear: routine stops and lost nodes quarantine nothing, and a record that kills is found.

A short form of each runs by default; the numbers of the promise are acceptance.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, account, group_lag, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

PARTITIONS = 4
IDLE_STOP_S = 1.0
MOST_RESTARTS = 6
PROTOCOLS = ["classic", "consumer"]
# By default each protocol is met once or twice.
ORDERLY = [(2, "consumer"), *(pytest.param(10, protocol, marks=pytest.mark.acceptance) for protocol in PROTOCOLS)]
KILLS = [(2, "classic"), *(pytest.param(7, protocol, marks=pytest.mark.acceptance) for protocol in PROTOCOLS)]


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests", partitions=PARTITIONS), topic("results"), topic("dead"))


def _environment(kafka: Kafka, topics: Topics, protocol: str, name: str = "one") -> dict[str, str]:
    own = {}
    if protocol == "classic":  # a worker with a name is back at once after a kill; KIP-848 fences the new one instead
        own = {
            "XNLI_KAFKA__GROUP_INSTANCE_ID": name,
            "XNLI_KAFKA__CONSUMER_PROPERTIES": '{"session.timeout.ms": 6000, "heartbeat.interval.ms": 500}',
        }
    return (
        own
        | topics.environment()
        | {
            "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "XNLI_KAFKA__GROUP_ID": topics.requests,
            "XNLI_KAFKA__GROUP_PROTOCOL": protocol,
            "XNLI_BATCH__MAX_MESSAGES": "16",
        }
    )


def _send(kafka: Kafka, topics: Topics, name: str, count: int) -> None:
    records = ((f"{name}-{i}", request(f"{name}-{i}", "plain")) for i in range(count))
    send(kafka.bootstrap_servers, topics.requests, records)


def _is_done(kafka: Kafka, topics: Topics) -> bool:
    return group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0


def _await_end(kafka: Kafka, topics: Topics, worker: WorkerProcess) -> None:
    wait_until(lambda: _is_done(kafka, topics), 60, "the end", worker)


def _await_partitions(worker: WorkerProcess, times: int = 1) -> None:
    def held() -> int:
        return len([event for event in worker.events("rebalance") if event["kind"] == "assigned" and event["held"]])

    wait_until(lambda: held() >= times, 60, "partitions", worker)


def _marks(kafka: Kafka, topics: Topics) -> list[str]:
    """What stands beside the committed offsets of starts and quarantines."""
    client = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": topics.requests})
    found = client.committed([TopicPartition(topics.requests, n) for n in range(PARTITIONS)], timeout=20)
    client.close()
    words = ("starts", "until", "suspect")
    return [str(p.metadata) for p in found if any(word in str(p.metadata) for word in words)]


def _no_evidence(kafka: Kafka, topics: Topics, *workers: WorkerProcess) -> None:
    for worker in workers:
        assert not worker.events("quarantined"), worker.log_path
    assert _marks(kafka, topics) == []
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated, found.dead_letters) == ((), (), 0)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("restarts", "protocol"), ORDERLY)
def test_orderly_restarts_leave_no_mark(
    kafka: Kafka, topics: Topics, tmp_path: Path, protocol: str, restarts: int
) -> None:
    # Idle first: nothing was ever in hand. Then as often under load.
    stops_s: list[float] = []
    with WorkerProcess(_environment(kafka, topics, protocol), tmp_path / "worker.log") as worker:
        for turn in range(2 * restarts):
            _await_partitions(worker, turn + 1)
            is_idle = turn < restarts
            if not is_idle:
                _send(kafka, topics, f"turn{turn}", 400)
            began_s = time.monotonic()
            assert worker.stop() == 0
            if is_idle:
                stops_s.append(time.monotonic() - began_s)
            worker.restart()
        _await_partitions(worker, 2 * restarts + 1)
        _await_end(kafka, topics, worker)
        assert worker.stop() == 0
    _no_evidence(kafka, topics, worker)
    assert max(stops_s) < IDLE_STOP_S, stops_s


@pytest.mark.acceptance
@pytest.mark.timeout(240)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_rolling_restart_leaves_no_mark(kafka: Kafka, topics: Topics, tmp_path: Path, protocol: str) -> None:
    workers = [
        WorkerProcess(_environment(kafka, topics, protocol, f"number-{i}"), tmp_path / f"{i}.log") for i in range(3)
    ]
    try:
        for worker in workers:
            worker.wait_for("rebalance")
        for turn, worker in enumerate(workers):
            _send(kafka, topics, f"turn{turn}", 1000)
            assert worker.stop() == 0
            worker.restart()
            wait_until(lambda seen=worker: len(seen.events("started")) == 2, 60, "its start", worker)  # type: ignore[misc]
        _await_end(kafka, topics, workers[-1])
        for worker in workers:
            assert worker.stop() == 0
    finally:
        for worker in workers:
            worker.__exit__(None, None, None)
    _no_evidence(kafka, topics, *workers)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kills", "protocol"), KILLS)
def test_kills_after_a_commit_on_every_partition_quarantine_nothing(
    kafka: Kafka, topics: Topics, tmp_path: Path, protocol: str, kills: int
) -> None:
    with WorkerProcess(_environment(kafka, topics, protocol), tmp_path / "worker.log") as worker:
        for turn in range(kills):
            _await_partitions(worker, turn + 1)
            _send(kafka, topics, f"kill{turn}", 200)
            _await_end(kafka, topics, worker)
            worker.kill()
            worker.restart()
        _await_partitions(worker, kills + 1)
        _send(kafka, topics, "last", 200)
        _await_end(kafka, topics, worker)
        assert worker.stop() == 0
    _no_evidence(kafka, topics, worker)


@pytest.mark.acceptance
@pytest.mark.timeout(180)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("seed", range(20))
def test_fast_kills_condemn_nothing(kafka: Kafka, topics: Topics, tmp_path: Path, protocol: str, seed: int) -> None:
    # Each kill comes within moments of the first batch in hand, mostly before a commit.
    chance = random.Random(seed)
    environment = _environment(kafka, topics, protocol) | {"XNLI_TEST_SECONDS_PER_BATCH": "0.2"}
    total = 300
    _send(kafka, topics, "k", total)
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        for turn in range(7):
            wait_until(lambda seen=turn: len(worker.events("started")) > seen, 60, "its start", worker)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 2.0))
            worker.kill()
            worker.restart()
        wait_until(lambda: _is_done(kafka, topics), 120, "the end", worker)
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated, found.dead_letters, found.results) == ((), (), 0, total)


@pytest.mark.acceptance  # one killer is found in test_poison.py too
@pytest.mark.timeout(240)
@pytest.mark.parametrize("protocol", ["classic", pytest.param("consumer", marks=pytest.mark.acceptance)])
def test_a_record_that_kills_is_found_within_six_restarts(
    kafka: Kafka, topics: Topics, tmp_path: Path, protocol: str
) -> None:
    _send(kafka, topics, "before", 300)
    send(kafka.bootstrap_servers, topics.requests, [("killer", request("killer", "kill=137"))])
    _send(kafka, topics, "after", 300)
    with WorkerProcess(_environment(kafka, topics, protocol), tmp_path / "worker.log") as worker:
        deadline_s = time.monotonic() + 200
        while not _is_done(kafka, topics):
            assert time.monotonic() < deadline_s, worker.log_path.read_text()[-3000:]
            if worker.process.poll() is not None:
                assert worker.process.returncode == 137, worker.log_path.read_text()[-3000:]
                worker.restart()
            time.sleep(0.1)
        assert worker.stop() == 0
    assert worker.starts - 1 <= MOST_RESTARTS
    assert _marks(kafka, topics) == []
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated, found.reasons) == ((), (), {"crash": 1})
    assert found.results == 600
    assert found.buried == {"killer"}
