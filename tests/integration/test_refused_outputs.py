"""Outputs that the broker refuses for what they are cost a few transactions, not one each, and no long wait."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AclOperation

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, account, group_lag, request
from tests.faults.workers import WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

MESSAGES, REFUSED = 120, 21
DAY_MS = 86_400_000


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("most_bytes", "is_known", "most_aborted", "most_s"),
    [
        # 40 kB of hexadecimal noise are 20 kB at best: known beforehand.
        (15_000, True, 0, 10),
        # Some codec could make 25 kB of it, and the one in use does not. Five of them are found in a transaction, of
        # the results and then of the dead letters that take their place: 13 transactions, 6 s. One by one they were 60.
        pytest.param(25_000, True, 20, 15, marks=pytest.mark.acceptance),
        # The timestamps of ten of the dead letters are found by sending, too.
        pytest.param(25_000, False, 30, 20, marks=pytest.mark.acceptance),
    ],
)
def test_refused_results_and_dead_letters_cost_few_transactions(
    kafka: Kafka,
    topic: TopicFactory,
    tmp_path: Path,
    most_bytes: int,
    is_known: bool,
    most_aborted: int,
    most_s: float,
) -> None:
    results = topic("results", config={"max.message.bytes": str(most_bytes)})
    requests = topic("requests", config={"message.timestamp.after.max.ms": str(1 << 62)})
    topics = Topics(requests, results, topic("dead", config={"max.message.bytes": str(most_bytes)}))
    if not is_known:
        for name in (topics.results, topics.dead_letters):
            kafka.deny(name, AclOperation.DESCRIBE_CONFIGS)
    rng = random.Random(0)
    refused = set(rng.sample(range(MESSAGES), REFUSED))
    environment = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_DELIVERY__GUARANTEE": "exactly_once",
        "XNLI_LIMITS__MAX_LABEL_CHARS": "50000",
    }
    with WorkerProcess(environment, tmp_path / "worker.log") as worker:
        worker.wait_for("rebalance")
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        for i in range(MESSAGES):
            value = request(f"k{i}", f"plain {i}", [rng.randbytes(20_000).hex()] if i in refused else ["a"])
            # A dead letter keeps the time of its request, which the dead-letter topic may refuse.
            ahead_ms = DAY_MS if i in refused and i % 2 else 0
            producer.produce(topics.requests, value, b"k%d" % i, timestamp=int(time.time() * 1000) + ahead_ms)
        began_s = time.monotonic()
        producer.flush(30)
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0,
            60,
            "all to be answered",
            worker,
        )
        took_s = time.monotonic() - began_s
        assert worker.stop() == 0
    found = account(kafka.bootstrap_servers, topics)
    assert (found.lost, found.duplicated) == ((), ())
    assert found.buried == {f"k{i}" for i in refused}

    assert bool(worker.events("topic_limits_unknown")) is not is_known
    assert not worker.events("producer_lost")  # an abort waits for nothing that will not come
    assert len(worker.events("transaction_aborted")) <= most_aborted
    assert took_s < most_s
