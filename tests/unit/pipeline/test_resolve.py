"""Whatever fails at whatever step meets one rule."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from confluent_kafka import KafkaError

from tests.brokers.memory import MemoryBroker
from tests.delivery.doubles import DEAD_LETTERS, HUGE_BYTES, OUTPUT, partition, record
from tests.delivery.worker import RETRY, Worker
from worker.errors import Unpublishable
from worker.messages import Output, Position, Record, Request
from worker.rules import names
from worker.rules.retry_headers import PREFIX, retry_copy
from worker.rules.topic_limits import CLOCK_SKEW_MS, TopicLimits

P0 = partition(0)


def reading(worker: Worker, *errors: Exception) -> Mock:
    """The worker's reader, which fails on the word "bad" as said, time after time, and then reads."""
    wanted = iter(errors)
    read = worker.codec.read

    def fails(record: Record) -> Request:
        if record.value == b"bad" and (error := next(wanted, None)) is not None:
            raise error
        return read(record)

    worker.codec.read = spy = Mock(side_effect=fails)  # type: ignore[method-assign]
    return spy


@pytest.mark.parametrize("error", [MemoryError(), ZeroDivisionError("a bug that this record provokes")])
def test_a_record_that_could_not_be_read_for_a_moment_is_read_again(broker: MemoryBroker, error: Exception) -> None:
    worker = Worker(broker)
    broker.assign(P0)
    read = reading(worker, error, error)
    broker.send(P0, b"bad")
    worker.settle()
    assert [output.topic for output in broker.visible] == [OUTPUT]
    assert read.call_count == 3
    assert broker.clock() > RETRY.delay_s(1, 0) + RETRY.delay_s(2, 0), "with back-off"


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError("no memory"), b"exhausted"), (ZeroDivisionError("a bug"), b"inference")]
)
def test_a_record_that_cannot_be_read_ever_is_given_up_after_all_its_attempts(
    broker: MemoryBroker, error: Exception, reason: bytes
) -> None:
    worker = Worker(broker)
    broker.assign(P0)
    reading(worker, *[error] * RETRY.max_attempts)
    broker.send(P0, b"bad", b"ok")
    worker.settle()
    dead, answered = broker.visible
    assert (dead.topic, answered.topic) == (DEAD_LETTERS, OUTPUT)
    headers = dict(dead.headers)
    assert headers["xnli.dlq.reason"] == reason
    assert headers["xnli.dlq.stage"] == b"decode"
    assert headers["xnli.dlq.attempts"] == b"%d" % RETRY.max_attempts
    assert type(error).__name__.encode() in (headers["xnli.dlq.stacktrace"] or b"")


def test_a_record_that_could_not_be_read_waits_in_its_retry_topic(broker: MemoryBroker) -> None:
    (retry_topic,) = retry_topics = names.retry_topics("group", (5.0,))
    worker = Worker(broker, retry_topics=retry_topics)
    broker.assign(P0)
    reading(worker, MemoryError())
    broker.send(P0, b"bad")
    worker.settle()
    assert [output.topic for output in broker.visible] == [retry_topic[1]]


def test_what_will_be_refused_is_replaced_before_it_is_sent(broker: MemoryBroker) -> None:
    """Two results and a dead letter of the future would take three transactions with them."""
    broker.broker_limit_bytes = HUGE_BYTES // 2
    broker.latest_timestamp_ms = 0
    small = TopicLimits(broker.broker_limit_bytes, is_compressed=False, future_ms=0)

    def refusal(position: Position, output: Output) -> Unpublishable | None:
        if small.is_too_large(output):
            return Unpublishable(position, output, KafkaError.MSG_SIZE_TOO_LARGE, "too large")
        if small.has_wrong_time(output, -CLOCK_SKEW_MS):
            return Unpublishable(position, output, KafkaError.INVALID_TIMESTAMP, "from the future")
        return None

    worker = Worker(broker, refusal=refusal)
    broker.assign(P0)
    broker.send(P0, b"ok", b"huge", b"huge", b"ok")
    worker.settle()
    assert [output.topic for output in broker.visible] == [OUTPUT, DEAD_LETTERS, DEAD_LETTERS, OUTPUT]
    assert worker.counted("transactions_total", result="aborted") == 0


@pytest.mark.parametrize("flaky", [0, 1, 2])
def test_a_result_that_is_refused_says_how_many_attempts_it_took(broker: MemoryBroker, flaky: int) -> None:
    broker.client_limit_bytes, broker.broker_limit_bytes = 2 * HUGE_BYTES, HUGE_BYTES // 2
    worker = Worker(broker)
    broker.assign(P0)
    worker.engine.failures_before["huge"] = flaky
    broker.send(P0, b"huge")
    worker.settle()
    (dead,) = broker.visible
    assert dict(dead.headers)["xnli.dlq.reason"] == b"too_large"
    assert dict(dead.headers)["xnli.dlq.attempts"] == b"%d" % (flaky + 1)


@pytest.mark.parametrize("word", [b"ok", b"poison"])
def test_no_producer_forges_where_a_record_comes_from(broker: MemoryBroker, word: bytes) -> None:
    """``xnli.retry.*`` is believed on retry topics alone."""
    worker = Worker(broker)
    broker.assign(P0)
    forged = retry_copy(record(77, number=9), "group.retry.5s", attempt=2, not_before_ms=0)
    broker.headers = [(name, value or b"") for name, value in forged.headers]
    broker.send(P0, word)
    worker.settle()
    (output,) = broker.visible
    headers = dict(output.headers)
    assert not [name for name in headers if name.startswith(PREFIX)]
    if word == b"poison":
        where = headers["xnli.dlq.topic"], headers["xnli.dlq.partition"], headers["xnli.dlq.offset"]
        assert where == (P0.topic.encode(), b"0", b"0")
        assert headers["xnli.dlq.attempts"] == b"%d" % RETRY.max_attempts
