from __future__ import annotations

from structlog.testing import capture_logs

from tests.brokers.memory import Clock, MemoryBroker
from tests.delivery.doubles import partition
from tests.delivery.worker import Worker
from worker.pipeline.dead_letter_log import LINES
from worker.pipeline.summary import INTERVAL_S


def test_a_batch_is_one_line_that_says_what_it_cost_and_led_to() -> None:
    broker = MemoryBroker(Clock())
    worker = Worker(broker)
    broker.assign(partition())
    broker.send(partition(), b"ok", b"poison", b"ok", b"ok")
    with capture_logs() as lines:
        worker.settle()
    # The first batch answers three; the one that failed is tried twice more, alone, and given up.
    first, *rest = [line for line in lines if line["event"] == "batch"]
    assert first["log_level"] == "debug"
    assert (first["messages"], first["tokens"], first["trigger"]) == (4, 40, "messages")
    assert (first["pairs"], first["pairs_computed"], first["pairs_failed"], first["splits"]) == (3, 3, 0, 1)
    assert (first["retried"], first["revoked"], first["transaction"]) == (1, 0, "committed")
    assert first["waited_ms"] >= 0
    assert first["publish_ms"] >= 0
    assert [line["messages"] for line in rest] == [1, 1]
    assert sum(line["published"] for line in (first, *rest)) == 3
    assert sum(line["dead_lettered"] for line in (first, *rest)) == 1


def test_ten_seconds_are_one_line_and_idle_ones_are_none() -> None:
    broker = MemoryBroker(Clock())
    worker = Worker(broker)
    broker.assign(partition())
    with capture_logs() as lines:
        for _ in range(3):
            broker.send(partition(), b"ok", b"ok", b"garbage")
            worker.settle()
        broker.clock.advance(INTERVAL_S)
        worker.settle()
        broker.clock.advance(INTERVAL_S)
        worker.settle()
        broker.send(partition(), b"ok")
        worker.settle()
        worker.loop.report.end()
    first, last = [line for line in lines if line["event"] == "summary"]
    assert (first["log_level"], first["published"], first["dead_lettered"]) == ("info", 6, {"malformed": 3})
    assert (first["messages"], first["batches"]) == (6, 3)
    assert INTERVAL_S <= first["seconds"] < 2 * INTERVAL_S
    assert (last["published"], last["dead_lettered"]) == (1, {})


def test_each_dead_letter_says_why_until_there_are_too_many_to_read() -> None:
    broker = MemoryBroker(Clock())
    worker = Worker(broker)
    broker.assign(partition())
    with capture_logs() as lines:
        broker.send(partition(), b"garbage")
        worker.settle()
        broker.send(partition(), *[b"garbage"] * 30)
        worker.settle()
        broker.clock.advance(INTERVAL_S)
        broker.send(partition(), b"garbage")
        worker.settle()
    told = [line for line in lines if line["event"] == "dead_letter"]
    assert len(told) == LINES + 1
    first = told[0]
    assert (first["log_level"], first["topic"], first["partition"], first["offset"]) == (
        "warning",
        partition().topic,
        0,
        0,
    )
    assert (first["reason"], first["stage"]) == ("malformed", "decode")
    assert first["message"]
    assert told[-1]["held_back"] == 31 - LINES
