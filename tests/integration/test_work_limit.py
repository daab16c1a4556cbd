"""What one message may cost is limited, and the limit named: a message of millions of tokens stops nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers.kafka import Kafka
from tests.conftest import TopicFactory
from tests.faults.verifier import Topics, group_lag, read_all, request, send
from tests.faults.workers import REAL, ROOT, WorkerProcess, wait_until

pytestmark = pytest.mark.kafka

LIMIT = 262_144  # the default of limits.max_tokens


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_message_of_ten_million_tokens_is_too_large(kafka: Kafka, topic: TopicFactory, tmp_path: Path) -> None:
    topics = Topics(topic("requests"), topic("results"), topic("dead"))
    text = ("The committee discussed the budget at length. " * 2200)[:100_000]
    labels = [f"label {i}" for i in range(256)]
    records = [
        ("before", request("before", "A short text.", ["short"])),
        ("much", request("much", text, labels)),
        ("behind", request("behind", "Another one.", ["short"])),
    ]
    settings = topics.environment() | {
        "XNLI_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "XNLI_KAFKA__GROUP_ID": topics.requests,
        "XNLI_MODEL__NAME": str(ROOT / "worker" / "demo" / "checkpoint"),
        "XNLI_MODEL__LONG_TEXT": "WINDOW_MAX",
        "XNLI_MODEL__TIMEOUT_S": "20",
        "XNLI_RETRY__MAX_ATTEMPTS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with WorkerProcess(settings, tmp_path / "worker.log", module=REAL) as worker:
        worker.wait_for("rebalance")
        send(kafka.bootstrap_servers, topics.requests, records)
        wait_until(
            lambda: group_lag(kafka.bootstrap_servers, topics.requests, topics.requests) == 0, 15, "the end", worker
        )
        assert worker.stop() == 0
    assert [m.key() for m in read_all(kafka.bootstrap_servers, topics.results)] == [b"before", b"behind"]
    (letter,) = read_all(kafka.bootstrap_servers, topics.dead_letters)
    headers = dict(letter.headers() or [])
    assert letter.key() == b"much"
    assert headers["xnli.dlq.reason"] == b"too_large"
    message = str(headers["xnli.dlq.message"])
    assert "max_tokens" in message
    assert str(LIMIT) in message.replace(",", "")
