"""The only broker is away, at the start or in the middle: waited for at rest, survived without a restart."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.soak import sample
from tests.brokers.kafka import KafkaCluster
from tests.conftest import running
from tests.faults.verifier import Topics, account, count, group_lag, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka
log = logging.getLogger(__name__)  # figures: pytest --log-cli-level=INFO

# `make acceptance` takes 60.
OUTAGE_S = float(os.environ.get("XNLI_TEST_OUTAGE_S", "5"))
MESSAGES = 1000
# Two clients that look for the broker with back-off, and a loop that turns every 100 ms.
CPU_SHARE = 0.1


@pytest.fixture(scope="module")
def lone() -> Iterator[KafkaCluster]:
    """One broker, which the tests take away and bring back."""
    yield from running(KafkaCluster())


def _topics(kafka: KafkaCluster, hint: str) -> Topics:
    topics = Topics(f"requests-{hint}", f"results-{hint}", f"dead-{hint}")
    for topic in (topics.requests, topics.results, topics.dead_letters):
        kafka.create_topic(topic, 4)
    return topics


def _send(kafka: KafkaCluster, topics: Topics, first: int) -> None:
    numbers = range(first, first + MESSAGES)
    send(kafka.bootstrap_servers, topics.requests, ((f"k{i}", request(f"k{i}", f"plain {i}")) for i in numbers))


def _be_away(lone: KafkaCluster, worker: WorkerProcess) -> None:
    """Let the outage pass, which has begun, and bring the broker back. The worker must wait at rest."""
    before = sample(worker.process.pid, time.monotonic())
    time.sleep(OUTAGE_S)
    assert worker.process.poll() is None, worker.log_path.read_text()[-3000:]
    after = sample(worker.process.pid, time.monotonic())
    used_s = after.cpu_s - before.cpu_s
    log.info("%.2f s of CPU in %.1f s of outage", used_s, after.at_s - before.at_s)
    assert used_s < CPU_SHARE * (after.at_s - before.at_s)
    lone.restart(1)


def _finish(lone: KafkaCluster, topics: Topics, worker: WorkerProcess, guarantee: str, messages: int) -> None:
    began_s = time.monotonic()
    wait_until(lambda: group_lag(lone.bootstrap_servers, topics.requests, topics.requests) == 0, 90, "the rest", worker)
    log.info("everything answered %.1f s after the broker was back", time.monotonic() - began_s)
    assert worker.stop() == 0
    found = account(lone.bootstrap_servers, topics)
    assert (found.inputs, found.lost, found.dead_letters, found.out_of_order) == (messages, (), 0, 0)
    if guarantee == "exactly_once":
        assert found.duplicated == ()


def _environment(lone: KafkaCluster, topics: Topics, guarantee: str) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": lone.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_DELIVERY__GUARANTEE": guarantee,
        "XNLI_BATCH__MAX_MESSAGES": "20",
        "XNLI_TEST_SECONDS_PER_BATCH": "0.05",
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("guarantee", ["exactly_once", pytest.param("at_least_once", marks=pytest.mark.acceptance)])
def test_a_broker_that_is_away_at_the_start(lone: KafkaCluster, tmp_path: Path, guarantee: str) -> None:
    topics = _topics(lone, f"start-{guarantee}")
    _send(lone, topics, 0)
    lone.kill(1)
    with WorkerProcess(_environment(lone, topics, guarantee), tmp_path / "worker.log") as worker:
        # What a worker looks for first: the coordinator of its transactions, or that of its group.
        wait_until(lambda: "away" in worker.log_path.read_text() or "_error" in worker.log_path.read_text(), 30, "it")
        _be_away(lone, worker)
        _finish(lone, topics, worker, guarantee, MESSAGES)


@pytest.mark.timeout(300)
@pytest.mark.acceptance  # the fault matrix has short ones
@pytest.mark.skipif(
    OUTAGE_S < 60, reason="in a short outage the work in hand is most of the CPU; XNLI_TEST_OUTAGE_S=60"
)
@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_a_broker_that_goes_away_in_the_middle(lone: KafkaCluster, tmp_path: Path, guarantee: str) -> None:
    topics = _topics(lone, f"middle-{guarantee}")
    with WorkerProcess(_environment(lone, topics, guarantee), tmp_path / "worker.log") as worker:
        worker.wait_for("rebalance")
        _send(lone, topics, 0)
        wait_until(lambda: count(lone.bootstrap_servers, topics.results) > MESSAGES // 4, 60, "results", worker)
        lone.kill(1)
        _be_away(lone, worker)
        _send(lone, topics, MESSAGES)
        _finish(lone, topics, worker, guarantee, 2 * MESSAGES)
