"""Attempts that wait in a retry topic."""

from __future__ import annotations

import pytest

from tests.brokers.memory import MemoryBroker
from tests.delivery.doubles import (
    DEAD_LETTERS,
    OUTPUT,
    record,
)
from tests.delivery.observed import P0, started
from tests.delivery.worker import Worker
from worker.messages import Partition
from worker.rules.crash_count import Mark
from worker.rules.names import retry_topics
from worker.rules.offset_metadata import render
from worker.rules.retry_headers import PREFIX, retry_copy

RETRY_TOPICS = retry_topics("group", (5.0,))
RETRY_PARTITION = Partition(RETRY_TOPICS[0][1], 0)


def retry_headers(**fields: int) -> list[tuple[str, bytes]]:
    """Headers of a record in a retry topic, due at once; these fields are somebody else's."""
    sent = retry_copy(record(), RETRY_PARTITION.topic, attempt=2, not_before_ms=0)
    theirs = {PREFIX + name.replace("_", "-"): b"%d" % value for name, value in fields.items()}
    return [(name, value or b"") for name, value in (dict(sent.headers) | theirs).items()]


@pytest.mark.parametrize("attempt", [-5, 0, 99, 10**400], ids=["negative", "none", "many", "absurd"])
def test_on_an_input_topic_a_record_has_its_first_attempt_whatever_it_says(broker: MemoryBroker, attempt: int) -> None:
    worker = started(broker, retry_topics=RETRY_TOPICS)
    broker.headers = retry_headers(attempt=attempt)
    broker.send(P0, b"flaky 1")
    worker.settle()
    (sent,) = broker.visible
    assert sent.topic == RETRY_PARTITION.topic
    assert dict(sent.headers)["xnli.retry.attempt"] == b"2"


@pytest.mark.parametrize(
    "fields",
    [
        {"not_before": 4_600_000},  # in an hour, in a topic of five seconds
        {"not_before": 10**400},
        {"not_before": -(10**400)},
        {"timestamp": 10**400},
        {"timestamp": -(10**400)},
        {"attempt": -5},
    ],
    ids=["skewed", "never", "long ago", "future", "past", "attempt"],
)
def test_absurd_headers_in_a_retry_topic_hold_up_nobody(broker: MemoryBroker, fields: dict[str, int]) -> None:
    worker = Worker(broker, retry_topics=RETRY_TOPICS)
    broker.assign(RETRY_PARTITION)
    broker.headers = retry_headers(**fields)
    broker.send(RETRY_PARTITION, b"poison", b"ok", b"garbage")
    worker.settle()
    assert [output.topic for output in broker.visible] == [RETRY_PARTITION.topic, OUTPUT, DEAD_LETTERS]
    assert all(0 <= (output.timestamp_ms or 0) < 1 << 63 for output in broker.visible), "else no client sends it"


@pytest.mark.parametrize("mark", [Mark(), Mark(until=8)], ids=["ordinary", "quarantined"])
def test_a_record_in_a_retry_topic_waits_until_it_is_due(broker: MemoryBroker, mark: Mark) -> None:
    """Also in quarantine, and also for longer than the topic's delay: clocks may differ by so much."""
    broker.metadata[RETRY_PARTITION] = render(mark)
    worker = Worker(broker, retry_topics=RETRY_TOPICS)
    broker.assign(RETRY_PARTITION)
    broker.headers = retry_headers(not_before=int((broker.clock() + 6) * 1000))
    broker.send(RETRY_PARTITION, b"ok")
    began_s = broker.clock()
    while not broker.visible and broker.clock() < began_s + 20:
        worker.turn()
    assert broker.clock() - began_s == pytest.approx(6.0, abs=0.2)


@pytest.mark.parametrize("shift_s", [-3600.0, -30.0, 3600.0])
@pytest.mark.parametrize("moment_s", [0.5, 4.5])
def test_a_wait_that_has_begun_goes_on_when_the_wall_clock_is_set(
    broker: MemoryBroker, moment_s: float, shift_s: float
) -> None:
    worker = Worker(broker, retry_topics=RETRY_TOPICS)
    broker.assign(RETRY_PARTITION)
    broker.headers = retry_headers(not_before=int((broker.clock() + 5) * 1000))
    broker.send(RETRY_PARTITION, b"ok")
    began_s = broker.clock()
    while not broker.visible and broker.clock() < began_s + 60:
        if broker.clock() >= began_s + moment_s:
            worker.wall_ahead_s = shift_s
        worker.turn()
    assert broker.clock() - began_s == pytest.approx(5.0, abs=0.2)


def test_a_dead_letter_that_could_not_be_read_names_its_attempt(broker: MemoryBroker) -> None:
    worker = Worker(broker, retry_topics=RETRY_TOPICS)
    broker.assign(RETRY_PARTITION)
    broker.headers = retry_headers(attempt=3)
    broker.send(RETRY_PARTITION, b"garbage")
    worker.settle()
    (letter,) = broker.visible
    assert dict(letter.headers)["xnli.dlq.attempts"] == b"3"
