from __future__ import annotations

from structlog.testing import capture_logs

from tests.brokers.memory import Clock, MemoryBroker
from tests.delivery.doubles import partition
from tests.delivery.worker import Worker


def test_a_batch_is_one_line_that_says_what_it_cost_and_led_to() -> None:
    broker = MemoryBroker(Clock())
    worker = Worker(broker)
    broker.assign(partition())
    broker.send(partition(), b"ok", b"poison", b"ok", b"ok")
    with capture_logs() as lines:
        worker.settle()
    # The first batch answers three; the one that failed is tried twice more, alone, and given up.
    first, *rest = [line for line in lines if line["event"] == "batch"]
    assert first["log_level"] == "info"
    assert (first["messages"], first["tokens"], first["trigger"]) == (4, 40, "messages")
    assert (first["pairs"], first["pairs_computed"], first["pairs_failed"], first["splits"]) == (3, 3, 0, 1)
    assert (first["retried"], first["revoked"], first["transaction"]) == (1, 0, "committed")
    assert first["waited_ms"] >= 0
    assert first["publish_ms"] >= 0
    assert [line["messages"] for line in rest] == [1, 1]
    assert sum(line["published"] for line in (first, *rest)) == 3
    assert sum(line["dead_lettered"] for line in (first, *rest)) == 1
