"""Limits of topics as brokers tell them, or do not."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import cast
from unittest.mock import Mock

import pytest
import structlog
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from tests.brokers.memory import Clock
from tests.builders import output
from tests.delivery.doubles import partition
from worker.kafka.known_limits import MISSING_REFRESH_S, REFRESH_S, KnownLimits
from worker.messages import Position

AT = Position(partition(0), 0, 1)
TOPIC = "results"
ENTRIES = {
    "max.message.bytes": "1000",
    "message.timestamp.after.max.ms": "3600000",
    "message.timestamp.before.max.ms": str((1 << 63) - 1),
}


class Admin:
    """Answers at once, with settings or with the code of an error."""

    def __init__(self) -> None:
        self.answer: dict[str, str] | int = ENTRIES
        self.asked = 0
        self.list_topics = Mock()

    def describe_configs(self, resources: Sequence[object], **_: float) -> dict[object, Future[dict[str, Mock]]]:
        self.asked += 1
        future: Future[dict[str, Mock]] = Future()
        if isinstance(self.answer, int):
            future.set_exception(KafkaException(KafkaError(self.answer)))
        else:
            future.set_result({name: Mock(value=value) for name, value in self.answer.items()})
        return dict.fromkeys(resources, future)


@pytest.fixture
def admin() -> Admin:
    return Admin()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def missing() -> list[Sequence[str]]:
    return []


@pytest.fixture
def limits(admin: Admin, clock: Clock, missing: list[Sequence[str]]) -> KnownLimits:
    return KnownLimits(cast("AdminClient", admin), [TOPIC], "none", missing.append, clock, lambda: 1000.0)


def test_what_is_over_the_limit_is_refused_and_batches_keep_to_it(limits: KnownLimits, admin: Admin) -> None:
    limits.load()
    refused = limits.refusal(AT, output(b"x" * 1001))
    assert refused is not None
    assert refused.code == KafkaError.MSG_SIZE_TOO_LARGE
    assert "1000" in str(refused)
    assert limits.refusal(AT, output(b"x" * 500)) is None
    assert limits.fitted({}) == {"batch.size": 1000}
    assert limits.fitted({"batch.size": 5}) == {"batch.size": 5}


def test_a_change_is_seen_within_a_minute(limits: KnownLimits, admin: Admin, clock: Clock) -> None:
    limits.load()
    admin.answer = ENTRIES | {"max.message.bytes": "2000"}
    limits.refresh()
    assert admin.asked == 1
    clock.advance(REFRESH_S)
    limits.refresh()
    limits.refresh()
    assert limits.refusal(AT, output(b"x" * 1001)) is None


def test_a_denied_answer_is_said_once_and_refuses_nothing(limits: KnownLimits, admin: Admin, clock: Clock) -> None:
    admin.answer = KafkaError.TOPIC_AUTHORIZATION_FAILED
    with structlog.testing.capture_logs() as lines:
        limits.load()
        clock.advance(REFRESH_S)
        limits.refresh()
        limits.refresh()
    assert [line["event"] for line in lines] == ["topic_limits_unknown"]
    assert "DescribeConfigs" in lines[0]["error"]
    assert limits.refusal(AT, output(b"x" * 2000)) is None
    assert limits.fitted({}) == {}


def test_a_missing_topic_is_named_until_it_is_there(
    limits: KnownLimits, admin: Admin, clock: Clock, missing: list[Sequence[str]]
) -> None:
    admin.answer = KafkaError.UNKNOWN_TOPIC_OR_PART
    with structlog.testing.capture_logs() as lines:
        limits.load()
        admin.answer = ENTRIES
        clock.advance(MISSING_REFRESH_S)
        limits.refresh()
        limits.refresh()
    assert missing[0] == [TOPIC]
    assert missing[-1] == []
    assert [line["event"] for line in lines] == ["topic_missing", "topic_found"]
    admin.list_topics.assert_called_once()  # which creates it where brokers do that by themselves
