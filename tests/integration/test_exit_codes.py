"""The process ends with 1 where its work was broken off, a forward of the real model under way or not."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, request, send
from tests.faults.workers import REAL, ROOT, WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

DRAIN_S = 20.0
LIMIT_S = 0.2  # model.timeout_s of the test that stalls: less than one full forward takes


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests"), topic("results"), topic("dead"))


def _environment(kafka: Kafka, topics: Topics) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_MODEL__NAME": str(ROOT / "worker" / "demo" / "checkpoint"),
        "XNLI_MODEL__LONG_TEXT": "WINDOW_MAX",
        "XNLI_MODEL__SELF_TEST": "off",
        # One batch of all messages: a shorter one would come back before the process has waited for it long enough.
        "XNLI_BATCH__MAX_TOKENS": "100000000",
        "XNLI_BATCH__MAX_WAIT_MS": "5000",
        "OMP_NUM_THREADS": "1",
    }


def _send_much(kafka: Kafka, topics: Topics) -> None:
    """Each message within what one may cost, and together minutes of the demo's model.

    No window is like another, so that nearly all the time is the forward's: the process must end while one returns.
    """
    rng = random.Random(1)
    words = [
        "the",
        "committee",
        "discussed",
        "a",
        "budget",
        "of",
        "time",
        "for",
        "rivers",
        "and",
        "old",
        "houses",
        "at",
        "great",
        "length",
        "in",
        "winter",
    ]
    labels = [f"label {i}" for i in range(5)]
    texts = (" ".join(rng.choices(words, k=6_000)) for _ in range(30))
    records = ((f"k{i}", request(f"k{i}", text, labels)) for i, text in enumerate(texts))
    send(kafka.bootstrap_servers, topics.requests, records)


@pytest.mark.acceptance
@pytest.mark.timeout(150)
def test_a_drain_that_ran_out_of_time_ends_with_1(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    with WorkerProcess(_environment(kafka, topics), tmp_path / "worker.log", module=REAL) as worker:
        worker.wait_for("rebalance")
        _send_much(kafka, topics)
        time.sleep(15)  # for the forward to begin
        worker.signal(signal.SIGTERM)
        assert worker.process.wait(3 * DRAIN_S) == 1
        assert worker.events("drain_timed_out")
        assert "terminate called" not in worker.log_path.read_text()


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_stall_ends_with_1(kafka: Kafka, topics: Topics, tmp_path: Path) -> None:
    settings = _environment(kafka, topics) | {"XNLI_MODEL__TIMEOUT_S": json.dumps(LIMIT_S)}
    with WorkerProcess(settings, tmp_path / "worker.log", module=REAL) as worker:
        worker.wait_for("rebalance")
        _send_much(kafka, topics)
        wait_until(lambda: worker.process.poll() is not None, 90, "the end", worker)
        assert worker.process.returncode == 1
        assert "terminate called" not in worker.log_path.read_text()
