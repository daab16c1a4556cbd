"""A device that runs out of memory, under the real worker with the shipped checkpoint, on real Kafka."""

from __future__ import annotations

import signal
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, account, count, group_lag, read_all, request, send
from tests.faults.workers import WorkerProcess, wait_until
from worker.demo.play import CHECKPOINT

pytestmark = pytest.mark.kafka

CRAMPED = "tests.faults.cramped"
# Small numbers, so that the budget grows within seconds: by a step after every 64 forwards. Short requests have two
# rows of 17 tokens at most, long ones two of `MAX_LENGTH`: more than there is room for.
MAX_TOKENS = 256
STEP = MAX_TOKENS // 16
MAX_LENGTH = 64
ROOM = 60


@pytest.fixture
def topics(topic: TopicFactory) -> Topics:
    return Topics(topic("requests", partitions=4), topic("results", partitions=4), topic("dead", partitions=1))


def _environment(kafka: Kafka, topics: Topics) -> dict[str, str]:
    return topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_MODEL__NAME": str(CHECKPOINT),
        "XNLI_MODEL__MAX_LENGTH": str(MAX_LENGTH),
        "XNLI_BATCH__MAX_TOKENS": str(MAX_TOKENS),
        "XNLI_TEST_ROOM_TOKENS": str(ROOM),
        "XNLI_MODEL__PRECISION": "fp32",  # with AMX bfloat16 rounds lengths up to more than there is room for here
    }


def _metrics(worker: WorkerProcess) -> dict[str, float]:
    port = worker.events("started")[-1]["http_port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        sample.name.removeprefix("xnli_worker_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def _answer(
    kafka: Kafka, topics: Topics, worker: WorkerProcess, numbers: range, long: str | None = None
) -> dict[str, float]:
    """Send short requests, and a long one before them; wait until none is left; return the metrics."""
    records = [(f"k{i}", request(f"k{i}", f"plain text {i}")) for i in numbers]
    if long is not None:
        records.insert(0, (long, request(long, "word " * 500)))
    send(kafka.bootstrap_servers, topics.requests, records)
    wait_until(
        lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 60, "all answers", worker
    )
    return _metrics(worker)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_memory_that_others_take_costs_speed_and_no_message_but_one_that_does_not_fit_even_alone(
    kafka: Kafka, topics: Topics, tmp_path: Path
) -> None:
    with WorkerProcess(_environment(kafka, topics), tmp_path / "worker.log", CRAMPED) as worker:
        worker.wait_for("started")
        cramped = _answer(kafka, topics, worker, range(300))
        # It may stand one step of growth above what fits, until the next forward of that size.
        assert ROOM / 4 <= cramped["token_budget"] <= ROOM + STEP
        assert cramped["out_of_memory_shrinks_total"] >= 2
        assert count(kafka.bootstrap_servers, topics.dead_letters) == 0
        too_long = _answer(kafka, topics, worker, range(300, 350), long="too-long")
        assert 0 < too_long["token_budget"] <= ROOM + STEP
        worker.signal(signal.SIGUSR2)
        roomy = _answer(kafka, topics, worker, range(350, 1350), long="long")
        assert roomy["token_budget"] >= 2 * ROOM
        assert roomy["out_of_memory_shrinks_total"] == too_long["out_of_memory_shrinks_total"]
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated, found.out_of_order) == ((), (), 0)
    assert (found.results, found.buried) == (1350 + 1, frozenset({"too-long"}))
    (letter,) = read_all(kafka.bootstrap_servers, topics.dead_letters)
    headers = dict(letter.headers() or [])
    assert (headers["xnli.dlq.reason"], headers["xnli.dlq.error"]) == (b"inference", b"OutOfDeviceMemory")
    assert b"one row of 64 tokens does not fit" in (headers["xnli.dlq.message"] or b"")
    assert headers["xnli.dlq.attempts"] == b"1"  # it will not fit next time either
