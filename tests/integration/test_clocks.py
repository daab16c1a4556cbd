"""A wall clock that is set back delays nothing that waits already, and is believed within bounds."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

DELAY_S = 5.0


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment_s", [1.0, pytest.param(4.0, marks=pytest.mark.acceptance)])
def test_a_retry_comes_when_it_is_due_although_the_clock_was_set_back(
    kafka: Kafka, topic: TopicFactory, tmp_path: Path, moment_s: float
) -> None:
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    kafka.create_topic(f"{topics.requests}.retry.{DELAY_S:g}s")
    settings = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_TOPICS__RETRY": f"{DELAY_S:g}",
        "XNLI_RETRY__MAX_ATTEMPTS": "4",
    }
    with WorkerProcess(settings, tmp_path / "worker.log", module="tests.faults.clocks") as worker:
        wait_until(lambda: any(event["held"] == 2 for event in worker.events("rebalance")), 60, "partitions", worker)
        send(kafka.bootstrap_servers, topics.requests, [("flaky", request("flaky", "flaky=2"))])
        wait_until(lambda: bool(worker.events("retry")), 20, "the first attempt", worker)
        began_s = time.monotonic()
        time.sleep(moment_s)
        worker.signal(signal.SIGUSR2)
        wait_until(
            lambda: [m.key() for m in read_all(kafka.bootstrap_servers, topics.results)] == [b"flaky"],
            4 * DELAY_S,
            "its answer",
            worker,
            0.2,
        )
        assert time.monotonic() - began_s >= DELAY_S - 0.5
        assert worker.stop() == 0
