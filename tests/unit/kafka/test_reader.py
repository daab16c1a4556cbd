"""Where reading ends, with a client that hands over what the test says. Over a broker it is in tests/unit/commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import pytest
from confluent_kafka import OFFSET_BEGINNING, TIMESTAMP_CREATE_TIME, Consumer, KafkaError, Message, TopicPartition

from worker.errors import FatalError
from worker.kafka.client_errors import ErrorLog
from worker.kafka.reader import Extent, Reader

TOPIC = "dead-letters"
NOTHING = None


class ScriptedClient:
    def __init__(self, polled: Iterable[Message | None]) -> None:
        self._polled = list(polled)
        self.assigned: list[tuple[int, int]] = []

    def assign(self, positions: list[TopicPartition]) -> None:
        self.assigned = [(position.partition, position.offset) for position in positions]

    def poll(self, timeout: float) -> Message | None:
        assert self._polled, "nothing more would ever come"
        return self._polled.pop(0)


def record(number: int, offset: int) -> Message:
    return Message(TOPIC, number, offset, None, b"v", None, None, (TIMESTAMP_CREATE_TIME, 0))


def problem(code: int, number: int = 0, offset: int = -1001) -> Message:
    return Message(TOPIC, number, offset, None, None, None, KafkaError(code))


def end(number: int, offset: int) -> Message:
    return problem(KafkaError._PARTITION_EOF, number, offset)


def reader(*polled: Message | None) -> tuple[Reader, ScriptedClient]:
    client = ScriptedClient(polled)
    return Reader(cast("Consumer", client), TOPIC, ErrorLog("reader")), client


def read(source: Reader, starts: dict[int, int], ends: dict[int, int]) -> list[tuple[int, int]]:
    extents = {number: Extent(0, end) for number, end in ends.items()}
    found = source.read(starts, extents, lambda: False)
    return [(record.position.partition.number, record.position.offset) for record in found]


def test_reading_ends_at_each_partitions_end_and_asks_for_no_empty_one() -> None:
    source, client = reader(record(0, 0), NOTHING, record(1, 5), record(0, 1))
    assert read(source, {0: 0, 1: 5, 2: 3}, {0: 2, 1: 6, 2: 3}) == [(0, 0), (1, 5), (0, 1)]
    assert client.assigned == [(0, 0), (1, 5)]


def test_what_came_after_the_question_is_left_out() -> None:
    source, _ = reader(record(0, 0), record(0, 1), record(0, 2), record(1, 0))
    assert read(source, {0: 0, 1: 0}, {0: 1, 1: 1}) == [(0, 0), (1, 0)]


def test_behind_the_last_record_may_lie_the_marker_of_a_transaction() -> None:
    source, _ = reader(record(0, 0), end(0, 1), end(0, 2))
    assert read(source, {0: 0}, {0: 2}) == [(0, 0)], "the end before the marker is not the end"


def test_an_error_that_passes_ends_nothing_and_one_that_is_fatal_ends_the_reader() -> None:
    source, _ = reader(problem(KafkaError._TRANSPORT), record(0, 0), problem(KafkaError._FATAL))
    found = source.read({0: 0}, {0: Extent(0, 9)}, lambda: False)
    assert next(found).position.offset == 0
    with pytest.raises(FatalError, match="the reader cannot go on"):
        next(found)


def test_caught_up_is_once_every_partition_was_read_to_an_end() -> None:
    source, _ = reader(end(0, 3), record(1, 0), end(1, 1), record(0, 3))
    source.assign(dict.fromkeys([0, 1], OFFSET_BEGINNING))
    caught_up = []
    for _ in range(4):
        source.poll(0)
        caught_up.append(source.is_caught_up)
    assert caught_up == [False, False, True, True]
