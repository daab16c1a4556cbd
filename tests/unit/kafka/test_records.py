from __future__ import annotations

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, TIMESTAMP_NOT_AVAILABLE, Message

from worker.kafka.records import record_of
from worker.messages import Headers, Partition, Position

P0 = Partition("requests", 0)


def message(*, headers: object = None, timestamp: tuple[int, int] = (TIMESTAMP_CREATE_TIME, 1234)) -> Message:
    return Message("requests", 0, 7, b"k", b"v", headers, None, timestamp)  # type: ignore[arg-type]


def test_a_record_is_stamped_with_the_assignment_it_was_read_under() -> None:
    record = record_of(message(), P0, 3)
    assert record.position == Position(P0, 7, 3)
    assert (record.key, record.value, record.timestamp_ms) == (b"k", b"v", 1234)


@pytest.mark.parametrize(
    ("timestamp", "expected_ms"),
    [
        ((TIMESTAMP_CREATE_TIME, 0), 0),
        ((TIMESTAMP_LOG_APPEND_TIME, 5), 5),
        # What stands beside "not available" is no time, whatever it is.
        ((TIMESTAMP_NOT_AVAILABLE, 0), -1),
        ((TIMESTAMP_NOT_AVAILABLE, -1), -1),
    ],
)
def test_a_record_without_a_timestamp_says_so(timestamp: tuple[int, int], expected_ms: int) -> None:
    assert record_of(message(timestamp=timestamp), P0, 0).timestamp_ms == expected_ms


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, ()),
        ([], ()),
        ([("h", b"1"), ("h", None), ("b", b"\xfe")], (("h", b"1"), ("h", None), ("b", b"\xfe"))),
        ([("text", "ü")], (("text", "ü".encode()),)),
    ],
)
def test_headers_keep_their_order_and_bytes(raw: object, expected: Headers) -> None:
    assert record_of(message(headers=raw), P0, 0).headers == expected


class _Broken:
    """As the client answers where a header's name is not UTF-8: an error first, then a tuple with holes in it."""

    asked = 0

    def __getattr__(self, name: str) -> object:
        return getattr(message(), name)

    def headers(self) -> object:
        self.asked += 1
        if self.asked > 1:
            return [None]
        raise SystemError


def test_headers_that_cannot_be_read_leave_the_rest_as_it_came() -> None:
    record = record_of(_Broken(), P0, 0)  # type: ignore[arg-type]
    assert (record.key, record.value, record.timestamp_ms, record.headers) == (b"k", b"v", 1234, ())
    assert "not UTF-8" in record.unreadable
