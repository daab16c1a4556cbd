"""A device that hangs ends the process, and loses nothing; one that is only slow does neither. Real Kafka."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, account, count, group_lag, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

TIMEOUT_S = 4.0
# Closing waits for the batch in hand, in case it comes back after all, for no longer than a revoke may.
CLOSE_S = 15.0
POLL_INTERVAL_S = 6


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests", partitions=4), topic("results", partitions=4), topic("dead", partitions=1))


def _environment(kafka: Kafka, topics: Topics) -> dict[str, str]:
    consumer = {
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 500,
        "max.poll.interval.ms": 1000 * POLL_INTERVAL_S,
    }
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_KAFKA__CONSUMER_PROPERTIES": json.dumps(consumer),
    }


def _health(port: int) -> tuple[int, str]:
    """Status and body of /healthz."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_device_that_hangs_ends_the_process_and_its_records_are_answered_by_the_next(
    kafka: Kafka, topics: Topics, tmp_path: Path
) -> None:
    messages = 2000
    environment = _environment(kafka, topics) | {"XNLI_BATCH__MAX_MESSAGES": "100"}
    hangs = {"XNLI_TEST_HANG_AT_BATCH": "8", "XNLI_MODEL__TIMEOUT_S": str(TIMEOUT_S)}
    with WorkerProcess(environment | hangs, tmp_path / "hangs.log") as worker:
        worker.wait_for("rebalance")
        port = int(worker.events("started")[0]["http_port"])
        assert _health(port)[0] == 200
        send(
            kafka.bootstrap_servers,
            topics.requests,
            ((f"k{i}", request(f"k{i}", f"plain {i}")) for i in range(messages)),
        )
        wait_until(lambda: count(kafka.bootstrap_servers, topics.results) > 0, 60, "the first results", worker)
        wait_until(lambda: _health(port)[0] == 503, TIMEOUT_S + 10, "a failing /healthz", worker)
        failing_s = time.monotonic()
        assert "the inference thread has made no progress" in _health(port)[1]
        assert worker.process.wait(CLOSE_S) == 1
        assert time.monotonic() - failing_s < CLOSE_S
        assert "Stalled" in worker.log_path.read_text()
    answered = account(kafka.bootstrap_servers, topics).results
    assert 0 < answered < messages
    with WorkerProcess(environment, tmp_path / "next.log") as worker:
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 60, "the rest", worker
        )
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.results, found.lost, found.duplicated, found.dead_letters, found.out_of_order) == (
        messages,
        (),
        (),
        0,
        0,
    )


@pytest.mark.acceptance
@pytest.mark.timeout(120)
def test_a_batch_longer_than_the_poll_interval_evicts_nobody(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    with WorkerProcess(_environment(kafka, topics), tmp_path / "worker.log") as worker:
        worker.wait_for("rebalance")
        slow = request("slow", f"slow={1.5 * POLL_INTERVAL_S}")
        send(kafka.bootstrap_servers, topics.requests, [("slow", slow)])
        wait_until(
            lambda: count(kafka.bootstrap_servers, topics.results) > 0, 4 * POLL_INTERVAL_S, "its result", worker
        )
        send(kafka.bootstrap_servers, topics.requests, [("next", request("next", "plain"))])
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 30, "the next", worker
        )
        assert [event["kind"] for event in worker.events("rebalance")] == ["assigned"]
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.results, found.lost, found.duplicated, found.dead_letters) == (2, (), (), 0)
